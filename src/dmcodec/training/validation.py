"""How good the codec is on held-out speakers, during training.

Every clip is encoded and decoded whole with the averaged weights. A measure that has no value for
a clip is left out of its mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object

from dmcodec.audio import Waveform
from dmcodec.codec.model import Codec
from dmcodec.data.loader import ValidationClip
from dmcodec.quality import Unmeasurable, mel_distance, pesq_wb, stoi

MEASURES = {"mel_distance": mel_distance, "stoi": stoi, "pesq_wb": pesq_wb}


@dataclass(frozen=True)
class ValidatedClip:
    """One clip's scores by measure, and both waveforms [T]."""

    utterance_id: str
    scores: dict[str, float]
    reference: Waveform
    decoded: Waveform


def validate_clips(codec: Codec, clips: Iterator[ValidationClip]) -> Iterator[ValidatedClip]:
    """Scores each clip; the codec is used as it is (call `eval()` before)."""
    sample_rate = codec.config.sample_rate
    for clip in clips:
        reference = clip.waveform[0, 0].numpy()
        decoded = codec.decode(codec.encode(clip.waveform))[0].cpu().numpy()
        scores = {}
        for name, measure in MEASURES.items():
            try:
                scores[name] = measure(reference, decoded, sample_rate)
            except Unmeasurable:
                continue
        yield ValidatedClip(clip.utterance.id, scores, reference, decoded)


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """Means over the clips of all processes, the same on every process.

    Sums are taken in a fixed order, so one process and several agree to the last bit.
    """
    everything: list[dict[str, float]] = gather_object(scores)
    means = {}
    for name in MEASURES:
        values = sorted(each[name] for each in everything if name in each)
        if values:
            means[name] = float(np.mean(values))
    return means


def is_better(measure: str, value: float, best: float | None) -> bool:
    """Whether `value` beats the best so far; of the distances less is better."""
    if best is None:
        return True
    return value < best if measure == "mel_distance" else value > best


def log_mel_image(waveform: Waveform, sample_rate: int) -> np.ndarray:
    """Log-mel spectrogram [M, L] of a waveform [T] for a look at it."""
    from dmcodec.spectral import log_mel_spectrogram

    mel = log_mel_spectrogram(
        torch.from_numpy(waveform)[None],
        sample_rate=sample_rate,
        n_fft=1024,
        hop_length=256,
        win_length=1024,
        num_mels=80,
    )
    return mel[0].numpy()
