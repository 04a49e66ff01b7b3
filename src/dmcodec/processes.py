"""The processes and threads that work: how many are sensible, and that none outlives its parent."""

import os
from multiprocessing import parent_process
from threading import Thread

MAX_WORKERS = max(64, 2 * (os.cpu_count() or 1))
"""Processes or threads of one kind. Far more than the processors wait for each other without end,
or end the process: OpenMP has no bound of its own."""


def check_count(what: str, count: int | None) -> int | None:
    """The number as it is; ValueError, naming it, when it is not 1 to `MAX_WORKERS`."""
    if count is not None and not 1 <= count <= MAX_WORKERS:
        raise ValueError(
            f"{what} is {count}; this machine has {os.cpu_count()} processors: give 1 to "
            f"{MAX_WORKERS}"
        )
    return count


def end_with_parent() -> None:
    """Makes this worker process end as soon as the process that started it is gone.

    Workers wait for work at a pipe that they hold open themselves: when their parent is killed
    they would wait for ever, with their models in memory.
    """
    if parent_process() is not None:
        Thread(target=_wait_for_parent, name="end with parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
