"""What all jobs over many files share: progress, a report, how much may fail, lists of failures.

How progress and reports are shown is in cli/terminal.py.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from dmcodec.storage import write_whole

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and how many there are."""

Failure = dict[str, Any]
"""The `reason`, a sentence; of an utterance also what its manifest says, `id` at least."""

FAILURES_NAME = "failures.jsonl"


def no_progress(stage: str, done: int, total: int) -> None:
    """The `Progress` of a job that nobody watches."""


@dataclass(kw_only=True)
class Report:
    """What became of the `total` files, utterances or clips of a job.

    Attributes:
        num_done: done now.
        num_before: done by earlier runs of the job, and kept.
        failures: of this run and of what is kept.
        listed_in: file in which the job lists its failures.
    """

    total: int
    num_done: int = 0
    num_before: int = 0
    failures: list[Failure] = field(default_factory=list)
    listed_in: Path | None = None

    @property
    def num_finished(self) -> int:
        """All that is not left to do."""
        return self.num_done + self.num_before + len(self.failures)

    def is_beyond(self, max_failures: int | str) -> bool:
        """Whether more failed than a limit allows; see `count_allowed`."""
        return len(self.failures) > count_allowed(max_failures, self.total)

    def describe(self) -> str:
        """The counts, such as "3 done, 6 were there, 1 failed (listed in failures.jsonl)"."""
        before = f", {self.num_before} were there" if self.num_before else ""
        place = f" (listed in {self.listed_in.name})" if self.failures and self.listed_in else ""
        return f"{self.num_done} done{before}, {len(self.failures)} failed{place}"


def count_allowed(max_failures: int | str, total: int) -> int:
    """How many of `total` may fail: a number, or a percentage such as "5%" or "0.5%", rounded down.

    Raises ValueError for anything else.
    """
    found = re.fullmatch(r"([0-9]+)|([0-9]+(?:\.[0-9]+)?)%", str(max_failures))
    if found is None:
        raise ValueError(
            f"--max-failures {max_failures!r} is neither a number (100) nor a percentage (2.5%)"
        )
    number, percentage = found.groups()
    return int(number) if number else int(Fraction(percentage) * total / 100)


def describe_failure(failure: Failure) -> str:
    """One line: what failed, and why."""
    return ": ".join(str(failure[key]) for key in ("system", "id", "reason") if key in failure)


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Writes a JSON line for each; without failures there is no file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures]
    # A file name that is not UTF-8 is escaped, and read back as it was.
    write_whole(path, "".join(lines).encode(errors="backslashreplace"), is_durable=True)
