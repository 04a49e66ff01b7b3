"""CONTRIBUTING.md: its tree is that of the folders, its reading path leads to what there is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dmcodec"
DOCUMENT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def tree() -> dict[str, str]:
    """Each room or module of src/dmcodec -> what the tree says of it."""
    block = DOCUMENT.partition("    src/dmcodec/ ")[2].partition("\n\n")[0]
    entries: dict[str, str] = {}
    last = ""
    for line in block.splitlines()[1:]:
        # An entry stands at the sixth column, or in a second column of modules.
        heads = re.findall(r"(?:^ {6}|\s{2,})(\w+(?:/|\.py))(?= )", line)
        if heads:
            last = heads[0]
        entries |= dict.fromkeys(heads, "")
        entries[last] += line + "\n"
    return entries


def modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}


def test_tree_has_every_room_and_module_and_no_other():
    rooms = {f"{path.name}/" for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    expected = rooms | {f"{name}.py" for name in modules(SOURCE)}

    assert set(tree()) == expected


def test_every_file_of_a_room_is_named_in_its_line():
    lacking = [
        f"{room}{name}"
        for room, text in tree().items()
        if room.endswith("/")
        for name in sorted(modules(SOURCE / room))
        if not re.search(rf"\b{name}\b", text)
    ]

    assert lacking == []


def test_reading_path_leads_to_functions_that_take_ten_minutes():
    steps = re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", DOCUMENT, re.MULTILINE)
    num_lines = 0
    for file, name in steps:
        scope: ast.AST = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
        for part in name.split("."):
            scope = next(
                node
                for node in ast.iter_child_nodes(scope)
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
            )
        assert isinstance(scope, ast.FunctionDef)
        assert scope.end_lineno is not None
        num_lines += scope.end_lineno - scope.lineno + 1

    assert len(steps) == 8
    assert num_lines < 850
