"""The frame of the report and its smallest parts: headings, tables, figures. HTML in, HTML out."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

_PAGE_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)
TEXT = ' class="text"'
"""Attribute of cells that hold words."""
_ONE_AT_A_TIME = """
document.addEventListener("play", event => {
  for (const player of document.querySelectorAll("audio"))
    if (player !== event.target) player.pause();
}, true);
"""


def page(body: str) -> str:
    """The whole file around a body; it may load nothing from outside."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_PAGE_POLICY}">\n'
        f"<title>Codec evaluation</title>\n<style>\n{style}</style></head>\n<body>\n{body}\n"
        f"<script>{_ONE_AT_A_TIME}</script>\n</body></html>\n"
    )


def heading(text: str) -> str:
    """A second-level heading that can be linked to by its text."""
    return f'<h2 id="{anchor(text)}">{text}</h2>'


def anchor(text: str) -> str:
    """The id of a heading."""
    return text.lower().replace(" ", "-")


def captioned(caption: str, chart: str) -> str:
    """A chart with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def cell(text: str, *, is_text: bool = False) -> str:
    """A table cell of plain text, set to the right as numbers are, or as words."""
    return f"<td{TEXT if is_text else ''}>{escape(text)}</td>"


def table(head: Sequence[str], lines: Sequence[str], text_columns: Sequence[int] = ()) -> str:
    """A table that scrolls sideways on narrow screens; lines are finished `<tr>` elements.

    Numbers stand right; headings of `text_columns` (the first is 0) left, as cells of text do.
    """
    cells = "".join(
        f"<th{TEXT if number in text_columns else ''}>{escape(name)}</th>"
        for number, name in enumerate(head)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
