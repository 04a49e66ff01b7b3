"""What pyproject.toml promises of other packages."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements")

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
REQUIREMENTS = [
    packaging.Requirement(line) for each in (PROJECT["dependencies"], *EXTRAS) for line in each
]

# The last release of each with a hole that is known: CVE-2026-24747, CVE-2026-25645, the batch
# fixed in 12.3.0, CVE-2026-27489 and two more, CVE-2026-25087, CVE-2026-41486.
LAST_WITH_HOLES = {
    "torch": "2.9.1",
    "requests": "2.32.5",
    "pillow": "12.2.0",
    "onnx": "1.20.1",
    "pyarrow": "23.0.0",
    "ray": "2.54.1",
}


@pytest.mark.parametrize(("name", "release"), LAST_WITH_HOLES.items())
def test_no_release_with_a_known_hole_is_admitted(name: str, release: str) -> None:
    found = [each for each in REQUIREMENTS if each.name == name]

    assert found
    assert not any(each.specifier.contains(release) for each in found)


def test_the_citation_names_the_version() -> None:
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text()

    assert f"\nversion: {PROJECT['version']}\n" in citation


def test_what_is_installed_is_admitted() -> None:
    for each in REQUIREMENTS:
        try:
            installed = version(each.name)
        except PackageNotFoundError:
            continue
        assert each.specifier.contains(installed.partition("+")[0]), each
