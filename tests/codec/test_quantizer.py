import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from dmcodec.codec import quantizer as quantizer_module
from dmcodec.codec.quantizer import (
    QuantizerConfig,
    ResidualQuantizer,
    assigned_sums,
    kmeans,
    nearest_entry,
    sample_rows,
)


def make_quantizer(num_codebooks=3, codebook_size=8, latent_dim=4, **changes):
    config = QuantizerConfig(num_codebooks=num_codebooks, codebook_size=codebook_size, **changes)
    return ResidualQuantizer(config, latent_dim)


def residuals_and_chosen(quantizer, latents, codes):
    """What each book was given and what it chose, [B, L, D] each, written out."""
    residual = latents.transpose(1, 2)
    pairs = []
    for book in range(codes.shape[1]):
        chosen = quantizer.codebooks[book][codes[:, book]]
        pairs.append((residual, chosen))
        residual = residual - chosen
    return pairs


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_nearest_entry_is_the_nearest_by_all_distances(generator):
    vectors = torch.randn(5, 40, 6, generator=generator)
    codebook = torch.randn(32, 6, generator=generator)

    expected = torch.cdist(vectors, codebook[None].expand(5, -1, -1)).argmin(dim=-1)

    assert torch.equal(nearest_entry(vectors, codebook), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equally_near_entries_the_first_is_taken(generator, dtype):
    codebook = torch.randn(40, 6, generator=generator, dtype=dtype)
    codebook[30] = codebook[12]

    index = nearest_entry(codebook[[30, 12, 5]].requires_grad_(), codebook)

    assert index.tolist() == [12, 12, 5]
    assert index.dtype == torch.int64


def test_assigned_sums_by_hand():
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])

    counts, sums = assigned_sums(vectors, torch.tensor([2, 0, 2]), 4)

    assert counts.tolist() == [1, 0, 2, 0]
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]


def test_kmeans_finds_separate_groups(generator):
    groups = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, 0.0]])
    vectors = groups.repeat(20, 1) + 0.1 * torch.randn(60, 2, generator=generator)
    seed = torch.Generator().manual_seed(3)  # starts with one vector of each group

    centres, counts = kmeans(vectors, 3, iterations=10, generator=seed)

    assert counts.tolist() == [20, 20, 20]
    expected = torch.stack([vectors[group::3].mean(dim=0) for group in range(3)])
    order = torch.cdist(groups, centres).argmin(dim=1)
    torch.testing.assert_close(centres[order], expected)


def test_kmeans_with_few_vectors_uses_each(generator):
    vectors = torch.randn(3, 2, generator=generator)

    centres, _ = kmeans(vectors, 8, iterations=5, generator=generator)

    assert torch.cdist(vectors, centres).min(dim=1).values.max() == 0
    assert torch.cdist(centres, vectors).min(dim=1).values.max() == 0


def test_kmeans_never_holds_all_differences(generator):
    num_vectors, size, latent_dim = 512, 64, 32
    vectors = torch.randn(num_vectors, latent_dim, generator=generator)

    with LargestTensor() as largest:
        kmeans(vectors, size, iterations=2, generator=generator)

    assert largest.num_elements == num_vectors * size


def test_start_draws_no_more_vectors_than_its_bound(generator, monkeypatch):
    seen = []

    def counting(vectors, *args, **kwargs):
        seen.append(len(vectors))
        return kmeans(vectors, *args, **kwargs)

    monkeypatch.setattr(quantizer_module, "kmeans", counting)
    quantizer = make_quantizer(kmeans_max_vectors=50)

    quantizer(torch.randn(4, 4, 100, generator=generator), update=True)

    assert seen == [50, 50, 50]


def test_start_counts_the_whole_batch_though_it_draws_some(generator):
    quantizer = make_quantizer(kmeans_max_vectors=50)

    quantizer(torch.randn(4, 4, 100, generator=generator), update=True)

    # The first step then averages 400 with 400.
    torch.testing.assert_close(quantizer.cluster_sizes.sum(dim=1), torch.full((3,), 400.0))


def test_start_fits_the_batch_better_than_chance(generator):
    latents = 5 + torch.randn(4, 4, 100, generator=generator)
    started, unstarted = make_quantizer(), make_quantizer()
    started(latents, update=True)

    assert started(latents).commitment_loss < 0.05 * unstarted(latents).commitment_loss


def test_codes_are_of_the_nearest_entries_of_what_is_left(generator):
    quantizer = make_quantizer()
    latents = torch.randn(2, 4, 9, generator=generator)

    output = quantizer(latents)

    for book, (residual, _) in enumerate(residuals_and_chosen(quantizer, latents, output.codes)):
        codebook = quantizer.codebooks[book][None].expand(2, -1, -1)
        expected = torch.cdist(residual, codebook).argmin(dim=-1)
        assert torch.equal(output.codes[:, book], expected)
    assert torch.equal(quantizer.encode(latents), output.codes)
    assert torch.equal(quantizer.encode(latents, 2), output.codes[:, :2])


