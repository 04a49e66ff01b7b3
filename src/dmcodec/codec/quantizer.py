"""Residual vector quantizer with codebooks learned by moving averages.

Each book quantizes what the books before it left over. Codebooks follow the vectors assigned to
them (EMA), start from k-means and renew entries that fall out of use; all three see the vectors of
every process, so that several processes learn the same books as one.

Reference: Zeghidour et al. 2021, arXiv:2107.03312, sec. III-C.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dmcodec.codec.conv import length_mask
from dmcodec.codec.precision import computing_in
from dmcodec.codec.search import BookSearch
from dmcodec.codec.search_limits import check_search_width
from dmcodec.config import Record


class QuantizerConfig(Record):
    """Sizes of the quantizer and how its books are learned."""

    num_codebooks: int = Field(8, ge=1, le=255)
    codebook_size: int = Field(1024, ge=2, le=65536)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    renewal_threshold: float = Field(
        0.03, ge=0, lt=1, description="an entry used less than this share of the mean is renewed"
    )
    kmeans_iterations: int = Field(20, ge=0, le=10_000)
    kmeans_max_vectors: int = Field(
        16384, ge=1, le=1 << 22, description="bounds the memory of the start"
    )


class LatentsError(ValueError):
    """Latents that are not finite: the nearest entry to them would be the first, everywhere."""


@dataclass(frozen=True, eq=False)
class QuantizerOutput:
    """What one pass through the quantizer gives.

    quantized: sum of the code vectors [B, D, L], with the gradient of the latents.
    codes: [B, K, L] int64.
    book_outputs: K tensors [B, D, L], the code vectors of each book, each with the gradient of its
        own residual: what distillation compares with a teacher.
    commitment_loss: mean over books of the squared distance between residual and code vector.

    At or beyond an item's length the vectors are zero and the codes -1.
    """

    quantized: Tensor
    codes: Tensor
    book_outputs: tuple[Tensor, ...]
    commitment_loss: Tensor


@dataclass(frozen=True, eq=False)
class CodebookUsage:
    """Health of each book: `used` share of entries in use, and `perplexity` (at most V), [K]."""

    used: Tensor
    perplexity: Tensor


class ResidualQuantizer(nn.Module):
    """Latents [B, D, L] <-> codes [B, K, L]. Arithmetic is float32 whatever autocast says."""

    codebooks: Tensor
    cluster_sizes: Tensor
    is_started: Tensor
    num_updates: Tensor

    def __init__(self, config: QuantizerConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        books, entries = config.num_codebooks, config.codebook_size
        # Until k-means has run, any distinct entries do: an untrained codec still round-trips.
        start = torch.empty(books, entries, latent_dim)
        if not start.is_meta:  # there, drawing would load torch's compiler (3 s)
            start = torch.randn(books, entries, latent_dim) / latent_dim**0.5
        self.register_buffer("codebooks", start)
        # Moving average of how many vectors of a batch fall to each entry.
        self.register_buffer("cluster_sizes", torch.ones(books, entries))
        self.register_buffer("is_started", torch.zeros((), dtype=torch.bool))
        # Seeds the random choices of a step, so that a resumed run and every process agree.
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._search: BookSearch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the tables of the search."""
        return {**self.__dict__, "_search": None}

    def forward(
        self,
        latents: Tensor,
        lengths: Tensor | None = None,
        *,
        num_books: Tensor | None = None,
        update: bool = False,
    ) -> QuantizerOutput:
        """Quantizes with all books; `update` moves the codebooks towards what they are given.

        Frames at or beyond `lengths` [B] enter neither codebooks nor loss. Into `quantized` goes
        the sum of each item's first `num_books` [B], or of all.
        """
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents.float(), lengths, num_books, update)

    def _quantize(
        self, latents: Tensor, lengths: Tensor | None, num_books: Tensor | None, update: bool
    ) -> QuantizerOutput:
        frames = latents.transpose(1, 2)  # [B, L, D]
        mask = None if lengths is None else length_mask(lengths, frames.shape[1])
        vectors = frames.flatten(0, 1) if mask is None else frames[mask]  # [N, D]
        last_books = None
        if num_books is not None:
            each = num_books[:, None].expand(frames.shape[:2])  # [B, L]
            last_books = each.flatten() if mask is None else each[mask]  # [N]
        if update and not self.is_started:
            self._start(vectors.detach())
        residual, total = vectors, torch.zeros_like(vectors)
        outputs, codes, losses = [], [], []
        for book in range(self.config.num_codebooks):
            index = nearest_entry(residual.detach(), self.codebooks[book])  # [N]
            chosen = F.embedding(index, self.codebooks[book])  # [N, D]
            # Books learn by moving averages, so this pulls the residual to the entry only.
            losses.append(F.mse_loss(residual, chosen))
            # Straight through: the value is `chosen`, the gradient goes to the residual unchanged.
            outputs.append(residual + (chosen - residual).detach())
            codes.append(index)
            if update:
                self._update_book(book, residual.detach(), index)
            # The code vectors are constants, so the gradient of every later loss still reaches
            # the latents: all books commit, not only the first (docs/log.md). `chosen` is a copy
            # of entries as they were before the update.
            residual = residual - chosen
            total = total + _heard(chosen, book, last_books)
        if update:
            self.num_updates += 1
        quantized = vectors + (total - vectors).detach()  # straight through, as above
        shape = frames.shape[:2]  # B, L
        return QuantizerOutput(  # [N, C] -> [B, L, C] -> [B, C, L]
            _unflatten(quantized, shape, mask, 0.0).transpose(1, 2),
            _unflatten(torch.stack(codes, dim=1), shape, mask, -1).transpose(1, 2),
            tuple(_unflatten(output, shape, mask, 0.0).transpose(1, 2) for output in outputs),
            torch.stack(losses).mean(),
        )

    @torch.no_grad()
    def encode(
        self, latents: Tensor, num_codebooks: int | None = None, *, search_width: int = 1
    ) -> Tensor:
        """Codes of the first `num_codebooks` books, [B, D, L] -> [B, num_codebooks, L].

        `search_width` 1 takes the nearest entry book by book; with more, that many choices are
        followed for the nearest sum (search.py).

        Raises ValueError for books that are not there, LatentsError for latents without codes.
        """
        books = self.config.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= books <= self.config.num_codebooks:
            raise ValueError(
                f"num_codebooks is {books}; this codec has 1 to {self.config.num_codebooks}"
            )
        device = latents.device
        if not bool(torch.isfinite(latents).all()):
            raise LatentsError(
                "the encoder gave NaN or infinite values, which have no codes: the samples are far "
                "beyond full scale, or the codec's weights are damaged"
            )
        with torch.autocast(device.type, enabled=False), computing_in("float32", device):
            residual = latents.float().transpose(1, 2)  # [B, L, D]
            if check_search_width(search_width) > 1:
                search = self._book_search()
                found = search(residual.flatten(0, 1), books, search_width)  # [B L, K]
                return found.view(*residual.shape[:2], books).transpose(1, 2)
            codes = []
            for codebook in self.codebooks[:books]:
                codes.append(nearest_entry(residual, codebook))
                residual = residual - F.embedding(codes[-1], codebook)
        return torch.stack(codes, dim=1)

    def decode(
        self, codes: Tensor, first_codebook: int = 0, *, num_books: Tensor | None = None
    ) -> Tensor:
        """Sum of the code vectors, [B, K', L] -> [B, D, L].

        The K' rows are the codes of books `first_codebook`, `first_codebook` + 1, ...; any codes
        outside the book raise ValueError. With `num_books` [B] the sum is of each item's first
        so many rows.
        """
        if codes.ndim != 3:
            raise ValueError(f"codes must be [B, K, L], got shape {tuple(codes.shape)}")
        last = first_codebook + codes.shape[1]
        if first_codebook < 0 or codes.shape[1] == 0 or last > self.config.num_codebooks:
            raise ValueError(
                f"codes of books {first_codebook} to {last - 1} were given; "
                f"this codec has books 0 to {self.config.num_codebooks - 1}"
            )
        entries = self.config.codebook_size
        if codes.is_floating_point():
            raise ValueError(f"codes must be integers, got {codes.dtype}")
        codes = codes.long()
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= entries):
            raise ValueError(
                f"codes must lie in 0..{entries - 1}, got {int(codes.min())}..{int(codes.max())}"
            )
        index = codes.unbind(1)  # K' times [B, L]
        last_books = None if num_books is None else num_books[:, None]  # [B, 1]
        # The first row is in every sum: `num_books` is 1 at least.
        total = F.embedding(index[0], self.codebooks[first_codebook])  # [B, L, D]
        for book in range(1, len(index)):
            chosen = F.embedding(index[book], self.codebooks[first_codebook + book])
            total = total + _heard(chosen, book, last_books)
        return total.transpose(1, 2)

    @torch.no_grad()
    def _book_search(self) -> BookSearch:
        """The search in the books as they are; its tables are made anew for changed books."""
        if self._search is None or not self._search.is_of(self.codebooks):
            self._search = BookSearch(self.codebooks)
        return self._search

    def usage(self) -> CodebookUsage:
        """Health of the books over the recent past (the window of the moving average)."""
        share = self.cluster_sizes / self.cluster_sizes.sum(dim=1, keepdim=True)
        used = (share * self.config.codebook_size > self.config.renewal_threshold).float()
        entropy = -torch.xlogy(share, share).sum(dim=1)
        return CodebookUsage(used.mean(dim=1), entropy.exp())

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        """Starts every book with k-means on the residuals of one batch, all processes together."""
        residual = sample_rows(vectors, self.config.kmeans_max_vectors, self._generator(0))
        # k-means counts in the sample, cluster_sizes in the whole batch of all processes.
        vectors_a_row = sum(_sizes_of_all(vectors)) / len(residual)
        for book in range(self.config.num_codebooks):
            centres, counts = kmeans(
                residual,
                self.config.codebook_size,
                iterations=self.config.kmeans_iterations,
                generator=self._generator(1 + book),
            )
            if _is_distributed():
                # Sums on a GPU are not ordered; rank 0's result is everybody's.
                dist.broadcast(centres, 0)
                dist.broadcast(counts, 0)
            self.codebooks[book] = centres
            self.cluster_sizes[book] = counts * vectors_a_row
            residual = residual - F.embedding(nearest_entry(residual, centres), centres)
        self.is_started.fill_(True)

    @torch.no_grad()
    def _update_book(self, book: int, vectors: Tensor, index: Tensor) -> None:
        """Moves one book towards the vectors [N, D] assigned to its entries by index [N]."""
        codebook, sizes = self.codebooks[book], self.cluster_sizes[book]
        counts, sums = assigned_sums(vectors, index, len(codebook))
        _all_reduce(counts)
        _all_reduce(sums)
        # With moving averages n of counts and m = n c of sums, an entry c becomes m' / n', where
        # n' = decay n + gain counts and m' = decay m + gain sums. That is one step of c itself,
        #     c + gain (sums - counts c) / n'
        # so m need not be kept, and an entry without vectors stays where it is.
        gain = 1 - self.config.ema_decay
        sizes.lerp_(counts, gain)
        step = gain * (sums - counts[:, None] * codebook) / sizes.clamp(min=1e-8)[:, None]
        codebook += step
        self._renew(book, vectors)

    def _renew(self, book: int, vectors: Tensor) -> None:
        """Puts random vectors of the batch in the place of entries that fell out of use."""
        codebook, sizes = self.codebooks[book], self.cluster_sizes[book]
        mean_size = sizes.mean()
        dead = (sizes < self.config.renewal_threshold * mean_size).nonzero()[:, 0]
        # `sample_rows` waits for every process. Counts are whole numbers, summed exactly in any
        # order: all processes find the same entries dead.
        if len(dead) == 0:
            return
        # One average entry's worth of credit: time to gather vectors before being judged again.
        fresh = sample_rows(vectors, len(dead), self._generator(100 + book))
        dead = dead[: len(fresh)]
        codebook[dead] = fresh
        sizes[dead] = mean_size

    def _generator(self, purpose: int) -> torch.Generator:
        """A CPU generator that depends on the update's number and the purpose (below 1000) only."""
        return torch.Generator().manual_seed(int(self.num_updates) * 1000 + purpose)


