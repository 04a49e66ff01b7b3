"""How close decoded speech is to its original: STOI, PESQ and log-mel distance.

Pure functions on a pair of waveforms through the field's packages, imported when first used. What
cannot be computed raises `Unmeasurable` with the reason; it never becomes a score: silent or
short originals, non-finite samples.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmcodec.audio import Waveform, resample
from dmcodec.packages import import_package
from dmcodec.spectral import log_mel_spectrogram


class Unmeasurable(ValueError):
    """A measure that has no value for this pair of waveforms; the message says why."""


def stoi(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Short-time objective intelligibility, at most 1, of two waveforms [T] of equal length.

    Needs about 0.4 s of speech in the reference; a silent estimate scores 0. Reference: Taal et
    al. 2011, doi:10.1109/TASL.2011.2114881.
    """
    _check_pair(reference, estimate)
    # The package would say 0, as if the estimate were to blame.
    require_sound("STOI", reference=reference)
    return run_stoi("STOI", import_package("pystoi", "STOI").stoi, reference, estimate, sample_rate)


def run_stoi(
    name: str,
    measure: Callable[..., float],
    reference: Waveform,
    estimate: Waveform,
    sample_rate: int,
    **options: bool,
) -> float:
    """What pystoi's function gives; Unmeasurable, in our words, where it only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(measure(reference, estimate, sample_rate, **options))
        except (RuntimeWarning, ValueError) as problem:
            is_short = "Not enough STFT frames" in str(problem) or len(reference) < sample_rate // 4
            reason = (
                "the reference has less than the 0.4 s of speech that it needs"
                if is_short
                else f"the package gave no value: {problem}"
            )
            raise Unmeasurable(f"{name}: {reason}") from problem


def pesq_wb(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Wide-band PESQ, 1.04 to 4.64, of two waveforms [T] of equal length; computed at 16 kHz.

    Needs 0.25 s, and speech in both. Reference: ITU-T P.862.2 (2007).
    """
    _check_pair(reference, estimate)
    return run_pesq(import_package("pesq", "PESQ"), reference, estimate, sample_rate, "wb")


def run_pesq(
    package: Any, reference: Waveform, estimate: Waveform, sample_rate: int, mode: str
) -> float:
    """What the package pesq gives of waveforms at any rate; Unmeasurable where it gives nothing.

    Modes are its own: "wb" at 16 kHz, "nb" at 8 kHz.
    """
    # The package divides by the level of the estimate, and raises that of the reference.
    require_sound("PESQ", reference=reference, estimate=estimate)
    rate = {"wb": 16_000, "nb": 8_000}[mode]
    reference, estimate = (resample(each, sample_rate, rate) for each in (reference, estimate))
    try:
        return float(package.pesq(rate, reference, estimate, mode))
    except package.BufferTooShortError as problem:
        raise Unmeasurable("PESQ: shorter than the 0.25 s that it needs") from problem
    except package.NoUtterancesError as problem:
        raise Unmeasurable("PESQ: no speech found in the reference or in the estimate") from problem
    except (package.PesqError, ValueError) as problem:
        reason = problem.args[0] if problem.args else problem
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise Unmeasurable(f"PESQ: the package gave no value: {text}") from problem


def is_silent(waveform: Waveform) -> bool:
    """Whether no sample of a waveform [T] is above one step of 16 bits: zeros, or dither."""
    return not np.any(np.abs(waveform) >= 1.5 / 32768)


def require_sound(measure: str, **waveforms: Waveform) -> None:
    """Raises Unmeasurable, in the name of a measure, when one of the waveforms [T] is silent.

    An original without a signal says nothing about a codec, and packages that raise levels, or
    fill in noise, would score what is left. Of an estimate, zeros alone count as silence.
    """
    for name, waveform in waveforms.items():
        if not np.any(waveform) or (name == "reference" and is_silent(waveform)):
            raise Unmeasurable(f"{measure}: the {name} is silent")


def log_mel(waveform: Waveform, sample_rate: int) -> npt.NDArray[np.float32]:
    """Log-mel spectrogram [M, L] of a waveform [T]: what `mel_distance` compares and plots show.

    80 mels, 1024-sample window, hop 256, natural logarithm.
    """
    mels = log_mel_spectrogram(
        torch.from_numpy(waveform)[None],
        sample_rate=sample_rate,
        n_fft=1024,
        hop_length=256,
        win_length=1024,
        num_mels=80,
    )
    return mels[0].numpy()


def mel_distance(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Mean absolute difference of the `log_mel` of two waveforms [T] of the same length."""
    _check_pair(reference, estimate)
    difference = log_mel(reference, sample_rate) - log_mel(estimate, sample_rate)
    return float(np.abs(difference).mean(dtype=np.float64))


def _check_pair(reference: Waveform, estimate: Waveform) -> None:
    if reference.ndim != 1 or reference.shape != estimate.shape:
        raise ValueError(
            f"reference {reference.shape} and estimate {estimate.shape} must be [T] of one length"
        )
    for name, waveform in (("reference", reference), ("estimate", estimate)):
        if not np.isfinite(waveform).all():
            raise Unmeasurable(f"the {name} has NaN or infinite samples")
