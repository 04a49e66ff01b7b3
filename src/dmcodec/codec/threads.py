"""Work shared by the processor's cores: a piece for each, not one product for all."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results in order, computed on as many threads as torch has, each of one thread inside.

    A piece for each core scales better than every matrix product of a piece shared by all cores.
    torch has one number of threads for threads to come: one that first uses torch while this runs
    gets a single thread for itself.
    """
    items = list(items)
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(items) == 1:
        return [function(item) for item in items]

    def run(item: Item) -> Result:
        with torch.no_grad():  # a thread has a mode of its own
            return function(item)

    try:
        with ThreadPoolExecutor(min(num_threads, len(items)), initializer=_use_one_thread) as pool:
            return list(pool.map(run, items))
    finally:
        torch.set_num_threads(num_threads)  # threads to come begin with the last number set


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # from now on this thread's own number