def _heard(chosen: Tensor, book: int, num_books: Tensor | None) -> Tensor:
    """Code vectors [..., D] of a book (from 0), zero where `num_books` [...] leaves it out."""
    return chosen if num_books is None else chosen * (num_books > book)[..., None]


def nearest_entry(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest entry by Euclidean distance, [..., D] and [V, D] -> [...] int64.

    |x - c|^2 = |x|^2 - 2 x c + |c|^2, and |x|^2 is the same for all entries: one matrix product, of
    which the largest x c - |c|^2 / 2 is looked for.
    """
    flat = vectors.reshape(-1, vectors.shape[-1])  # [N, D]
    half_norms = 0.5 * codebook.square().sum(dim=1)
    products = torch.addmm(half_norms, flat, codebook.t(), beta=-1)  # [N, V]
    return _largest_of_rows(products).reshape(vectors.shape[:-1])


def _largest_of_rows(values: Tensor) -> Tensor:
    """`values.argmax(dim=1)`: on the CPU by numpy, which takes a tenth of torch's time for it."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced or values.device.type != "cpu" or values.dtype != torch.float32:
        return values.argmax(dim=1)
    return torch.from_numpy(values.detach().numpy().argmax(axis=1))


def assigned_sums(vectors: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many vectors fall to each entry, and their sums: [N, D], [N] -> [size], [size, D]."""
    # bincount would look at the largest index, and so wait for a GPU.
    counts = vectors.new_zeros(size).index_add_(0, index, vectors.new_ones(len(index)))
    sums = vectors.new_zeros(size, vectors.shape[1]).index_add_(0, index, vectors)
    return counts, sums


def kmeans(
    vectors: Tensor, size: int, *, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means, [N, D] -> centres [size, D] and counts [size].

    Memory is N x size at most. With fewer vectors than centres some centres share a vector. A
    centre that no vector is nearest to stays where it is.
    """
    # Different vectors first, then any again.
    order = torch.randperm(len(vectors), generator=generator)
    if len(vectors) < size:
        more = torch.randint(len(vectors), (size - len(vectors),), generator=generator)
        order = torch.cat([order, more])
    centres = vectors[order[:size].to(vectors.device)].clone()
    counts = torch.ones(size, device=vectors.device)
    for _ in range(iterations):
        counts, sums = assigned_sums(vectors, nearest_entry(vectors, centres), size)
        has_vectors = counts > 0
        centres[has_vectors] = sums[has_vectors] / counts[has_vectors, None]
    return centres, counts


def sample_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws up to `count` different rows from those of all processes, the same rows everywhere."""
    sizes = _sizes_of_all(rows)
    total = sum(sizes)
    offset = sum(sizes[: dist.get_rank()]) if _is_distributed() else 0
    # Numbers of rows, those of rank 0 first; what other processes hold is filled in as zeros.
    chosen = torch.randperm(total, generator=generator)[:count].to(rows.device)
    local = chosen - offset
    is_mine = (local >= 0) & (local < len(rows))
    result = rows.new_zeros(len(chosen), rows.shape[1])
    result[is_mine] = rows[local[is_mine]]
    _all_reduce(result)  # adds zeros to the owner's values: exact
    return result


def _unflatten(flat: Tensor, shape: torch.Size, mask: Tensor | None, fill: float) -> Tensor:
    """Rows [N, C] back to the frames [B, L, C] they were taken from; `fill` in the other frames."""
    if mask is None:
        return flat.reshape(*shape, -1)
    frames = flat.new_full((*shape, flat.shape[1]), fill)
    frames[mask] = flat
    return frames


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_reduce(tensor: Tensor) -> None:
    if _is_distributed():
        dist.all_reduce(tensor)


def _sizes_of_all(rows: Tensor) -> list[int]:
    """How many rows each process has, by rank."""
    if not _is_distributed():
        return [len(rows)]
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    sizes[dist.get_rank()] = len(rows)
    dist.all_reduce(sizes)
    return cast(list[int], sizes.tolist())
