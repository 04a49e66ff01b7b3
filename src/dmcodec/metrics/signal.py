"""Distances between two waveforms that no kept package defines: our own arithmetic, no model.

All take waveforms [T] of equal length at one sample rate. Nothing is aligned in time, and no level
is adjusted, unless the measure itself is defined so.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from dmcodec.audio import SAMPLE_RATE, Waveform
from dmcodec.metrics.measure import (
    Group,
    Measure,
    Original,
    Outcomes,
    Unmeasurable,
    attempt,
    check_pair,
)
from dmcodec.spectral import Mel, log_mel_spectrogram, stft

SI_SDR_LIMIT_DB = 100.0
"""SI-SDR is kept within plus and minus this, so that identical and silent signals have means."""

_STFT_SIZES = ((512, 128), (1024, 256), (2048, 512))
_MAGNITUDE_FLOOR = 1e-5
_NUM_CEPSTRA = 13
_MAX_DELAY_S = 0.1


def log_mel(waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
    """Log-mel spectrogram [M, L] of a waveform [T]: what `mel_distance` compares and plots show.

    80 mels, 1024-sample window, hop 256, natural logarithm.
    """
    return _log_mels(torch.from_numpy(waveform)[None], sample_rate)[0].numpy()


def _log_mels(waveforms: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """[B, T] to [B, M, L]."""
    return log_mel_spectrogram(waveforms, Mel(sample_rate=sample_rate, n_fft=1024, num_mels=80))


def mel_distance(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Mean absolute difference of the `log_mel` of two waveforms [T] of the same length."""
    check_pair(reference, estimate)
    difference = log_mel(reference, sample_rate) - log_mel(estimate, sample_rate)
    return float(np.abs(difference).mean(dtype=np.float64))


def si_sdr(reference: Waveform, estimate: Waveform) -> float:
    """Scale-invariant signal-to-distortion ratio, dB, within plus and minus `SI_SDR_LIMIT_DB`.

    Means are removed first. An estimate that holds nothing of the reference, such as silence,
    gets the lower limit. A delay of one sample already costs much. Unmeasurable for a reference
    without energy.

    Reference: Le Roux et al. 2019, arXiv:1811.02508, eq. 3; the limits are ours.
    """
    check_pair(reference, estimate)
    target = reference.astype(np.float64) - reference.mean(dtype=np.float64)
    other = estimate.astype(np.float64) - estimate.mean(dtype=np.float64)
    energy = float(target @ target)
    if energy == 0:
        raise Unmeasurable("SI-SDR: the reference is silent")
    projected = target * (float(other @ target) / energy)
    kept, lost = float(projected @ projected), float(((other - projected) ** 2).sum())
    if kept == 0:
        return -SI_SDR_LIMIT_DB
    if lost == 0:
        return SI_SDR_LIMIT_DB
    decibels = 10 * math.log10(kept / lost)
    return max(-SI_SDR_LIMIT_DB, min(SI_SDR_LIMIT_DB, decibels))


def stft_distance(reference: Waveform, estimate: Waveform) -> float:
    """Mean absolute difference of natural-log STFT magnitudes, averaged over three resolutions.

    Windows of 512, 1024 and 2048 samples, hops of a quarter; magnitudes below 1e-5 count as 1e-5.
    Reference: Yamamoto et al. 2020, arXiv:1910.11480, eq. 5 (its magnitude term alone).
    """
    check_pair(reference, estimate)
    pair = torch.from_numpy(np.stack([reference, estimate]))  # [2, T]
    distances = []
    for n_fft, hop_length in _STFT_SIZES:
        magnitudes = stft(pair, n_fft, hop_length, n_fft).abs().clamp(min=_MAGNITUDE_FLOOR)
        logs = magnitudes.log()  # [2, F, L]
        distances.append(float((logs[0] - logs[1]).abs().mean()))
    return sum(distances) / len(distances)


