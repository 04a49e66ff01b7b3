"""What the codes of a codec hold: use of the books, entropy, and how predictable they are.

Functions of codes only; which sounds they stand for is known where phone labels are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmcodec.metrics.measure import Group

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BookStatistics:
    """One book over all clips.

    usage: share of entries that occur. perplexity: 2 to the entropy, at most V. entropy_bits: of
    one code by itself. saved: share of the bits that an ideal coder of single codes would save.
    bigram_perplexity: see `bigram_perplexity`; None with fewer than two clips.
    """

    usage: float
    perplexity: float
    entropy_bits: float
    saved: float
    bigram_perplexity: float | None


def book_statistics(clips: Sequence[Codes], codebook_size: int) -> list[BookStatistics]:
    """Statistics of each book of clips with codes [K, L_i].

    Entropies are of the counts themselves (maximum likelihood): too low while frames are few, so
    compare systems on the same clips only.
    """
    if not clips or codebook_size < 2:
        raise ValueError("needs at least one clip and a book of at least two entries")
    results = []
    for book in range(len(clips[0])):
        sequences = [clip[book] for clip in clips]
        counts = np.bincount(np.concatenate(sequences), minlength=codebook_size)
        entropy = entropy_bits(counts)
        results.append(
            BookStatistics(
                usage=float(np.count_nonzero(counts) / codebook_size),
                perplexity=2**entropy,
                entropy_bits=entropy,
                saved=1 - entropy / float(np.log2(codebook_size)),
                bigram_perplexity=bigram_perplexity(sequences, codebook_size)
                if len(sequences) > 1
                else None,
            )
        )
    return results


def entropy_bits(counts: NDArray[np.integer] | Floats) -> float:
    """Entropy of a table of counts of any shape, bits; 0 for an empty one."""
    total = counts.sum()
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(-(shares * np.log2(shares)).sum())


def bigram_perplexity(sequences: Sequence[NDArray[np.int64]], codebook_size: int) -> float:
    """Perplexity of one book's codes under a bigram model trained on the other half.

    Clips with even and odd numbers take turns as training and test set. The bigram is smoothed
    with the unigram by Witten and Bell's rule, the unigram with one added count an entry. Small
    data make it high; it says how systems differ on the same clips, and bounds what a language
    model has to learn.

    Args:
        sequences: codes [L_i] of at least two clips.
        codebook_size: V; a book of which nothing can be predicted has perplexity V.

    Reference: Witten and Bell 1991, doi:10.1109/18.87000.
    """
    if len(sequences) < 2:
        raise ValueError("needs at least two clips: one to train on, one to test")
    bits, num_codes = 0.0, 0
    for parity in (0, 1):
        train = [s for n, s in enumerate(sequences) if n % 2 == parity]
        test = [s for n, s in enumerate(sequences) if n % 2 != parity]
        bits += _bigram_bits(train, test, codebook_size)
        num_codes += sum(len(each) for each in test)
    return float(2 ** (bits / num_codes))


def _bigram_bits(
    train: Sequence[NDArray[np.int64]], test: Sequence[NDArray[np.int64]], size: int
) -> float:
    """Bits that the test clips need under the training clips' bigrams."""
    unigrams = np.bincount(np.concatenate(train), minlength=size) + 1.0
    unigrams /= unigrams.sum()
    pairs = np.concatenate([s[:-1] * size + s[1:] for s in train])
    pair_codes, pair_counts = np.unique(pairs, return_counts=True)
    contexts = np.bincount(pair_codes // size, weights=pair_counts, minlength=size)
    kinds = np.bincount(pair_codes // size, minlength=size).astype(np.float64)
    bits = 0.0
    for sequence in test:
        before, after = sequence[:-1], sequence[1:]
        place = np.searchsorted(pair_codes, before * size + after)
        place = np.minimum(place, len(pair_codes) - 1)
        is_seen = len(pair_codes) > 0 and pair_codes[place] == before * size + after
        seen = np.where(is_seen, pair_counts[place] if len(pair_codes) else 0, 0)
        # A context that never occurred leaves everything to the unigram.
        novel = np.where(contexts[before] > 0, kinds[before], 1.0)
        probability = (seen + novel * unigrams[after]) / (contexts[before] + novel)
        bits -= float(np.log2(unigrams[sequence[0]]) + np.log2(probability).sum())
    return bits


@dataclass(frozen=True)
class PhoneInformation:
    """How much one book says about the phone being spoken.

    share: mutual information of code and phone over the entropy of phones, 0 to 1. chance: the
    same with codes of shuffled frames, which is not 0 because the frames are few.
    """

    share: float
    chance: float
    num_frames: int


def phone_information(
    codes: NDArray[np.int64], phones: NDArray[np.int64], rng: np.random.Generator
) -> PhoneInformation:
    """Phone-normalized mutual information of codes [N] and phone labels [N], frame by frame.

    Reference: Hsu et al. 2021, arXiv:2106.07447, sec. IV-C (PNMI).
    """
    if codes.shape != phones.shape or codes.ndim != 1 or not len(codes):
        raise ValueError(f"needs [N] codes and phones, got {codes.shape} and {phones.shape}")
    return PhoneInformation(
        _information_share(codes, phones),
        _information_share(rng.permutation(codes), phones),
        len(codes),
    )


def _information_share(codes: NDArray[np.int64], phones: NDArray[np.int64]) -> float:
    size = int(codes.max()) + 1
    in_phones = entropy_bits(np.bincount(phones))
    if in_phones == 0:
        return 0.0
    jointly = entropy_bits(np.bincount(phones * size + codes))
    return (in_phones + entropy_bits(np.bincount(codes)) - jointly) / in_phones


CODES = Group("codes", ())
"""Statistics of whole systems, which have tables of their own."""
