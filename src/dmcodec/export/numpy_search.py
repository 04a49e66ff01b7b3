"""The search of codec/search.py in numpy, for exported codecs.

What is searched for, and why tables of products, is said there.
"""

import numpy as np
from numpy.typing import NDArray

from dmcodec.codec.search_limits import choose_group_size, count_block_frames, fits_tables

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class BookSearch:
    """The search in codebooks [K, V, D]; tables are made when they are first used."""

    def __init__(self, codebooks: Floats) -> None:
        self.codebooks = codebooks
        num_books, self.size, _ = codebooks.shape
        self.half_norms = 0.5 * np.square(codebooks).sum(axis=2)  # [K, V]
        self.has_tables = fits_tables(num_books, self.size)
        self._tables: dict[int, Floats] = {}
        self._group_size = choose_group_size(self.size)

    def __call__(self, vectors: Floats, num_books: int, width: int) -> Indices:
        """Codes of the first `num_books` books, [N, D] -> [N, num_books], as `codec.search`."""
        frames = count_block_frames(width, self.size)
        blocks = [
            self._search_block(vectors[start : start + frames], num_books, width)
            for start in range(0, len(vectors), frames)
        ]
        return np.concatenate(blocks)

    def _search_block(self, x: Floats, num_books: int, width: int) -> Indices:
        gains = np.zeros((len(x), 1), np.float32)
        codes = np.zeros((len(x), 1, 0), np.int64)  # [N, H, book]
        for book in range(num_books):
            added = self._added_gains(x, codes, book)
            gains, choice, entry = self._keep_best(gains, added, width)
            before = np.take_along_axis(codes, choice[..., None], axis=1)
            codes = np.concatenate([before, entry[..., None]], axis=2)
        found: Indices = codes[np.arange(len(x)), gains.argmax(axis=1)]
        return found

    def _added_gains(self, x: Floats, codes: Indices, book: int) -> Floats:
        """What each entry of a book would add to the gain of each choice so far, [N, H, V]."""
        codebook = self.codebooks[book]
        alone = (x @ codebook.T - self.half_norms[book])[:, None]  # [N, 1, V]
        if book == 0:
            return alone
        tables = self._table(book) if self.has_tables else self.codebooks
        total = tables[0].take(codes[..., 0], axis=0)
        for earlier in range(1, book):
            total += tables[earlier].take(codes[..., earlier], axis=0)
        overlap = total if self.has_tables else total @ codebook.T
        added: Floats = np.subtract(alone, overlap, out=overlap)
        return added

    def _table(self, book: int) -> Floats:
        """<entry of an earlier book, entry of this book>, [book, V, V]."""
        if book not in self._tables:
            self._tables[book] = self.codebooks[:book] @ self.codebooks[book].T
        return self._tables[book]

    def _keep_best(
        self, gains: Floats, added: Floats, width: int
    ) -> tuple[Floats, Indices, Indices]:
        """See `codec.search.keep_best`."""
        num_frames, _, size = added.shape
        frames = np.arange(num_frames)
        groups = added.reshape(num_frames, -1, self._group_size)  # [N, groups of all choices, size]
        num_groups = size // self._group_size
        maxima = groups.max(axis=2) + np.repeat(gains, num_groups, axis=1)
        maxima[frames, maxima[:, :num_groups].argmax(axis=1)] = np.inf
        best = _largest(maxima, width)  # [N, G]
        members = groups[frames[:, None], best]  # [N, G, size]
        members += np.take_along_axis(gains, best // num_groups, axis=1)[..., None]
        greedy = members[:, 0].argmax(axis=1)
        greedy_gains = members[frames, 0, greedy]
        members[frames, 0, greedy] = np.inf
        members = members.reshape(num_frames, -1)
        place = _largest(members, width)
        new_gains = np.take_along_axis(members, place, axis=1)
        new_gains[:, 0] = greedy_gains
        found = np.take_along_axis(best, place // self._group_size, axis=1) * self._group_size
        found += place % self._group_size
        return new_gains, found // size, found % size


def _largest(values: Floats, count: int) -> Indices:
    """Where the `count` largest of each row are (all, when there are fewer), the largest first."""
    if count < values.shape[1]:
        found = np.argpartition(values, -count, axis=1)[:, -count:]
    else:
        found = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.argsort(-np.take_along_axis(values, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
