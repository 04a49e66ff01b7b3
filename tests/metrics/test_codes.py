import numpy as np
import pytest

from dmcodec.metrics.codes import (
    bigram_perplexity,
    book_statistics,
    entropy_bits,
    phone_information,
)
from dmcodec.metrics.phones import NOT_SPEECH, label_frames
from dmcodec.pretrained.sphinx import SpokenPhone


def test_entropy_by_hand() -> None:
    assert entropy_bits(np.array([1, 1, 2, 0])) == pytest.approx(1.5)
    assert entropy_bits(np.array([7])) == 0.0


def test_statistics_of_books_by_hand() -> None:
    first = np.array([[0, 1, 2, 3], [0, 0, 0, 0]])
    second = np.array([[0, 1, 2, 3, 0, 1], [0, 0, 0, 0, 1, 1]])

    full, lazy = book_statistics([first, second], codebook_size=4)

    assert (full.usage, lazy.usage) == (1.0, 0.5)
    counts = np.array([3, 3, 2, 2]) / 10
    assert full.entropy_bits == pytest.approx(-(counts * np.log2(counts)).sum())
    assert full.perplexity == pytest.approx(2**full.entropy_bits)
    assert full.saved == pytest.approx(1 - full.entropy_bits / 2)
    assert lazy.entropy_bits == pytest.approx(0.7219, abs=1e-4)  # of 8 to 2


def test_random_sequence_has_a_perplexity_near_the_size_of_its_book() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 8, 4_000) for _ in range(4)]

    assert bigram_perplexity(sequences, 8) == pytest.approx(8, rel=0.02)


def test_predictable_sequence_has_a_perplexity_near_one() -> None:
    sequences = [np.arange(start, start + 800) % 16 for start in (0, 5, 9, 3)]

    assert bigram_perplexity(sequences, 16) < 1.1


def test_bigram_perplexity_of_two_codes_by_hand() -> None:
    """Trained on 0 0 1: unigram (3, 2) / 5 of two entries with one added; contexts of 0: 0 and 1.

    The test sequence 0 1 costs 3/5, then (1 + 2 * 2/5) / (2 + 2); both halves are alike.
    """
    sequences = [np.array([0, 0, 1]), np.array([0, 0, 1])]

    probabilities = [3 / 5, (1 + 2 * 3 / 5) / 4, (1 + 2 * 2 / 5) / 4]

    expected = np.prod(probabilities) ** (-1 / 3)
    assert bigram_perplexity(sequences, 2) == pytest.approx(expected)


def test_codes_that_name_the_phone_hold_all_its_information() -> None:
    phones = np.random.default_rng(0).integers(0, 5, 2_000)

    result = phone_information(7 * phones + 3, phones, np.random.default_rng(1))

    assert result.share == pytest.approx(1.0)
    assert result.chance < 0.02


def test_codes_without_relation_hold_no_more_than_chance() -> None:
    rng = np.random.default_rng(0)

    result = phone_information(rng.integers(0, 50, 3_000), rng.integers(0, 5, 3_000), rng)

    assert result.share == pytest.approx(result.chance, abs=0.01)


def test_frames_get_the_phone_at_their_middle() -> None:
    phones = [
        SpokenPhone("SIL", 0, 4),
        SpokenPhone("AH", 4, 3),
        SpokenPhone("T", 7, 2),
        SpokenPhone("+SPN+", 9, 9),
    ]
    inventory: dict[str, int] = {}

    labels = label_frames(phones, inventory, frame_rate=50.0, num_frames=6)

    # Middles at 1, 3, 5, 7, 9, 11 of 10 ms.
    assert labels.tolist() == [NOT_SPEECH, NOT_SPEECH, 0, 1, NOT_SPEECH, NOT_SPEECH]
    assert inventory == {"AH": 0, "T": 1}


def test_phones_of_a_known_sentence_are_found(speech: np.ndarray) -> None:
    pytest.importorskip("pocketsphinx", reason="pip install 'dmcodec[eval]'")
    from dmcodec.metrics.measure import Unmeasurable
    from dmcodec.metrics.phones import PhoneAligner, dump_phones, load_phones

    aligner = PhoneAligner()
    text = "The army found the people in poverty and left them in comparative wealth."
    phones = aligner.align(speech, 16_000, text)

    assert [p.name for p in phones if p.name != "SIL"][2:6] == ["AA", "R", "M", "IY"]
    assert phones[-1].start + phones[-1].num_frames == pytest.approx(len(speech) / 160, abs=4)
    assert load_phones(dump_phones(phones)) == phones
    with pytest.raises(Unmeasurable, match="xyzzy"):
        aligner.align(speech, 16_000, "the xyzzy")


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two clips"):
        bigram_perplexity([np.array([1, 2])], 4)
    with pytest.raises(ValueError, match="codes and phones"):
        phone_information(np.zeros(3, int), np.zeros(2, int), np.random.default_rng(0))
