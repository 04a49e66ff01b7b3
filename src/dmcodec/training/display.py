"""How far a run is: a progress line on a terminal, plain lines in a log file.

A background run writes to a file, where a line that redraws itself is unreadable.
"""

import logging
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

logger = logging.getLogger(__name__)


class Display:
    """Shows the step, the time left and the figures of the last logged step.

    Args:
        first_step: steps done already.
        num_steps: of the whole run.
        is_shown: False shows nothing (all processes but the main one).
        console: None stands for standard error.
    """

    def __init__(
        self, first_step: int, num_steps: int, *, is_shown: bool, console: Console | None = None
    ) -> None:
        console = console or Console(stderr=True)
        self._num_steps = num_steps
        self._is_line = is_shown and not console.is_terminal
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # A narrow terminal gets the figures on several lines instead of their beginning.
            TextColumn("{task.fields[figures]}", table_column=Column(overflow="fold", ratio=1)),
            console=console,
            expand=True,
            disable=not is_shown or self._is_line,
            refresh_per_second=2,
        )
        self._task = self._progress.add_task(
            "training", total=num_steps, completed=first_step, figures=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, step: int, steps_per_s: float, figures: str) -> None:
        """Shows that `step` steps are done; called when they are logged."""
        self._progress.update(self._task, completed=step, figures=figures)
        if self._is_line:
            left = timedelta(seconds=round((self._num_steps - step) / steps_per_s))
            logger.info("step %d/%d, %s left: %s", step, self._num_steps, left, figures)
