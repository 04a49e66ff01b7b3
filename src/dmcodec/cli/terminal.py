"""What reaches the terminal, and what must not: the one place where commands show text.

Names of files, ids and models come from elsewhere. In them `ESC` and its kind, which a terminal
obeys, are shown as what Python writes for them; every other character is shown as it is.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from dmcodec.jobs import Progress, Report, describe_failure

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


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar for each stage of a job, on stderr and until it ends; gives what moves them."""
    from rich import progress as bars

    tasks: dict[str, bars.TaskID] = {}
    # Names of systems are in the descriptions.
    name = bars.TextColumn("{task.description}", markup=False)
    columns = (name, bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
    console = plain_console(stderr=True)
    with bars.Progress(*columns, console=console, transient=True) as display:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(printable(stage), total=total)
            display.update(tasks[stage], completed=done, total=max(1, total))

        yield show


def show_reports(reports: Mapping[str, Report], max_failures: int | str) -> None:
    """Says on stderr what became of jobs, by their names: what failed, and the counts.

    Of failures that are listed in a file the first 20 are shown. One file that is done needs no
    word. Ends the command with exit code 1 when more failed of any job than `max_failures` allows.
    """
    for name, report in reports.items():
        for failure in report.failures[: 20 if report.listed_in else None]:
            complain(describe_failure(failure))
        excess = f", more than --max-failures {max_failures}"
        if not report.total == report.num_done == 1:
            counts = report.describe() + (excess if report.is_beyond(max_failures) else "")
            say(f"{name}: {counts}", is_aside=True)
    if any(report.is_beyond(max_failures) for report in reports.values()):
        raise typer.Exit(1)


def show_table(title: str, rows: dict[str, str]) -> None:
    """Shows what there is to say of one thing, a row for each key."""
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for key, value in rows.items():
        table.add_row(key, value)
    plain_console().print(table)


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