def mel_cepstral_distortion(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Mel-cepstral distortion, dB, frame by frame without time warping.

    Cepstra 1 to 13 (the level, cepstrum 0, is left out, so a gain changes nothing as long as no
    band falls below the floor) of 80 log-mel bands, windows of 1024 samples, hop 256. Codecs keep
    time, so frames are compared as they stand; published values that use WORLD cepstra or time
    warping are not comparable.

    Reference: Kubichek 1993, doi:10.1109/PACRIM.1993.407206.
    """
    check_pair(reference, estimate)
    pair = torch.from_numpy(np.stack([reference, estimate]))
    mels = _log_mels(pair, sample_rate)  # [2, M, L]
    cepstra = _cosine_transform(mels.shape[1]) @ mels.double().numpy()  # [2, 13, L]
    squares = ((cepstra[0] - cepstra[1]) ** 2).sum(axis=0)  # [L]
    return float(10 / math.log(10) * np.sqrt(2 * squares).mean())


def level_difference_db(reference: Waveform, estimate: Waveform) -> float:
    """RMS level of the estimate less that of the reference, dB, at least -100 (silence)."""
    check_pair(reference, estimate)
    levels = [math.sqrt(np.mean(w.astype(np.float64) ** 2)) for w in (reference, estimate)]
    if levels[0] == 0:
        raise Unmeasurable("level difference: the reference is silent")
    return 20 * math.log10(max(levels[1] / levels[0], 1e-5))


def delay_ms(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Lag of the largest cross-correlation within 100 ms, ms; positive when the estimate is late.

    A diagnostic: nothing is aligned by it. Of parametric codecs, which do not keep phases, it says
    little. Unmeasurable for a silent signal.
    """
    check_pair(reference, estimate)
    if not reference.any() or not estimate.any():
        raise Unmeasurable("delay: one of the signals is silent")
    max_lag = min(round(_MAX_DELAY_S * sample_rate), len(reference) - 1)
    size = 1 << (2 * len(reference) - 1).bit_length()
    spectrum = np.fft.rfft(estimate, size) * np.conj(np.fft.rfft(reference, size))
    correlation = np.fft.irfft(spectrum, size)
    around_zero = np.concatenate([correlation[size - max_lag :], correlation[: max_lag + 1]])
    return (int(np.argmax(around_zero)) - max_lag) / sample_rate * 1000


def _cosine_transform(num_bands: int) -> NDArray[np.float64]:
    """[13, M]: a log spectrum sampled at M bands to its minimum-phase cepstra 1 to 13.

    A log spectrum `a * cos(k * pi * (m + 1/2) / M)` has the one cepstrum k, of value a.
    """
    bands = (np.arange(num_bands) + 0.5) * np.pi / num_bands
    return 2 / num_bands * np.cos(np.arange(1, _NUM_CEPSTRA + 1)[:, None] * bands)


def _compute(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate)
    return {
        "mel_distance": attempt(mel_distance, *pair, SAMPLE_RATE),
        "stft_distance": attempt(stft_distance, *pair),
        "mcd": attempt(mel_cepstral_distortion, *pair, SAMPLE_RATE),
        "si_sdr": attempt(si_sdr, *pair),
        "level_difference": attempt(level_difference_db, *pair),
        "delay": attempt(delay_ms, *pair, SAMPLE_RATE),
    }


SIGNAL = Group(
    "signal",
    (
        Measure(
            "mel_distance", "Mel dist.", "lower", 3, "mean |difference| of 80 log mel bands",
            needs_signal=False,
        ),
        Measure(
            "stft_distance", "STFT dist.", "lower", 3,
            "multi-resolution log-magnitude distance", needs_signal=False,
        ),
        Measure("mcd", "MCD", "lower", 2, "mel-cepstral distortion, frame by frame", "dB"),
        Measure(
            "si_sdr", "SI-SDR", "higher", 2, "scale-invariant signal-to-distortion ratio", "dB"
        ),
        Measure(
            "level_difference", "Level diff.", None, 2,
            "level of the estimate less the level of the original", "dB",
        ),
        Measure("delay", "Delay", None, 1, "lag of the largest cross-correlation", "ms"),
    ),
    _compute,
    revision=2,
)  # fmt: skip
