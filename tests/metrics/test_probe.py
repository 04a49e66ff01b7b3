"""The probe on made-up speech: phones as noisy vectors that last a few frames."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dmcodec.codec.quantizer import QuantizerConfig, ResidualQuantizer
from dmcodec.evaluation.content import phone_error_rate
from dmcodec.metrics import probe as probe_module
from dmcodec.metrics.probe import PhoneProbe, SpokenVectors, fill_up, phone_errors, train_probe

PHONES = ("AA", "B", "IY", "K", "S", "T")


def speak(count: int, noise: float, seed: int) -> list[SpokenVectors]:
    """Recordings of 12 phones, each its own vector [8] for 3 to 6 frames, with noise."""
    means = np.random.default_rng(99).normal(size=(len(PHONES), 8))
    rng = np.random.default_rng(seed)
    recordings = []
    for _ in range(count):
        spoken = rng.integers(0, len(PHONES), 12)
        frames = means[np.repeat(spoken, rng.integers(3, 7, 12))]
        vectors = frames + noise * rng.normal(size=frames.shape)
        phones = tuple(PHONES[number] for number in spoken)
        recordings.append(SpokenVectors(torch.from_numpy(vectors).float(), phones))
    return recordings


def error_rate(train: Sequence[SpokenVectors], held_out: Sequence[SpokenVectors]) -> float:
    return phone_error_rate(phone_errors(train_probe(train), held_out)).value


def quantized(
    recordings: Sequence[SpokenVectors], quantizer: ResidualQuantizer, first: int, stop: int
) -> list[SpokenVectors]:
    """The same recordings as code vectors of books first..stop-1."""
    results = []
    for each in recordings:
        codes = quantizer.encode(each.vectors.t()[None])[:, first:stop]  # [1, K, L]
        results.append(SpokenVectors(quantizer.decode(codes, first)[0].t(), each.phones))
    return results


def shuffled(recordings: Sequence[SpokenVectors]) -> list[SpokenVectors]:
    return [
        SpokenVectors(each.vectors[torch.randperm(len(each.vectors))], each.phones)
        for each in recordings
    ]


@pytest.fixture(autouse=True)
def _short_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe in small: what is made up here is learned in seconds."""
    monkeypatch.setattr(probe_module, "_NUM_STEPS", 90)
    monkeypatch.setattr(probe_module, "_BATCH_FRAMES", 350)
    monkeypatch.setattr(probe_module, "_CHANNELS", 32)


@pytest.fixture(scope="module")
def quantizer() -> ResidualQuantizer:
    """Four books of 8 entries, fitted to the training recordings."""
    config = QuantizerConfig(num_codebooks=4, codebook_size=8)
    quantizer = ResidualQuantizer(config, latent_dim=8)
    frames = torch.cat([each.vectors for each in speak(60, 0.5, seed=1)])
    quantizer(frames.t()[None], update=True)
    return quantizer


def test_codes_are_told_from_shuffled_codes_and_the_first_book_from_the_last(
    quantizer: ResidualQuantizer,
) -> None:
    train, held_out = speak(60, 0.5, seed=1), speak(20, 0.5, seed=2)

    def rate(first: int, stop: int) -> float:
        return error_rate(*(quantized(r, quantizer, first, stop) for r in (train, held_out)))

    whole, first, last = rate(0, 4), rate(0, 1), rate(3, 4)
    by_chance = error_rate(*(shuffled(quantized(r, quantizer, 0, 4)) for r in (train, held_out)))

    assert whole < 0.2  # 0.15 measured; by chance 0.7
    assert whole - 0.05 < first < 0.3
    assert last > 0.6
    assert by_chance > 0.6


def test_same_seed_gives_the_same_probe_and_leaves_the_random_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe_module, "_NUM_STEPS", 5)
    train, held_out = speak(10, 0.5, seed=1), speak(3, 0.5, seed=2)
    state = torch.get_rng_state()

    first, again, other = (train_probe(train, seed=seed) for seed in (5, 5, 6))

    assert torch.equal(torch.get_rng_state(), state)
    assert phone_errors(first, held_out) == phone_errors(again, held_out)
    assert torch.equal(first.leave.weight, again.leave.weight)
    assert not torch.equal(first.leave.weight, other.leave.weight)


def test_padding_changes_nothing_that_is_heard() -> None:
    probe = PhoneProbe(PHONES, torch.zeros(8), torch.ones(8)).eval()
    short, long = torch.randn(11, 8), torch.randn(40, 8)
    padded = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    padded[0, 11:] = 100.0

    together = probe(padded, torch.tensor([11, 40]))

    torch.testing.assert_close(together[0, :11], probe(short[None], torch.tensor([11]))[0])
    torch.testing.assert_close(together[1], probe(long[None], torch.tensor([40]))[0])


def test_repeats_are_merged_and_blanks_part_them() -> None:
    probe = PhoneProbe(("AA", "B"), torch.zeros(1), torch.ones(1)).eval()
    best = torch.tensor([0, 1, 1, 0, 1, 2, 2, 0, 0])
    probe.forward = lambda vectors, lengths: torch.eye(3)[best][None]  # type: ignore[method-assign]

    assert probe.recognize(torch.zeros(9, 1)) == ("AA", "AA", "B")


def test_frames_of_slow_codecs_are_repeated_and_others_are_not() -> None:
    vectors = torch.arange(3.0)[:, None]

    assert fill_up(vectors, 12.5)[:, 0].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    assert torch.equal(fill_up(vectors, 50.0), vectors)


def test_error_rate_is_pooled_over_recordings_with_an_interval() -> None:
    class Deaf(PhoneProbe):
        def recognize(self, vectors: Tensor) -> tuple[str, ...]:
            return ("AA",)

    probe = Deaf(PHONES, torch.zeros(1), torch.ones(1))
    frame = torch.zeros(1, 1)
    errors = phone_errors(
        probe,
        [SpokenVectors(frame, ("AA",)), SpokenVectors(frame, ("B", "AA", "K"))],
    )

    estimate = phone_error_rate(errors)

    assert [each.errors for each in errors] == [0, 2]
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == (0.0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("vectors", "phones", "message"),
    [
        (torch.zeros(5), ("AA",), r"must be \[L, D\], got \(5,\)"),
        (torch.zeros(0, 8), ("AA",), r"got \(0, 8\)"),
        (torch.zeros(5, 8), (), "without phones"),
    ],
)
def test_wrong_recordings_are_refused(
    vectors: Tensor, phones: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SpokenVectors(vectors, phones)


def test_vectors_of_two_sizes_are_refused() -> None:
    both = [SpokenVectors(torch.zeros(5, size), ("AA",)) for size in (4, 8)]
    with pytest.raises(ValueError, match="all with vectors of one size"):
        train_probe(both)
