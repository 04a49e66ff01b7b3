"""How close decoded speech is to its original: STOI, PESQ and log-mel distance.

Pure functions on a pair of waveforms through the field's packages, imported when first used. What
cannot be computed raises `Unmeasurable` with the reason; it never becomes a score: silent or
short originals, non-finite samples.
"""

import warnings

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
    pystoi_stoi = import_package("pystoi", "STOI").stoi
    if not np.any(reference):
        # The package would say 0, as if the estimate were to blame.
        raise Unmeasurable("STOI: the reference is silent")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi_stoi(reference, estimate, sample_rate))
        except (RuntimeWarning, ValueError) as problem:
            raise Unmeasurable(f"STOI: {problem}") from problem


def pesq_wb(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Wide-band PESQ, 1.04 to 4.64, of two waveforms [T] of equal length; computed at 16 kHz.

    Needs 0.25 s, and speech in both. Reference: ITU-T P.862.2 (2007).
    """
    _check_pair(reference, estimate)
    pesq = import_package("pesq", "PESQ")
    if sample_rate != 16000:
        reference = resample(reference, sample_rate, 16000)
        estimate = resample(estimate, sample_rate, 16000)
    if not np.any(estimate):
        # The package divides by the level of the estimate.
        raise Unmeasurable("PESQ: the estimate is silent")
    try:
        return float(pesq.pesq(16000, reference, estimate, "wb"))
    except (pesq.PesqError, ValueError) as problem:
        reason = problem.args[0] if problem.args else problem
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise Unmeasurable(f"PESQ: {text}") from problem


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