def test_quantized_is_the_decoded_sum_of_the_books(generator):
    quantizer = make_quantizer()

    output = quantizer(torch.randn(2, 4, 9, generator=generator))

    decoded = quantizer.decode(output.codes)
    torch.testing.assert_close(output.quantized, decoded, rtol=0, atol=1e-6)
    torch.testing.assert_close(sum(output.book_outputs), decoded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, torch.tensor([9, 4])])
def test_items_are_the_sums_of_as_many_books_as_they_are_given(generator, lengths):
    quantizer = make_quantizer()
    latents = torch.randn(2, 4, 9, generator=generator)
    few = torch.tensor([1, 2])

    output = quantizer(latents, lengths, num_books=few)

    whole = quantizer(latents, lengths)
    assert torch.equal(output.codes, whole.codes)
    assert output.commitment_loss == whole.commitment_loss
    for item, count in enumerate(few.tolist()):
        length = 9 if lengths is None else int(lengths[item])
        codes = output.codes[item : item + 1, :, :length]
        expected = quantizer.decode(codes[:, :count])[0]
        heard = quantizer.decode(codes, num_books=few[item : item + 1])[0]
        assert torch.equal(heard, expected)
        quantized = output.quantized[item, :, :length]
        torch.testing.assert_close(quantized, expected, rtol=0, atol=1e-6)


def test_mean_of_all_book_outputs_is_the_mean_of_the_books(generator):
    quantizer = make_quantizer()

    output = quantizer(torch.randn(2, 4, 9, generator=generator))

    books = [quantizer.decode(output.codes[:, k : k + 1], first_codebook=k) for k in range(3)]
    mean = torch.stack(output.book_outputs).mean(dim=0)
    torch.testing.assert_close(mean, torch.stack(books).mean(dim=0), rtol=0, atol=1e-6)
    assert not torch.allclose(mean, books[0], atol=0.1)


def test_every_book_commits(generator):
    quantizer = make_quantizer()
    latents = torch.randn(2, 4, 9, generator=generator, requires_grad=True)
    output = quantizer(latents)

    (gradient,) = torch.autograd.grad(output.commitment_loss, latents)

    pairs = residuals_and_chosen(quantizer, latents.detach(), output.codes)
    expected_loss = sum((r - c).square().mean() for r, c in pairs) / 3
    parts = [(2 * (r - c) / r.numel() / 3).transpose(1, 2) for r, c in pairs]
    torch.testing.assert_close(output.commitment_loss.detach(), expected_loss)
    torch.testing.assert_close(gradient, sum(parts))
    assert all(bool(part.abs().max() > 1e-3) for part in parts)


def test_gradient_goes_straight_through_quantized_and_every_book(generator):
    quantizer = make_quantizer()
    latents = torch.randn(2, 4, 9, generator=generator, requires_grad=True)
    output = quantizer(latents)
    weights = torch.randn(2, 4, 9, generator=generator)

    for result in (output.quantized, *output.book_outputs):
        (gradient,) = torch.autograd.grad((result * weights).sum(), latents, retain_graph=True)
        torch.testing.assert_close(gradient, weights)


def test_pass_without_update_leaves_the_books_alone(generator):
    quantizer = make_quantizer().train()
    quantizer(torch.randn(2, 4, 9, generator=generator), update=True)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}

    quantizer(torch.randn(2, 4, 9, generator=generator))
    quantizer.encode(torch.randn(2, 4, 9, generator=generator))

    after = quantizer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_one_pass_is_one_update(generator):
    quantizer = make_quantizer()
    for step in range(3):
        assert quantizer.num_updates == step
        quantizer(torch.randn(2, 4, 9, generator=generator), update=True)


def test_moving_average_by_hand():
    quantizer = make_quantizer(1, 2, 1, ema_decay=0.75, renewal_threshold=0.0)
    quantizer.codebooks[0] = torch.tensor([[0.0], [10.0]])
    quantizer.cluster_sizes[0] = torch.tensor([4.0, 4.0])
    quantizer.is_started.fill_(True)

    quantizer(torch.tensor([[[1.0, 3.0, 8.0]]]), update=True)

    # Three quarters of 4 and a quarter of 2 or 1 vectors; of the sums 0 and 40, and 4 or 8.
    torch.testing.assert_close(quantizer.cluster_sizes[0], torch.tensor([3.5, 3.25]))
    expected = torch.tensor([[1.0 / 3.5], [32.0 / 3.25]])
    torch.testing.assert_close(quantizer.codebooks[0], expected)


