"""Search over the books: exact where nothing is left out, never worse than greedy, in numpy too."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.codec.test_quantizer import LargestTensor
from tests.codec.test_streaming import make_codec as make_causal_codec
from torch import Tensor

from dmcodec.codec import search as search_module
from dmcodec.codec import search_limits
from dmcodec.codec.long import encode_long
from dmcodec.codec.quantizer import QuantizerConfig, ResidualQuantizer
from dmcodec.codec.streaming import StreamEncoder, StreamState
from dmcodec.export.numpy_search import BookSearch as NumpySearch
from dmcodec.export.windows import encode_windows


def make_quantizer(
    num_codebooks: int, codebook_size: int, latent_dim: int, seed: int = 0
) -> ResidualQuantizer:
    """Books whose entries shrink from book to book, as trained ones do."""
    config = QuantizerConfig(num_codebooks=num_codebooks, codebook_size=codebook_size)
    quantizer = ResidualQuantizer(config, latent_dim)
    generator = torch.Generator().manual_seed(seed)
    scales = 0.7 ** torch.arange(num_codebooks)[:, None, None]
    quantizer.codebooks.copy_(scales * torch.randn(quantizer.codebooks.shape, generator=generator))
    return quantizer


def make_latents(num_frames: int, latent_dim: int, seed: int = 1) -> Tensor:
    return torch.randn(1, latent_dim, num_frames, generator=torch.Generator().manual_seed(seed))


def squared_errors(quantizer: ResidualQuantizer, latents: Tensor, codes: Tensor) -> Tensor:
    """Of each frame, in float64: [B, L]."""
    books = quantizer.codebooks.double()
    total = sum(books[k][codes[:, k]] for k in range(codes.shape[1]))  # [B, L, D]
    return (latents.double().transpose(1, 2) - total).square().sum(dim=2)


def followed_one_by_one(quantizer: ResidualQuantizer, x: Tensor, width: int) -> list[int]:
    """The search for one vector, written out with float64 distances."""
    choices: list[tuple[int, ...]] = [()]
    books = quantizer.codebooks.double()
    size = quantizer.config.codebook_size

    def error(codes: tuple[int, ...]) -> float:
        total = sum((books[k][code] for k, code in enumerate(codes)), torch.zeros_like(books[0, 0]))
        return float((x.double() - total).square().sum())

    for _ in range(len(books)):
        greedy = min(((*choices[0], code) for code in range(size)), key=error)
        longer = [(*choice, code) for choice in choices for code in range(size)]
        others = sorted((codes for codes in longer if codes != greedy), key=error)
        choices = [greedy, *others[: width - 1]]
    return list(min(choices, key=error))


@pytest.mark.parametrize(("num_codebooks", "codebook_size"), [(3, 6), (4, 5), (2, 16), (1, 7)])
def test_search_that_leaves_nothing_out_is_exhaustive(
    num_codebooks: int, codebook_size: int
) -> None:
    quantizer = make_quantizer(num_codebooks, codebook_size, 4)
    latents = make_latents(50, 4)
    every = torch.tensor(list(itertools.product(range(codebook_size), repeat=num_codebooks)))
    sums = sum(quantizer.codebooks[k][every[:, k]] for k in range(num_codebooks))
    expected = every[torch.cdist(latents[0].t().double(), sums.double()).argmin(dim=1)]

    codes = quantizer.encode(latents, search_width=codebook_size ** (num_codebooks - 1))

    assert torch.equal(codes[0].t(), expected)


@pytest.mark.parametrize("width", [2, 3, 5, 16])
@pytest.mark.parametrize("codebook_size", [16, 13])  # groups of 4, and a prime: of 1
def test_search_follows_the_best_choices_and_the_greedy_one(width: int, codebook_size: int) -> None:
    quantizer = make_quantizer(4, codebook_size, 3)
    latents = make_latents(40, 3)

    codes = quantizer.encode(latents, search_width=width)[0].t().tolist()

    assert codes == [followed_one_by_one(quantizer, x, width) for x in latents[0].t()]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(2, 40),
    num_codebooks=st.integers(1, 5),
    codebook_size=st.integers(2, 40),
    latent_dim=st.integers(1, 12),
    scale=st.floats(0.01, 100),
)
@example(seed=792, width=21, num_codebooks=5, codebook_size=39, latent_dim=1, scale=1.25)
def test_squared_error_never_exceeds_that_of_greedy_codes(
    seed: int, width: int, num_codebooks: int, codebook_size: int, latent_dim: int, scale: float
) -> None:
    quantizer = make_quantizer(num_codebooks, codebook_size, latent_dim, seed)
    quantizer.codebooks.mul_(scale)
    latents = scale * make_latents(30, latent_dim, seed + 1)
    greedy = quantizer.encode(latents)

    codes = quantizer.encode(latents, search_width=width)

    # float32 sums of another order: as exact as what is added, of which entries may be the larger.
    norms = [each.double().square().sum(dim=-1) for each in (latents.mT, quantizer.codebooks)]
    allowed = 1e-5 * norms[0] + 1e-6 * norms[1].max()
    errors, of_greedy = (squared_errors(quantizer, latents, c) for c in (codes, greedy))
    assert (errors <= of_greedy + allowed).all()
    assert codes.min() >= 0
    assert codes.max() < codebook_size


def test_a_beam_without_the_greedy_choice_would_be_worse_here() -> None:
    """Two choices better than greedy's after book 1 both end worse: why greedy's always stays."""
    quantizer = make_quantizer(3, 3, 1)
    # 0 is nearest to 1; then -0.5 is to be met, but a lure of book 2 brings 3 and 2.9 nearer.
    quantizer.codebooks.copy_(
        torch.tensor([[[1.0], [3.0], [2.9]], [[0.4], [-2.9], [-2.8]], [[-1.4], [9.0], [8.0]]])
    )
    latents = torch.zeros(1, 1, 1)

    assert quantizer.encode(latents)[0, :, 0].tolist() == [0, 0, 0]
    assert quantizer.encode(latents, search_width=2)[0, :, 0].tolist() == [0, 0, 0]


def test_width_one_is_greedy() -> None:
    quantizer, latents = make_quantizer(4, 16, 3), make_latents(50, 3)

    assert torch.equal(quantizer.encode(latents, search_width=1), quantizer.encode(latents))
    assert not torch.equal(quantizer.encode(latents, search_width=8), quantizer.encode(latents))


@pytest.mark.parametrize("width", [2, 7])
def test_frames_do_not_see_each_other(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, latents = make_quantizer(4, 16, 8), make_latents(53, 8)
    whole = quantizer.encode(latents, search_width=width)

    alone = [quantizer.encode(x, search_width=width) for x in latents.split(1, dim=2)]
    batch = quantizer.encode(torch.cat([latents, latents.flip(2)]), search_width=width)
    monkeypatch.setattr(search_module, "count_block_frames", lambda width, size: 5)
    torch.set_num_threads(2)  # the next test sets one again
    in_blocks = quantizer.encode(latents, search_width=width)

    assert torch.equal(torch.cat(alone, dim=2), whole)
    assert torch.equal(batch, torch.cat([whole, whole.flip(2)]))
    assert torch.equal(in_blocks, whole)


def test_products_and_tables_give_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, latents = make_quantizer(4, 16, 8), make_latents(50, 8)
    with_tables = quantizer.encode(latents, search_width=4)

    monkeypatch.setattr(search_limits, "MAX_TABLE_BYTES", 4 * 6 * 16**2 - 1)
    copy = make_quantizer(4, 16, 8)

    assert torch.equal(copy.encode(latents, search_width=4), with_tables)
    assert quantizer._search.has_tables
    assert not copy._search.has_tables


@pytest.mark.parametrize("width", [2, 5, 64])
@pytest.mark.parametrize("has_tables", [True, False])
@pytest.mark.parametrize("codebook_size", [16, 13])
def test_numpy_gives_the_codes_of_torch(
    width: int, has_tables: bool, codebook_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer, latents = make_quantizer(4, codebook_size, 8), make_latents(50, 8)
    expected = quantizer.encode(latents, 3, search_width=width)[0].t().numpy()
    search = NumpySearch(quantizer.codebooks.numpy())
    search.has_tables = has_tables
    monkeypatch.setattr(search_limits, "MAX_BLOCK_FRAMES", 7)

    codes = search(latents[0].t().numpy(), 3, width)

    np.testing.assert_array_equal(codes, expected)


def test_changed_books_are_searched_as_they_are() -> None:
    quantizer, latents = make_quantizer(4, 16, 8), make_latents(50, 8)
    quantizer.encode(latents, search_width=4)

    quantizer.codebooks.copy_(make_quantizer(4, 16, 8, seed=5).codebooks)

    fresh = make_quantizer(4, 16, 8, seed=5)
    expected = fresh.encode(latents, search_width=4)
    assert torch.equal(quantizer.encode(latents, search_width=4), expected)


def test_memory_does_not_grow_with_the_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, width = make_quantizer(3, 16, 8), 8
    monkeypatch.setattr(search_limits, "BLOCK_FLOATS", 4 * width * 16)
    quantizer.encode(make_latents(1, 8), search_width=width)  # makes the tables

    with LargestTensor() as largest:
        quantizer.encode(make_latents(500, 8), search_width=width)

    assert largest.num_elements == 500 * 8  # the latents themselves


@pytest.mark.parametrize("width", [0, -1, 4097, 2.0, "16"])
def test_widths_that_are_none_are_refused(width: object) -> None:
    with pytest.raises(ValueError, match=rf"search_width is {width!r}; .* from 1 \(greedy\)"):
        make_quantizer(2, 4, 3).encode(torch.zeros(1, 3, 2), search_width=width)


def test_no_frames_have_no_codes() -> None:
    assert make_quantizer(2, 4, 3).encode(torch.zeros(1, 3, 0), search_width=4).shape == (1, 2, 0)


def test_every_way_of_encoding_searches_alike(codec, generator) -> None:
    waveforms = [0.1 * torch.randn(n, generator=generator) for n in (7000, 320, 4001)]
    alone = [codec.encode(w, search_width=6).item(0) for w in waveforms]
    latents = codec.encoder(waveforms[0][None, None])

    together = codec.encode(waveforms, search_width=6)
    first_two = codec.encode(waveforms[0], num_codebooks=2, search_width=6).item(0)
    pieces, _ = encode_long(codec, [waveforms[0]], search_width=6, chunk_frames=5)
    windows = encode_windows(
        lambda part: codec.encode(part, search_width=6).codes[0],
        [waveforms[0].numpy()],
        hop_length=codec.config.hop_length,
        window_frames=9,
        context_frames=30,
    )

    for row, codes in enumerate(alone):
        assert torch.equal(together.item(row), codes)
    assert torch.equal(pieces, alone[0])
    assert torch.equal(torch.cat(list(windows), dim=1), alone[0])
    assert torch.equal(first_two, codec.quantizer.encode(latents, 2, search_width=6)[0])
    assert not torch.equal(alone[0], codec.encode(waveforms[0]).item(0))


def test_streams_search_as_the_whole_does(generator) -> None:
    codec = make_causal_codec()
    waveform = 0.1 * torch.randn(10 * 320, generator=generator)
    encoder, state, found = StreamEncoder(codec, search_width=6), StreamState(), []

    for chunk in waveform.split(500):
        (codes,), (state,) = encoder.push([chunk], [state])
        found.append(codes)

    assert torch.equal(torch.cat(found, dim=1), codec.encode(waveform, search_width=6).codes[0])
