"""Where the work is done: fresh processes of one thread each, or this process."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from dmcodec.processes import end_with_parent

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@contextmanager
def open_executor(num_processes: int, prepare: Callable[[], None]) -> Iterator[Executor]:
    """An executor of `num_processes` fresh processes; 0: this process.

    Work that waits is dropped when the block is left early.

    Args:
        num_processes: how many work at once.
        prepare: called once in each of them; must be picklable.
    """
    if num_processes == 0:
        prepare()
        yield HereExecutor()
        return
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)  # numpy and torch read it when a process first imports them
    executor = ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=_start, initargs=(prepare,)
    )
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(prepare: Callable[[], None]) -> None:
    end_with_parent()
    prepare()


class HereExecutor(Executor):
    """An executor that does the work at once, in this process: for tests and debugging."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """The finished future of a call."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as problem:  # as the executors of the standard library do
            future.set_exception(problem)
        return future
