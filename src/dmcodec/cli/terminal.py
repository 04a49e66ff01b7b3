"""What reaches the terminal, and what must not: the one place where commands show text.

Names of files, ids and models come from elsewhere. In them `ESC` and its kind, which a terminal
obeys, are shown as what Python writes for them; every other character is shown as it is.
"""

import logging
import re
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Controls (C0, DEL, C1), line ends that are none of ours, and halves of characters, which is how
# Python has the bytes of names that are not UTF-8: they cannot be written at all.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text in one line that a terminal shows and does not obey: ESC becomes `\x1b`."""
    return text if text.isprintable() else _UNSHOWABLE.sub(_escape, text)


def _escape(found: "re.Match[str]") -> str:
    if "\udc80" <= found[0] <= "\udcff":  # a byte
        return f"\\x{ord(found[0]) - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()


def say(*lines: str, is_aside: bool = False) -> None:
    """Shows lines; those that are no result (`is_aside`) on stderr."""
    for line in lines:
        typer.echo(printable(line), err=is_aside)


def complain(problem: str) -> None:
    """Shows what went wrong, in red on stderr."""
    typer.secho(f"dmcodec: {printable(problem)}", fg="red", err=True)


def plain_console(*, stderr: bool = False) -> "Console":
    """A console that shows names and messages as they are: text is data, never markup."""
    from rich.console import Console

    class _PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> "Text":
            return super().render_str(printable(text), **options)

    return _PlainConsole(stderr=stderr, markup=False, emoji=False, highlight=False)


class _PlainFormatter(logging.Formatter):
    """Log lines in which text is data; the traceback below them is left as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().formatMessage(record).split("\n")))


def show_logs(level: int | None = None) -> None:
    """Shows what is logged, from a level on; None: warnings, as they are without any set-up."""
    if level is None:
        if isinstance(logging.lastResort, logging.Handler):
            logging.lastResort.setFormatter(_PlainFormatter())
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
