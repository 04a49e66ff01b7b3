"""Pages of the site that are made at build: the reference, and documents that live elsewhere.

MkDocs calls `on_files` and `on_page_markdown` (`hooks` in mkdocs.yml). Names come from the package
and from what the guides import, keys from the records, commands from the command line itself.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

import dmcodec
from dmcodec.ablation import AblationConfig
from dmcodec.cli import app
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.training.experiment import Experiment

ROOT = Path(__file__).parents[1]
# What guides link to, so that a link leads somewhere where they are read as files -> the page that
# the site makes of it.
PAGE_OF = {
    "src/dmcodec/__init__.py": "reference/python.md",
    "src/dmcodec/cli/__init__.py": "reference/commands.md",
    "src/dmcodec/training/experiment.py": "reference/configuration.md",
    "src/dmcodec/evaluation/config.py": "reference/configuration.md#evaluations-dmcodec-evaluate",
    "src/dmcodec/codec/bundled/README.md": "reference/bundled.md",
}
CODE_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    pages = {
        "python": python_page(),
        "commands": commands_page(),
        "configuration": configuration_page(),
        "bundled": moved(ROOT / "src/dmcodec/codec/bundled/README.md"),
        "contributing": moved(ROOT / "CONTRIBUTING.md"),
        "changelog": moved(ROOT / "CHANGELOG.md"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page of docs/ with its links to sources led to the pages made of them."""
    for source, page in PAGE_OF.items():
        markdown = markdown.replace(f"](../{source})", f"]({page})")
    return markdown


def moved(path: Path) -> str:
    """A document of the repository, its links into docs/ as they are from reference/."""
    return path.read_text(encoding="utf-8").replace("](docs/", "](../")


# Python


def python_page() -> str:
    """Every name of `import dmcodec`, then every name that a guide imports from a room."""
    lines = ["# Python", "", "What `import dmcodec` gives; each name is loaded when first used."]
    lines += [f"\n::: dmcodec.{name}" for name in dmcodec.__all__ if not name.startswith("__")]
    room = ""
    for module, name in sorted(guided_names()):
        if module != room:
            room = module
            lines += ["", f"## {module}", "", f"{first_paragraph(module)}"]
        lines.append(f"\n::: {module}.{name}")
    return "\n".join(lines) + "\n"


def guided_names() -> set[tuple[str, str]]:
    """(module, name) that the Python blocks of the guides import from rooms of the package."""
    found = set()
    for page in (ROOT / "docs").glob("*.md"):
        for block in CODE_BLOCK.findall(page.read_text(encoding="utf-8")):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmcodec."):
                    found |= {(str(node.module), alias.name) for alias in node.names}
    return found


def first_paragraph(module: str) -> str:
    """What a module says of itself, without what it says to those who read its source."""
    return (inspect.getdoc(import_module(module)) or "").split("\n\n")[0]


# Commands


def commands_page() -> str:
    """A table of all commands, then what each says of itself."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="dmcodec")
    names = group.list_commands(context)
    commands = {name: group.get_command(context, name) for name in names}
    lines = ["# Commands", "", "`dmcodec --help` and `dmcodec COMMAND --help` show the same.", ""]
    lines += ["| command | |", "|---|---|"]
    for name, command in commands.items():
        summary = inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| [`{name}`](#dmcodec-{name}) | {escape(summary)} |")
    for command in commands.values():
        text = get_docs_for_click(obj=command, ctx=context, indent=1, call_prefix="dmcodec")
        lines += ["", text.replace("```console", "```text")]
    return "\n".join(lines)


# Configuration


def configuration_page() -> str:
    """Every key of every configuration file, from the records that read them."""
    lines = ["# Configuration", ""]
    lines += ["Every key is checked; unknown ones are errors. `--set group.key=value` sets one."]
    for title, record in (
        ("Experiments: `dmcodec train` and `teach`", Experiment),
        ("Evaluations: `dmcodec evaluate`", EvaluationConfig),
        ("Tables of ablations: `dmcodec ablate`", AblationConfig),
    ):
        lines += ["", f"## {title}", ""]
        for path, group in groups(record, ""):
            lines += group_section(path, group)
    return "\n".join(lines) + "\n"


def groups(record: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """(path, record) of a record and of every record within it, in the order of the keys."""
    yield path, record
    for key, field in record.model_fields.items():
        for inner in records_within(field.annotation):
            yield from groups(inner, f"{path}.{key}" if path else key)


def records_within(annotation: object) -> list[type[BaseModel]]:
    """The records that a value may be, or consist of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for each in get_args(annotation) for record in records_within(each)]


def group_section(path: str, record: type[BaseModel]) -> list[str]:
    """Heading, what the record says of itself, and a row for each key."""
    doc = griffe.Docstring(inspect.cleandoc(record.__doc__ or ""), parser="google")
    sections = doc.parse(warn_missing_types=False, warnings=False)
    said = {
        each.name: each.description
        for section in sections
        if section.kind is griffe.DocstringSectionKind.attributes
        for each in section.value
    }
    lines = [] if not path else ["", f"### `[{path}]` {record.__name__}", ""]
    lines += [
        str(section.value)
        for section in sections
        if section.kind is griffe.DocstringSectionKind.text
    ]
    lines += ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in record.model_fields.items():
        meaning = field.description or said.get(key, "")
        row = f"`{key}`", type_of(field), default_of(field), escape(" ".join(meaning.split()))
        lines.append(f"| {' | '.join(row)} |")
    return lines


def type_of(field: FieldInfo) -> str:
    """A type as a reader of TOML knows it, with the bounds of the value."""
    bounds = []
    for rule in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if hasattr(rule, name):
                bounds.append(f"{sign}&nbsp;{getattr(rule, name)}")
    return escape(", ".join([name_of(field.annotation), *bounds]))


NAMES = {int: "integer", float: "number", str: "text", bool: "true, false", Path: "path"}


def name_of(annotation: Any) -> str:
    """Names of types in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if annotation is type(None):
        return "none"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(str(each.value) for each in annotation)
    if origin is Literal:
        return ", ".join(str(each) for each in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(name_of(e) for e in inner if e is not type(None)))
    if origin in (tuple, list):
        kinds = list(dict.fromkeys(name_of(each) for each in inner if each is not Ellipsis))
        return f"list of {', '.join(kinds)}"
    if origin is dict:
        return f"table of {name_of(inner[1])}"
    if hasattr(annotation, "__origin__"):  # Annotated
        return name_of(annotation.__origin__)
    return str(annotation)


def default_of(field: FieldInfo) -> str:
    """The default as TOML has it; groups say theirs in their own section."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, BaseModel) or (isinstance(value, tuple) and has_records(value)):
        return "below"
    return f"`{escape(toml(value))}`"


def has_records(value: tuple[object, ...]) -> bool:
    """Whether a list is one of groups."""
    return any(isinstance(each, BaseModel) for each in value)


def toml(value: object) -> str:
    """A value as it is written in a configuration."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, (str, Path)) else str(value)


def escape(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return text.replace("|", "\\|")
