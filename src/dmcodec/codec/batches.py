"""Items of many lengths in padded batches of the plain network; fast.py needs none.

A batch of many lengths computes its padding too, and its LSTM is packed. Where there is enough for
a GPU to do, items of like length come together.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BUSY_FRAMES = 5000
"""Frames in a batch, padding included, that keep a GPU busy (chosen, not measured)."""

LEAST_FILL = 0.8
"""In a batch that is busy the shortest item has this much of the longest one's length."""


def in_batches(
    function: Callable[[list[Tensor]], list[Tensor]], items: list[Tensor], busy_size: int
) -> list[Tensor]:
    """What `function` makes of items [..., L_i], in their order, given those of like length."""
    results: dict[int, Tensor] = {}
    for numbers in similar_lengths([item.shape[-1] for item in items], busy_size):
        made = function([items[number] for number in numbers])
        results |= zip(numbers, made, strict=True)
    return [results[number] for number in range(len(items))]


def similar_lengths(sizes: Sequence[int], busy_size: int) -> list[list[int]]:
    """Which items share a batch, the longest first.

    A batch that is not yet `busy_size` (its items times the longest) takes whatever comes: steps
    of an LSTM follow each other, so a further batch would cost more than the padding.
    """
    batches: list[list[int]] = []
    longest = 0
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        is_busy = bool(batches) and len(batches[-1]) * longest >= busy_size
        if not batches or (is_busy and sizes[number] < LEAST_FILL * longest):
            batches.append([])
            longest = sizes[number]
        batches[-1].append(number)
    return batches


def stack_padded(items: list[Tensor]) -> Tensor:
    """Items [..., L_i] as one tensor [B, ..., max L], zero beyond each item's end."""
    longest = max(item.shape[-1] for item in items)
    return torch.stack([F.pad(item, (0, longest - item.shape[-1])) for item in items])
