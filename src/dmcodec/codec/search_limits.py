"""What bounds a search over the books, with torch (search.py) or numpy (export/); no torch here."""

from math import isqrt
from numbers import Integral

MAX_SEARCH_WIDTH = 4096
"""Bounds the memory: one frame holds so many times V floats."""

MAX_TABLE_BYTES = 1 << 28
"""Larger tables (8 books of 1024 have 117 MB) are not made; matrix products do instead."""

MAX_BLOCK_FRAMES = 256
"""More frames at a time gain nothing (measured, docs/log.md)."""

BLOCK_FLOATS = 1 << 21
"""Values of (frame, choice, entry) that are worked on at a time: 8 MB, still in caches."""


def check_search_width(search_width: int) -> int:
    """The width itself; ValueError for one that is no whole number from 1 to the largest."""
    if not isinstance(search_width, Integral) or not 1 <= search_width <= MAX_SEARCH_WIDTH:
        raise ValueError(
            f"search_width is {search_width!r}; give the number of choices to keep, from 1 "
            f"(greedy) to {MAX_SEARCH_WIDTH}"
        )
    return search_width


def count_block_frames(width: int, size: int) -> int:
    """Frames that are worked on at a time, for a width and entries of a book."""
    return min(MAX_BLOCK_FRAMES, max(1, BLOCK_FLOATS // (width * size)))


def choose_group_size(size: int) -> int:
    """Members of a group of entries: divides V, so that there are about as many groups."""
    return next(n for n in range(isqrt(size), 0, -1) if size % n == 0)


def fits_tables(num_books: int, size: int) -> bool:
    """Whether the tables of products of all pairs of books are made."""
    num_pairs = num_books * (num_books - 1) // 2
    return 4 * num_pairs * size**2 <= MAX_TABLE_BYTES
