"""Codes whose sum is nearer to the latents than that of greedy ones: a beam over the books.

Greedy quantization takes the entry of each book that is nearest to what is left, though another
may leave what the later books meet better. Here the `width` best choices so far go on from book to
book, the greedy one always among them: the squared error is never greater than greedy's.

With r what is left of x, |r - c|^2 = |r|^2 - 2 (<x, c> - |c|^2 / 2 - sum of <chosen, c>). <x, c> is
one matrix product for all choices of a frame, and products of two entries are looked up in
tables: on the CPU a choice costs a row of floats for each earlier book, whatever the latent size.

Reference: LeBlanc et al. 1993, IEEE Transactions on Speech and Audio Processing 1(4), sec. III
(M-search of multi-stage books). The greedy choice that always stays, and the tables, are ours.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dmcodec.codec.search_limits import choose_group_size, count_block_frames, fits_tables
from dmcodec.codec.threads import in_threads


class BookSearch:
    """The search in codebooks, with tables that are made when they are first used."""

    def __init__(self, codebooks: Tensor) -> None:
        """Takes float32 codebooks [K, V, D], and copies them."""
        self.codebooks = codebooks.clone()
        num_books, self.size, _ = codebooks.shape
        self.half_norms = 0.5 * codebooks.square().sum(dim=2)  # [K, V]
        self.has_tables = codebooks.device.type == "cpu" and fits_tables(num_books, self.size)
        self._tables: dict[int, Tensor] = {}
        self._group_size = choose_group_size(self.size)

    def __call__(self, vectors: Tensor, num_books: int, width: int) -> Tensor:
        """Codes of the first `num_books` books, [N, D] -> [N, num_books].

        They are the best for the sum of these books: with a width above 1 not the first columns of
        the codes of more. Where `width` leaves nothing out, no codes are nearer. Frames do not see
        each other. Memory: the tables, and a few blocks of `search_limits.BLOCK_FLOATS` a thread.
        """
        blocks = vectors.split(count_block_frames(width, self.size))  # type: ignore[no-untyped-call]
        search = partial(self._search_block, num_books=num_books, width=width)
        if vectors.device.type == "cpu":
            for book in range(1, num_books):
                self._table(book)  # before the threads would each make it
            return torch.cat(in_threads(search, blocks))
        return torch.cat([search(block) for block in blocks])

    def is_of(self, codebooks: Tensor) -> bool:
        """Whether these are the codebooks it has, however they were written to."""
        is_here = self.codebooks.device == codebooks.device
        return is_here and torch.equal(self.codebooks, codebooks)

    def _search_block(self, x: Tensor, num_books: int, width: int) -> Tensor:
        """As `__call__` of vectors that fit the memory together."""
        # Of each choice: (|x|^2 - |r|^2) / 2, and its entries as rows of all books together.
        gains = x.new_zeros(len(x), 1)
        rows = torch.zeros(len(x), 1, 0, dtype=torch.int64, device=x.device)  # [N, H, book]
        for book in range(num_books):
            added = self._added_gains(x, rows, book)  # [N, H, V]
            gains, choice, entry = keep_best(gains, added, width, self._group_size)  # [N, H'] each
            before = rows.gather(1, choice[..., None].expand(-1, -1, book))  # [N, H', book]
            rows = torch.cat([before, (entry + book * self.size)[..., None]], dim=2)
        # Of each frame the best choice, [N, 1, K], and its entries as numbers in their books again.
        best = gains.argmax(dim=1)[:, None, None].expand(-1, 1, num_books)
        firsts = torch.arange(0, num_books * self.size, self.size, device=x.device)
        return rows.gather(1, best)[:, 0] - firsts

    def _added_gains(self, x: Tensor, rows: Tensor, book: int) -> Tensor:
        """What each entry of a book would add to the gain of each choice so far, [N, H, V]."""
        codebook = self.codebooks[book]
        alone = torch.addmm(self.half_norms[book], x, codebook.t(), beta=-1)[:, None]  # [N, 1, V]
        if book == 0:
            return alone
        # <what was chosen so far, entry>, negative: rows of the table added up, or a product.
        table = self._table(book)
        chosen = rows.view(-1, book)  # [N H, book]
        if table is not None:
            overlap = F.embedding_bag(chosen, table, mode="sum")  # [N H, V]
        else:
            total = F.embedding_bag(chosen, self.codebooks.flatten(0, 1), mode="sum")  # [N H, D]
            overlap = (total @ codebook.t()).neg_()
        return overlap.view(*rows.shape[:2], self.size).add_(alone)

    def _table(self, book: int) -> Tensor | None:
        """-<entry of an earlier book, entry of this book>, [book * V, V]; None without tables."""
        if not self.has_tables:
            return None
        if book not in self._tables:
            earlier = self.codebooks[:book].flatten(0, 1)
            self._tables[book] = (earlier @ self.codebooks[book].t()).neg_()
        return self._tables[book]


def keep_best(
    gains: Tensor, added: Tensor, width: int, group_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `width` best of all choices with all entries, the first choice's best entry first.

    Args:
        gains: [N, H] of the choices so far.
        added: [N, H, V] by each entry.
        width: how many stay; all when there are fewer.
        group_size: divides V. The best `width` entries are in the `width` groups with the best
            maxima, so that only these are looked at one by one.

    Returns:
        New gains, the choices they come from and their entries, [N, min(width, H * V)] each.
    """
    num_frames, num_choices, size = added.shape
    num_groups = size // group_size
    maxima = added.view(num_frames, num_choices, num_groups, group_size).amax(dim=3)
    maxima = maxima.add_(gains[..., None]).flatten(1)  # [N, H * num_groups]
    # Infinite gains put the greedy choice in front of all others: here the group that it is in,
    # among those of the first choice, and below the entry.
    greedy = maxima[:, :num_groups].argmax(dim=1, keepdim=True)
    maxima.scatter_(1, greedy, torch.inf)
    groups = maxima.topk(min(width, maxima.shape[1])).indices  # [N, G]
    # Their members are rows of one list, that of the groups of all frames.
    first = torch.arange(0, num_frames * maxima.shape[1], maxima.shape[1], device=added.device)
    members = F.embedding(groups + first[:, None], added.view(-1, group_size))  # [N, G, group_size]
    members += gains.gather(1, groups // num_groups)[..., None]
    greedy_gain, greedy = members[:, 0].max(dim=1, keepdim=True)
    members[:, 0].scatter_(1, greedy, torch.inf)
    new_gains, place = members.flatten(1).topk(min(width, num_choices * size))
    new_gains[:, :1] = greedy_gain
    # From the place among the members to the number among the frame's H * V.
    found = groups.gather(1, place // group_size) * group_size + place % group_size
    return new_gains, found // size, found % size
