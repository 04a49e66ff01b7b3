"""The code blocks of the documentation: how they are read, run, and checked where they cannot run.

CONTRIBUTING.md lists the comments before a block that say what a test does with it.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import typer
from typer.testing import CliRunner

from dmcodec import cli
from dmcodec.ablation import AblationConfig
from dmcodec.config import load_config
from dmcodec.training.experiment import Experiment

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
RECORDS = {"train": Experiment, "teach": Experiment, "ablate": AblationConfig}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMENTS = re.compile(r"(?:^<!-- .* -->\n)+\Z", re.MULTILINE)
_COMMENT = re.compile(r"^<!-- ([\w ]+): (.+) -->$", re.MULTILINE)
_PAGE_COMMENT = re.compile(r"^<!-- not (run|checked) on this page: .+ -->$", re.MULTILINE)
_OPERATORS = "|<>&;"


@dataclass(frozen=True)
class Block:
    """A fenced block of python or sh.

    place: page and line. is_run: it runs, else it is checked. added: words that tests add to its
    last command. needs: programs without which it is only checked.
    """

    language: str
    code: str
    place: str
    is_run: bool
    added: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def is_runnable(self) -> bool:
        """Whether it runs here."""
        return self.is_run and all(shutil.which(program) for program in self.needs)


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page; none where its commands are history."""
    text = page.read_text(encoding="utf-8")
    of_page = _PAGE_COMMENT.search(text)
    if of_page and of_page[1] == "checked":
        return []
    blocks = []
    for fence in _FENCE.finditer(text):
        above = _COMMENTS.search(text[: fence.start()])
        comments = dict(_COMMENT.findall(above[0])) if above else {}
        unknown = comments.keys() - {"not run", "needs", "tests add"}
        assert not unknown, f"{page.name}: comments that no test knows: {unknown}"
        if fence[1] in ("python", "sh"):
            blocks.append(
                Block(
                    language=fence[1],
                    code=fence[2],
                    place=f"{page.name}, line {text[: fence.start()].count(chr(10)) + 1}",
                    is_run=not of_page and "not run" not in comments,
                    added=tuple(shlex.split(comments.get("tests add", ""))),
                    needs=tuple(re.findall(r"[\w-]+", comments.get("needs", ""))),
                )
            )
    return blocks


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a sh block as words, shell operators among them."""
    commands = []
    for line in block.code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=_OPERATORS)
        lexer.whitespace_split = True
        if words := list(lexer):
            commands.append(words)
    commands[-1] += block.added
    return commands


def run_block(block: Block, names: dict[str, object], programs: Path) -> None:
    """Runs a block in the working folder; python blocks of a page share their names."""
    if block.language == "python":
        exec(compile(block.code, block.place, "exec"), names)
        return
    for words in commands_of(block):
        if words[0] in ("apt-get", "make", "pip", "python3") or words[0].startswith(".venv/"):
            check_command(words, block.place)
        elif words[0] == "dmcodec" and not _is_operated(words):
            result = CliRunner().invoke(cli.app, words[1:])
            assert result.exit_code == 0, f"{block.place}: {result.output} {result.exception!r}"
        else:
            _run_in_shell(words, block.place, programs)


def _run_in_shell(words: Sequence[str], place: str, programs: Path) -> None:
    """A pipeline, or a command that is not ours, with `dmcodec` among the programs."""
    line = " ".join(word if _is_operator(word) else shlex.quote(word) for word in words)
    # `python` is the one that runs the tests.
    places = [programs, Path(sys.executable).parent, os.environ["PATH"]]
    path = os.pathsep.join(map(str, places))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{place}: {line}: {done.stderr}"


def write_program(folder: Path) -> None:
    """The command `dmcodec` of this checkout, for shells."""
    program = folder / "dmcodec"
    folder.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dmcodec.cli "$@"\n')
    program.chmod(0o755)


def check_block(block: Block) -> None:
    """That a block which cannot run here names only what there is."""
    if block.language == "python":
        for node in ast.walk(ast.parse(block.code, block.place)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dmcodec"):
                module = import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{block.place}: {alias.name}"
        return
    for words in commands_of(block):
        command: list[str] = []
        for word in [*words, "|"]:
            if not _is_operator(word):
                command.append(word)
            elif command:
                check_command(command, block.place)
                command = []


def check_command(words: Sequence[str], place: str) -> None:
    """That a command's flags, keys, scripts, extras and targets are there."""
    match words:
        case ["dmcodec", name, *arguments]:
            _check_ours(name, arguments, place)
        case ["torchrun", *options] if "dmcodec.cli" in options:
            name, *arguments = options[options.index("dmcodec.cli") + 1 :]
            _check_ours(name, arguments, place)
        case ["python", script, *arguments]:
            source = (ROOT / script).read_text(encoding="utf-8")
            known = {node.value for node in ast.walk(ast.parse(source)) if _is_flag(node)}
            unknown = {each for each in arguments if each.startswith("-")} - known
            assert not unknown, f"{place}: {script} has no {unknown}"
        case ["pip" | ".venv/bin/pip", "install", *arguments]:
            for each in arguments:
                if found := re.fullmatch(r"(?:dmcodec|\.)\[([\w,]+)\]", each):
                    unknown = set(found[1].split(",")) - EXTRAS.keys()
                    assert not unknown, f"{place}: there is no extra {unknown}"
        case ["make", target]:
            assert target in TARGETS, f"{place}: the Makefile has no {target}"


def _check_ours(name: str, arguments: Sequence[str], place: str) -> None:
    """That the command line takes the arguments, and its record the keys of --set."""
    group = typer.main.get_command(cli.app)
    command = group.get_command(typer.Context(group), name)
    assert command is not None, f"{place}: there is no command {name}"
    filled = ["key=value" if each == "..." else each for each in arguments]
    parsed = command.make_context(name, filled).params
    config = parsed.get("config")
    if name in RECORDS and str(config).startswith("configs/") and "..." not in arguments:
        load_config(ROOT / config, RECORDS[name], list(parsed["assignments"] or []))


def _is_flag(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and str(node.value).startswith("-")


def _is_operator(word: str) -> bool:
    return set(word) <= set(_OPERATORS)


def _is_operated(words: Sequence[str]) -> bool:
    return any(map(_is_operator, words))