def test_entry_without_vectors_stays_where_it_is():
    quantizer = make_quantizer(1, 2, 1, renewal_threshold=0.0)
    quantizer.codebooks[0] = torch.tensor([[0.0], [100.0]])
    quantizer.cluster_sizes[0, 1] = 0.0
    quantizer.is_started.fill_(True)

    for _ in range(10):
        quantizer(torch.tensor([[[1.0]]]), update=True)

    assert float(quantizer.codebooks[0, 1]) == 100.0


def test_first_step_keeps_the_mean_norm_of_the_codes(generator):
    latents = 3 * torch.randn(4, 4, 200, generator=generator)
    quantizer = make_quantizer(3, 16)
    quantizer._start(latents.transpose(1, 2).flatten(0, 1))  # as the first update begins
    before = quantizer.codebooks.norm(dim=-1).mean(dim=1)

    quantizer(latents, update=True)

    after = quantizer.codebooks.norm(dim=-1).mean(dim=1)
    torch.testing.assert_close(after, before, rtol=2e-3, atol=0)


def test_dead_entry_comes_alive_and_stays(generator):
    quantizer = make_quantizer(1, 8)
    quantizer(torch.randn(4, 4, 50, generator=generator), update=True)
    quantizer.codebooks[0, 5] = 1e3
    quantizer.cluster_sizes[0, 5] = 0.0

    sizes = []
    for _ in range(300):
        quantizer(torch.randn(4, 4, 50, generator=generator), update=True)
        sizes.append(float(quantizer.cluster_sizes[0, 5]))
    codes = quantizer(torch.randn(4, 4, 50, generator=generator)).codes

    assert float(quantizer.codebooks[0, 5].norm()) < 10
    assert min(sizes) > 0.2 * 200 / 8  # never near death again
    assert bool((codes == 5).any())


def test_renewed_entry_is_a_vector_of_the_batch(generator):
    quantizer = make_quantizer(1, 8)
    quantizer(torch.randn(4, 4, 50, generator=generator), update=True)
    quantizer.cluster_sizes[0, 2:4] = 0.0
    latents = torch.randn(4, 4, 50, generator=generator)

    quantizer(latents, update=True)

    vectors = latents.transpose(1, 2).flatten(0, 1)
    is_vector = (quantizer.codebooks[0][:, None] == vectors).all(dim=-1).any(dim=1)
    assert is_vector.nonzero()[:, 0].tolist() == [2, 3]


def test_rarely_used_entries_are_not_renewed():
    # 64 entries, 4 vectors a step: each entry is used once in 16 steps, and is none the worse.
    quantizer = make_quantizer(1, 64)
    quantizer.codebooks[0] = torch.arange(256.0).reshape(64, 4)
    quantizer.cluster_sizes.fill_(4 / 64)
    quantizer.is_started.fill_(True)
    entries = quantizer.codebooks[0].clone()

    for step in range(64):
        first = 4 * (step % 16)
        quantizer(entries[first : first + 4].t()[None], update=True)

    torch.testing.assert_close(quantizer.codebooks[0], entries, rtol=0, atol=1e-3)


def test_frames_beyond_an_item_enter_nothing(generator):
    lengths = torch.tensor([9, 4])
    latents = torch.randn(2, 4, 9, generator=generator)
    outputs, states = [], []
    for beyond in (0.0, 1e6, float("nan")):
        given = latents.clone()
        given[1, :, 4:] = beyond
        quantizer = make_quantizer()
        for _ in range(3):
            output = quantizer(given, lengths, update=True)
        outputs.append(output)
        states.append(quantizer.state_dict())

    for output, state in zip(outputs[1:], states[1:], strict=True):
        assert all(torch.equal(state[name], value) for name, value in states[0].items())
        assert torch.equal(output.codes, outputs[0].codes)
        assert torch.equal(output.commitment_loss, outputs[0].commitment_loss)
        assert torch.equal(output.quantized, outputs[0].quantized)
    assert outputs[0].codes[1, :, 4:].unique().tolist() == [-1]
    assert not outputs[0].quantized[1, :, 4:].any()


def test_masked_batch_gives_the_codes_and_loss_of_its_items(generator):
    quantizer = make_quantizer()
    latents = torch.randn(2, 4, 9, generator=generator)

    together = quantizer(latents, torch.tensor([9, 4]))
    alone = [quantizer(latents[:1]), quantizer(latents[1:, :, :4])]

    assert torch.equal(together.codes[0], alone[0].codes[0])
    assert torch.equal(together.codes[1, :, :4], alone[1].codes[0])
    for book, output in enumerate(together.book_outputs):
        torch.testing.assert_close(output[1, :, :4], alone[1].book_outputs[book][0])
    loss = (9 * alone[0].commitment_loss + 4 * alone[1].commitment_loss) / 13
    torch.testing.assert_close(together.commitment_loss, loss)


