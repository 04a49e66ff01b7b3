"""The site builds without a warning, loads nothing from elsewhere, and its links lead somewhere."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests.site.blocks import ROOT

pytest.importorskip("mkdocs", reason="needs pip install 'dmcodec[docs]'")
pytest.importorskip("material", reason="needs pip install 'dmcodec[docs]'")

DOCS = ROOT / "docs"
ADDRESS = re.compile(r"https://[\w-]+(\.[\w-]+)+(/[\w./#?=&%@+-]*)?")


class Page(HTMLParser):
    """Links, loaded files and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sorts an element's addresses."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(values["href"])
        elif tag in ("script", "img", "audio", "source", "iframe") and "src" in values:
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    logger = logging.getLogger("mkdocs")
    handlers = list(logger.handlers)
    build(config)
    logger.handlers = handlers
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages but the report of an evaluation, which is one file of its own."""
    return {
        path: Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
        if path.name not in ("404.html", "evaluation-report.html")
    }


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path.name} loads {address}"
            assert (path.parent / unquote(urlsplit(address).path)).is_file(), address
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text("utf-8"))


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.netloc:
                assert ADDRESS.fullmatch(link), f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"),
        *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md"))),
    ],
)
def test_links_of_documents_read_as_files_lead_somewhere(
    name: str, site: Path, pages: dict[Path, Page]
) -> None:
    document = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        parts = urlsplit(link)
        if parts.netloc:
            assert ADDRESS.fullmatch(link), link
            continue
        target = (document.parent / unquote(parts.path)).resolve() if parts.path else document
        assert target.exists(), link
        if parts.fragment:
            page = pages[site / target.relative_to(DOCS).with_suffix(".html")]
            assert parts.fragment in page.anchors, link


def test_links_to_sources_lead_to_the_pages_made_of_them(pages: dict[Path, Page]) -> None:
    links = {path.name: set(page.links) for path, page in pages.items()}

    assert "reference/configuration.html#evaluations-dmcodec-evaluate" in links["evaluation.html"]
    assert {"reference/commands.html", "reference/bundled.html"} <= links["encoding.html"]


def test_reference_has_names_commands_and_keys_of_the_package(
    site: Path, pages: dict[Path, Page]
) -> None:
    import dmcodec

    reference = {path.stem: page for path, page in pages.items() if path.parent.name == "reference"}
    for name in dmcodec.__all__:
        assert name.startswith("__") or f"dmcodec.{name}" in reference["python"].anchors, name
    assert "dmcodec.tokens.lm.Packer" in reference["python"].anchors
    assert "waveforms, computed as one batch" not in reference["python"].text  # private
    assert {"dmcodec-encode", "dmcodec-ablate"} <= reference["commands"].anchors
    assert "--search-width" in reference["commands"].text
    text = re.sub(r"<[^>]+>", " ", reference["configuration"].text)
    for expected in (
        "[adversary.networks] DiscriminatorConfig",
        "periods",
        "first step with adversarial losses",  # of a field
        "length of a segment. The paper trains on 3 s.",  # of the record's docstring
        "integer, ≥&nbsp;1, ≤&nbsp;16384",
    ):
        assert re.sub(r"\s+", " ", expected) in re.sub(r"\s+", " ", text), expected
