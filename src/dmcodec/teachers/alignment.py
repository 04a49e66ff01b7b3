"""Time: words and teacher frames brought onto the codec's frames.

Plain arithmetic on numpy arrays; which models give words and vectors is decided elsewhere. All
times are samples at `TIME_RATE`, fractions allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

TIME_RATE = 16_000

Alignment = Literal["words", "padded", "mean", "cls", "shuffled"]
Features = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


class AlignmentError(ValueError):
    """A text that cannot be laid over its recording."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word as it is written, and when it is spoken: samples [start, end).

    Both are -1 for a word whose time is not known: it counts as context and fills no frame.
    """

    text: str
    start_samples: float = -1.0
    end_samples: float = -1.0

    @property
    def is_timed(self) -> bool:
        """Whether it is known when the word is spoken."""
        return self.start_samples >= 0


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """Where frames lie in time: frame i has its centre at first_centre_samples + i * hop_samples.

    A codec frame covers the samples [i * hop, (i + 1) * hop): `first_centre_samples` is half a hop.
    A stack of convolutions without padding has half its receptive field there: wav2vec 2.0 and
    HuBERT (hop 320, field 400) have 200, so their frames lie 40 samples (2.5 ms) after those of a
    codec of the same rate, and 3 s give 149 frames where the codec has 150.
    """

    hop_samples: float
    first_centre_samples: float

    def centres(self, num_frames: int) -> npt.NDArray[np.float64]:
        """Times of the first `num_frames` frames, [L]."""
        return self.first_centre_samples + self.hop_samples * np.arange(
            num_frames, dtype=np.float64
        )


@dataclass(frozen=True, slots=True)
class FeatureTrack:
    """Features of one utterance, frame by frame, without repeating those that last.

    rows: [R, H], the different vectors.
    frame_rows: [L] int32, which row each frame has; -1 where the teacher has nothing to say.
    """

    rows: Features
    frame_rows: npt.NDArray[np.int32]

    @property
    def mask(self) -> Mask:
        """[L], True where there is a vector."""
        return self.frame_rows >= 0

    def dense(self) -> Features:
        """[L, H], zero where masked."""
        values = np.zeros((len(self.frame_rows), self.rows.shape[1]), dtype=self.rows.dtype)
        values[self.mask] = self.rows[self.frame_rows[self.mask]]
        return values


def codec_grid(sample_rate: int, hop_length: int) -> FrameGrid:
    """The grid of a codec's frames."""
    hop_samples = hop_length * TIME_RATE / sample_rate
    return FrameGrid(hop_samples, hop_samples / 2)


def convolution_grid(kernels: Sequence[int], strides: Sequence[int]) -> FrameGrid:
    """The grid of convolutions without padding, one after the other, on a waveform at TIME_RATE."""
    field, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return FrameGrid(hop, field / 2)