def test_inside_autocast_everything_is_float32(generator):
    latents = torch.randn(2, 4, 9, generator=generator)
    plain, cast = make_quantizer(), make_quantizer()
    cast.load_state_dict(plain.state_dict())

    expected = plain(latents, update=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = cast(latents, update=True)
        codes = cast.encode(latents)

    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.quantized, expected.quantized)
    assert torch.equal(output.commitment_loss, expected.commitment_loss)
    assert torch.equal(codes, plain.encode(latents))
    assert torch.equal(cast.codebooks, plain.codebooks)


def test_half_precision_latents_are_quantized_in_float32(generator):
    quantizer = make_quantizer()
    latents = torch.randn(2, 4, 9, generator=generator).bfloat16()

    output = quantizer(latents)

    assert torch.equal(output.quantized, quantizer(latents.float()).quantized)
    assert torch.equal(quantizer.encode(latents), output.codes)


def test_usage_and_perplexity_by_hand():
    quantizer = make_quantizer(3, 4)
    quantizer.cluster_sizes.copy_(
        torch.tensor([[2.0, 2, 2, 2], [8.0, 0, 0, 0], [4.0, 4.0, 0.08, 0.01]])
    )

    usage = quantizer.usage()

    # In the third book the least used has 0.5 % of the mean use, the next 4 %.
    assert usage.used.tolist() == [1.0, 0.25, 0.75]
    torch.testing.assert_close(usage.perplexity[:2], torch.tensor([4.0, 1.0]))
    assert float(usage.perplexity[2]) == pytest.approx(2.118, abs=1e-3)


def test_decoding_a_range_of_books_sums_those_books(generator):
    quantizer = make_quantizer()
    codes = quantizer.encode(torch.randn(2, 4, 9, generator=generator))

    decoded = quantizer.decode(codes[:, 1:], first_codebook=1)

    expected = quantizer.codebooks[1][codes[:, 1]] + quantizer.codebooks[2][codes[:, 2]]
    assert torch.equal(decoded, expected.transpose(1, 2))
    # 16-bit codes, as files hold them, are codes too.
    assert torch.equal(quantizer.decode(codes.to(torch.uint16)), quantizer.decode(codes))


@pytest.mark.parametrize(
    ("shape", "first", "message"),
    [
        ((2, 4, 9), 0, "books 0 to 3 were given; this codec has books 0 to 2"),
        ((2, 2, 9), 2, "books 2 to 3"),
        ((2, 1, 9), -1, "books -1 to -1"),
        ((2, 0, 9), 0, "books 0 to -1"),
        ((3, 9), 0, r"\[B, K, L\], got shape \(3, 9\)"),
    ],
)
def test_books_that_do_not_exist_cannot_be_decoded(shape, first, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer().decode(torch.zeros(shape, dtype=torch.int64), first)


@pytest.mark.parametrize(("code", "message"), [(8, r"0\.\.7, got 0\.\.8"), (-1, r"got -1\.\.0")])
def test_codes_outside_the_book_cannot_be_decoded(code, message):
    codes = torch.zeros(1, 3, 5, dtype=torch.int64)
    codes[0, 1, 2] = code
    with pytest.raises(ValueError, match=message):
        make_quantizer().decode(codes)


def test_codes_that_are_no_integers_cannot_be_decoded():
    with pytest.raises(ValueError, match=r"integers, got torch\.float32"):
        make_quantizer().decode(torch.zeros(1, 3, 5))


@pytest.mark.parametrize("num_codebooks", [0, 4, -1])
def test_number_of_books_to_encode_with_must_exist(num_codebooks):
    with pytest.raises(ValueError, match=f"num_codebooks is {num_codebooks}; .* 1 to 3"):
        make_quantizer().encode(torch.zeros(1, 4, 5), num_codebooks)


def test_sampled_rows_are_different_and_at_most_all(generator):
    rows = torch.arange(20.0)[:, None]

    some, all_rows = sample_rows(rows, 5, generator), sample_rows(rows, 50, generator)

    assert len(some.unique()) == 5
    assert all_rows[:, 0].sort().values.tolist() == list(range(20))


def test_two_processes_learn_the_same_books_as_one(tmp_path):
    script = Path(__file__).with_name("quantizer_process.py")
    processes = [
        subprocess.Popen([sys.executable, str(script), str(rank), "2", str(tmp_path)])
        for rank in range(2)
    ]
    alone = runpy.run_path(str(script))["train"](slice(None))
    assert [process.wait(timeout=120) for process in processes] == [0, 0]

    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))

    assert first.keys() == second.keys() == alone.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        # Sums over two processes are added in another order than over one.
        torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-5, msg=name)
    moved = (first["3.codebooks"] - first["2.codebooks"]).norm(dim=-1)  # by renewal: far
    assert float(moved[:, 3:6].min()) > 5 * float(moved[:, 6:].max())
