"""Every row of docs/ablations.md is an experiment."""

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "ablations.md"


def rows() -> list[tuple[str, str, list[str]]]:
    """Row, configuration and assignments of each line of the tables."""
    found = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[2].startswith("`"):
            found.append((cells[0], cells[2].strip("`"), re.findall(r"`([^`]+)`", cells[3])))
    return found


@pytest.mark.parametrize(("row", "name", "assignments"), rows())
def test_row_is_an_experiment(tiny, row, name, assignments):
    plain = tiny(name=name)

    experiment = tiny(*assignments, name=name)

    assert (experiment.distillation == plain.distillation) == (
        all(each.endswith("text.books=[1]") for each in assignments)
    ), row


def test_rows_with_other_teachers_name_stores_of_their_own(tiny):
    teachers = {}
    for _, name, assignments in rows():
        distillation = tiny(*assignments, name=name).distillation
        for guide in distillation.teachers.values() if distillation is not None else ():
            teachers.setdefault(guide.store, []).append(guide.teacher)

    assert len(rows()) > 40
    for store, sharing in teachers.items():
        assert all(each == sharing[0] for each in sharing), store