def convolution_frames(num_samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """How many frames such convolutions give; 0 for less than one receptive field."""
    length = num_samples
    for kernel, stride in zip(kernels, strides, strict=True):
        length = max(0, (length - kernel) // stride + 1)
    return length


def align_words(
    words: Sequence[Word], vectors: Features, grid: FrameGrid, num_frames: int
) -> FeatureTrack:
    """Each word's vector on the frames whose centre lies inside the word; the rest is masked.

    A word that falls between two centres gets the frame that its middle lies in, unless another
    word has it. Where words overlap, the later one counts. Words beyond the end are left out.

    Args:
        words: in the order of their starts.
        vectors: [U, H], one row for each word.
        grid: of the codec.
        num_frames: L.
    """
    if vectors.ndim != 2 or len(vectors) != len(words):
        raise ValueError(f"{len(words)} words need vectors [U, H], got {list(vectors.shape)}")
    frame_rows = np.full(num_frames, -1, dtype=np.int32)
    centres = grid.centres(num_frames)
    between: list[tuple[int, int]] = []
    for row, word in enumerate(words):
        if not word.is_timed:
            continue
        start, stop = np.searchsorted(centres, [word.start_samples, word.end_samples])
        if start < stop:
            frame_rows[start:stop] = row
        else:
            middle = (word.start_samples + word.end_samples) / 2
            first_edge = grid.first_centre_samples - grid.hop_samples / 2
            between.append((row, int((middle - first_edge) // grid.hop_samples)))
    for row, frame in between:
        if 0 <= frame < num_frames and frame_rows[frame] < 0:
            frame_rows[frame] = row
    return FeatureTrack(vectors, frame_rows)


def constant_track(vector: Features, num_frames: int) -> FeatureTrack:
    """One vector [H] on every frame."""
    return FeatureTrack(vector[None], np.zeros(num_frames, dtype=np.int32))


def token_track(tokens: Features, num_frames: int) -> FeatureTrack:
    """Token i [U, H] on frame i, as the released code does; the last token is held to the end.

    Reference: Ahasan et al. 2024, arXiv:2410.15017 (code). For comparison only: speech and tokens
    do not run at the same speed.
    """
    return FeatureTrack(tokens, np.minimum(np.arange(num_frames), len(tokens) - 1).astype(np.int32))


def masked_track(num_frames: int, feature_dim: int) -> FeatureTrack:
    """An utterance about which the teacher has nothing to say."""
    return FeatureTrack(
        np.zeros((0, feature_dim), dtype=np.float32), np.full(num_frames, -1, dtype=np.int32)
    )


def shuffle_vectors(vectors: Features, seed: int) -> Features:
    """The vectors [U, H] in another order: right vectors at wrong times, as a control.

    With two or more words no word keeps its own vector.
    """
    order = np.random.default_rng(seed).permutation(len(vectors))
    shuffled = np.empty_like(vectors)
    shuffled[order] = vectors[np.roll(order, 1)]
    return shuffled


def interpolation_table(
    num_source: int, source: FrameGrid, target: FrameGrid, num_frames: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], Mask]:
    """How frames of one grid are made from `num_source` >= 1 frames of another.

    Gives for each of the `num_frames` target frames the source frame at or before its centre, the
    share of the next one, and whether it is close enough to be used: target frames before the
    first or after the last source centre hold that frame's vector when they are at most one
    source hop away, and are masked beyond.
    """
    last = num_source - 1
    position = (target.centres(num_frames) - source.first_centre_samples) / source.hop_samples
    is_near = (position >= -1) & (position <= last + 1)
    position = position.clip(0, last)
    left = np.floor(position).astype(np.int64)
    return left, (position - left).astype(np.float32), is_near


def resample_features(
    features: Features, source: FrameGrid, target: FrameGrid, num_frames: int
) -> FeatureTrack:
    """Features [L', H] of one grid on the frames of another: see `interpolation_table`."""
    if features.ndim != 2:
        raise ValueError(f"features must be [L, H], got {list(features.shape)}")
    if len(features) == 0:
        return masked_track(num_frames, features.shape[1])
    left, share, is_near = interpolation_table(len(features), source, target, num_frames)
    left, weights = left[is_near], share[is_near, None]
    right = np.minimum(left + 1, len(features) - 1)
    rows = (1 - weights) * features[left] + weights * features[right]
    frame_rows = np.full(num_frames, -1, dtype=np.int32)
    frame_rows[is_near] = np.arange(len(rows), dtype=np.int32)
    return FeatureTrack(rows, frame_rows)


def close_gaps(words: Sequence[Word], max_gap_samples: float) -> list[Word]:
    """Words that follow each other within `max_gap_samples` meet in the middle of the gap.

    CTC models emit a symbol at one moment of it, so that their words end too early and begin too
    late; longer gaps are silence and stay.
    """
    starts = [word.start_samples for word in words]
    ends = [word.end_samples for word in words]
    for index in range(len(words) - 1):
        if not (words[index].is_timed and words[index + 1].is_timed):
            continue
        gap = starts[index + 1] - ends[index]
        if 0 < gap <= max_gap_samples:
            ends[index] = starts[index + 1] = ends[index] + gap / 2
    return [
        Word(word.text, start, end) for word, start, end in zip(words, starts, ends, strict=True)
    ]
