"""Fundamental frequency: tracks by librosa's probabilistic YIN, and how two tracks differ."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmcodec.audio import SAMPLE_RATE, Waveform
from dmcodec.metrics.measure import (
    Group,
    Measure,
    Original,
    Outcomes,
    Unmeasurable,
    attempt,
    rate,
)
from dmcodec.packages import import_package

_F0_MIN_HZ, _F0_MAX_HZ = 60.0, 400.0
_FRAME_S, _HOP_S = 0.064, 0.01
_STEP_SEMITONES = 0.2  # librosa's 0.1 takes 2.5 times as long for F0 that differs by under 1 %
_MIN_FRAMES = 10


@dataclass(frozen=True)
class PitchTrack:
    """F0 of each frame, Hz (meaningless where unvoiced), and whether it is voiced; both [L]."""

    f0_hz: NDArray[np.float64]
    is_voiced: NDArray[np.bool_]


def track_pitch(waveform: Waveform, sample_rate: int) -> PitchTrack:
    """F0 between 60 and 400 Hz every 10 ms of a waveform [T], in steps of 1.2 %.

    Silence is unvoiced.

    Reference: Mauch and Dixon 2014, doi:10.1109/ICASSP.2014.6853678 (pYIN, as librosa has it).
    """
    librosa = import_package("librosa", "F0")
    hop_length = round(_HOP_S * sample_rate)
    if not np.any(waveform):
        num_frames = 1 + len(waveform) // hop_length
        return PitchTrack(np.zeros(num_frames), np.zeros(num_frames, dtype=bool))
    f0_hz, is_voiced, _ = librosa.pyin(
        waveform,
        fmin=_F0_MIN_HZ,
        fmax=_F0_MAX_HZ,
        sr=sample_rate,
        frame_length=round(_FRAME_S * sample_rate),
        hop_length=hop_length,
        resolution=_STEP_SEMITONES,
    )
    return PitchTrack(np.nan_to_num(f0_hz), is_voiced)


def f0_correlation(reference: PitchTrack, estimate: PitchTrack) -> float:
    """Pearson correlation over the frames voiced in both."""
    first, second = _voiced_in_both(reference, estimate)
    if first.std() == 0 or second.std() == 0:
        raise Unmeasurable("F0 correlation: F0 does not change")
    return float(np.corrcoef(first, second)[0, 1])


def f0_rmse_hz(reference: PitchTrack, estimate: PitchTrack) -> float:
    """Root mean square difference over the frames voiced in both, Hz."""
    first, second = _voiced_in_both(reference, estimate)
    return float(np.sqrt(np.mean((first - second) ** 2)))


def voicing_error(reference: PitchTrack, estimate: PitchTrack) -> float:
    """Share of frames that are voiced in one track only, 0 to 1."""
    return float(np.mean(reference.is_voiced != estimate.is_voiced))


def _voiced_in_both(
    reference: PitchTrack, estimate: PitchTrack
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    both = reference.is_voiced & estimate.is_voiced
    if both.sum() < _MIN_FRAMES:
        raise Unmeasurable(
            f"F0: {int(both.sum())} frames are voiced in both signals, {_MIN_FRAMES} are needed"
        )
    return reference.f0_hz[both], estimate.f0_hz[both]


def _compute(original: Original, estimate: Waveform) -> Outcomes:
    def track(waveform: Waveform) -> PitchTrack:
        return track_pitch(waveform, SAMPLE_RATE)

    tracks = (original.once("pitch", track), track(estimate))
    return {
        "f0_corr": attempt(f0_correlation, *tracks),
        "f0_rmse": attempt(f0_rmse_hz, *tracks),
        "voicing_error": attempt(voicing_error, *tracks),
    }


PITCH = Group(
    "pitch",
    (
        Measure("f0_corr", "F0 corr.", "higher", 3, "correlation of F0 where both are voiced"),
        Measure("f0_rmse", "F0 RMSE", "lower", 1, "error of F0 where both are voiced", "Hz"),
        rate(
            "voicing_error", "Voicing err.", "frames voiced in one signal only",
            pooling="mean", needs_signal=False,
        ),
    ),
    _compute,
    modules=("librosa",),
    distributions=("librosa",),
    revision=2,
)  # fmt: skip
