"""Reconstruction losses: how far a decoded waveform is from the original.

Waveform L1, multi-scale mel distance, multi-resolution STFT distance and the envelopes' distance.
Functions of tensors; weights between the terms belong to the training step.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from dmcodec.spectral import Mel, MelFormula, log_mel_spectrogram, mel_spectrogram, stft

# What STOI listens with: windows of 25.6 ms in a transform of twice that, 15 bands of a third of
# an octave from 150 Hz on, 30 frames at a time (384 ms), distortion counted up to -15 dB, frames
# 40 dB below the loudest counted as silence.
_BAND_WINDOW_S, _BAND_HOP_S = 0.0256, 0.0128
_NUM_BANDS, _LOWEST_BAND_HZ = 15, 150.0
_ENVELOPE_FRAMES = 30
_MOST_DISTORTION = 1 + 10 ** (15 / 20)
_SILENCE_DB = 40.0
_SMALLEST_ENVELOPE = 1e-5
"""Far below a band of rounding noise; keeps roots and quotients, and their gradients, finite."""

# Just under the magnitude that the rounding noise of 16-bit samples has in a 1024-sample Hann
# window (1.7e-4): what lies below was never in the recording.
_MAGNITUDE_FLOOR = 1e-4


class StftScale(BaseModel):
    """One resolution of the STFT distance; all sizes in samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_fft: int = Field(ge=2, le=1 << 18)
    hop_length: int = Field(ge=1)
    win_length: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.hop_length > self.n_fft or self.win_length > self.n_fft:
            raise ValueError(
                f"hop_length ({self.hop_length}) and win_length ({self.win_length}) must not "
                f"exceed n_fft ({self.n_fft})"
            )
        return self


class MelScale(StftScale):
    """One resolution of the mel distance, with the weights of its two norms.

    `compression` says whether the distance is between mel magnitudes ("linear") or their
    logarithms ("log"); a mixture is two records of the same sizes. `f_max_hz = 0` means the
    Nyquist frequency. `formula` and `allow_empty_filters`: see `dmcodec.spectral.Mel`.
    """

    num_mels: int = Field(ge=1, le=1 << 14)
    compression: Literal["log", "linear"]
    l1_weight: float = Field(ge=0)
    l2_weight: float = Field(ge=0)
    f_min_hz: float = Field(default=0.0, ge=0)
    f_max_hz: float = Field(default=0.0, ge=0)
    formula: MelFormula = "slaney"
    allow_empty_filters: bool = False

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.l1_weight + self.l2_weight == 0:
            raise ValueError("l1_weight and l2_weight are both 0: remove the scale instead")
        return self


PAPER_MEL_SCALES = tuple(
    MelScale(
        n_fft=2**exponent,
        hop_length=2**exponent // 4,
        win_length=2**exponent,
        num_mels=64,
        compression="linear",
        l1_weight=1.0,
        l2_weight=1.0,
        allow_empty_filters=True,
    )
    for exponent in range(5, 12)
)
"""L1 + L2 on 64 mels, windows 32 to 2048. Reference: Défossez et al. 2022, arXiv:2210.13438,
sec. 3.4, which DM-Codec follows. Deviation: the STFT is not normalised by the window. 64 filters
are more than n_fft 32, 64 and 128 can fill: 36, 21 and 7 of them are empty and always agree."""

RELEASE_MEL_SCALES = tuple(
    MelScale(
        n_fft=n_fft,
        hop_length=hop_length,
        win_length=n_fft,
        num_mels=80,
        compression="log",
        l1_weight=weight,
        l2_weight=0.0,
        formula="htk",
        allow_empty_filters=n_fft < 512,
    )
    for n_fft, hop_length, weight in (
        (1024, 240, 45.0),
        (512, 120, 1.0),
        (256, 60, 1.0),
        (128, 30, 1.0),
    )
)
"""Log-mel L1 with the sizes and weights that the released DM-Codec code trains with."""

STFT_SCALES = (
    StftScale(n_fft=1024, hop_length=120, win_length=600),
    StftScale(n_fft=2048, hop_length=240, win_length=1200),
    StftScale(n_fft=512, hop_length=50, win_length=240),
)
"""Reference: Yamamoto et al. 2019, arXiv:1910.11480, table 1 (samples, there at 24 kHz)."""


def waveform_l1_loss(reference: Tensor, estimate: Tensor) -> Tensor:
    """Mean absolute difference of two waveforms.

    Args:
        reference: `[B, 1, T]`, the original.
        estimate: `[B, 1, T]`, the decoded waveform.

    Returns:
        Scalar, float32 also under autocast.

    Raises:
        ValueError: the shapes differ or are not `[B, 1, T]`.
    """
    _check_waveforms(reference, estimate)
    return F.l1_loss(_full_precision(estimate), _full_precision(reference))


def mel_loss(
    reference: Tensor, estimate: Tensor, scales: Sequence[MelScale], sample_rate: int
) -> Tensor:
    """Distance between mel spectrograms, summed over scales.

    Each scale adds `l1_weight * mean |difference| + l2_weight * mean difference²`; means run over
    batch, mels and frames. Nothing is averaged over the number of scales.

    Args:
        reference: `[B, 1, T]`, the original.
        estimate: `[B, 1, T]`, the decoded waveform.
        scales: at least one.
        sample_rate: Hz.

    Returns:
        Scalar, float32 also under autocast. Finite gradients, also on silence.

    Raises:
        ValueError: the shapes differ or are not `[B, 1, T]`, no scale is given, or a scale's
            filterbank has empty filters and does not allow them.
    """
    _check_waveforms(reference, estimate)
    if not scales:
        raise ValueError("mel_loss needs at least one scale, got none")
    terms = []
    for scale in scales:
        difference = _mels(estimate, scale, sample_rate) - _mels(reference, scale, sample_rate)
        if scale.l1_weight > 0:
            terms.append(scale.l1_weight * difference.abs().mean())
        if scale.l2_weight > 0:
            terms.append(scale.l2_weight * difference.square().mean())
    return torch.stack(terms).sum()


def stft_loss(reference: Tensor, estimate: Tensor, scales: Sequence[StftScale]) -> Tensor:
    """Spectral convergence plus log-magnitude L1, averaged over resolutions.

    With S and Ŝ the STFT magnitudes of the original and the decoded waveform, each resolution
    gives `||S - Ŝ|| / ||S|| + mean |log S - log Ŝ|` (Frobenius norm, natural logarithm,
    magnitudes floored at 1e-4 in the logarithm).

    Args:
        reference: `[B, 1, T]`, the original.
        estimate: `[B, 1, T]`, the decoded waveform.
        scales: at least one.

    Returns:
        Scalar, float32 also under autocast. Finite gradients, also on silence.

    Raises:
        ValueError: the shapes differ or are not `[B, 1, T]`, or no scale is given.

    Reference: Yamamoto et al. 2019, arXiv:1910.11480, eq. 4 to 6. Deviation: the norms run over
    the whole batch, so that one silent crop cannot divide by almost nothing.
    """
    _check_waveforms(reference, estimate)
    if not scales:
        raise ValueError("stft_loss needs at least one scale, got none")
    terms = []
    for scale in scales:
        target = _magnitudes(reference, scale)  # [B, F, L]
        output = _magnitudes(estimate, scale)  # [B, F, L]
        norm_floor = _MAGNITUDE_FLOOR * target.numel() ** 0.5
        distance = torch.linalg.vector_norm(target - output)
        terms.append(distance / torch.linalg.vector_norm(target).clamp(min=norm_floor))
        terms.append(F.l1_loss(_floored_log(output), _floored_log(target)))
    return torch.stack(terms).sum() / len(scales)


def envelope_loss(reference: Tensor, estimate: Tensor, sample_rate: int) -> Tensor:
    """One minus the correlation of short envelopes in bands of a third of an octave: 1 - STOI.

    Band by band, 384 ms of the decoded envelope are scaled to the energy of the original's and
    limited, then correlated with it; the mean runs over bands and places. Deviations from STOI: at
    the waveform's own rate, all frames stay where they are, and a place counts as much as it has
    frames that are not silent.

    Args:
        reference: `[B, 1, T]`, the original; below 384 ms both are continued with zeros.
        estimate: `[B, 1, T]`, the decoded waveform.
        sample_rate: Hz.

    Returns:
        Scalar, float32 also under autocast. Finite gradients, also on silence.

    Raises:
        ValueError: the shapes differ or are not `[B, 1, T]`.

    Reference: Taal et al. 2011, doi:10.1109/TASL.2011.2114881, eq. 1 to 6.
    """
    _check_waveforms(reference, estimate)
    original, frame_energy = _band_envelopes(reference, sample_rate)
    decoded, _ = _band_envelopes(estimate, sample_rate)
    loudest = frame_energy.amax(dim=1, keepdim=True)
    is_loud = frame_energy > loudest * 10 ** (-_SILENCE_DB / 10)  # [B, L]
    weight = is_loud.float().unfold(1, _ENVELOPE_FRAMES, 1).mean(dim=-1)[:, None]  # [B, 1, places]
    x = original.unfold(2, _ENVELOPE_FRAMES, 1)  # [B, bands, places, 30]
    y = decoded.unfold(2, _ENVELOPE_FRAMES, 1)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / torch.linalg.vector_norm(
        y, dim=-1, keepdim=True
    )
    y = torch.minimum(y * scale, x * _MOST_DISTORTION)
    correlation = F.cosine_similarity(
        x - x.mean(dim=-1, keepdim=True), y - y.mean(dim=-1, keepdim=True), dim=-1
    )
    distance = 1 - correlation.mean(dim=1, keepdim=True)  # [B, 1, places]
    return (distance * weight).sum() / weight.sum().clamp(min=1)


def _check_waveforms(reference: Tensor, estimate: Tensor) -> None:
    if reference.shape != estimate.shape:
        raise ValueError(
            f"reference {list(reference.shape)} and estimate {list(estimate.shape)} must have "
            "equal shapes; cut both to one length first"
        )
    if reference.ndim != 3 or reference.shape[1] != 1:
        raise ValueError(f"waveforms must be [B, 1, T], got {list(reference.shape)}")


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _mels(waveform: Tensor, scale: MelScale, sample_rate: int) -> Tensor:
    """`[B, 1, T]` to `[B, M, L]`, compressed as the scale says."""
    mel = Mel(
        sample_rate=sample_rate,
        n_fft=scale.n_fft,
        num_mels=scale.num_mels,
        hop_length=scale.hop_length,
        win_length=scale.win_length,
        f_min=scale.f_min_hz,
        f_max=scale.f_max_hz or None,
        formula=scale.formula,
        allow_empty_filters=scale.allow_empty_filters,
    )
    transform = log_mel_spectrogram if scale.compression == "log" else mel_spectrogram
    return transform(waveform[:, 0], mel)


def _magnitudes(waveform: Tensor, scale: StftScale) -> Tensor:
    """`[B, 1, T]` to `[B, F, L]`."""
    return stft(waveform[:, 0], scale.n_fft, scale.hop_length, scale.win_length).abs()


def _band_envelopes(waveform: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Magnitudes `[B, bands, L]` of `[B, 1, T]`, and the energy of all frequencies `[B, L]`."""
    window, hop = round(_BAND_WINDOW_S * sample_rate), round(_BAND_HOP_S * sample_rate)
    n_fft = 1 << math.ceil(math.log2(2 * window))
    num_missing = max(0, _ENVELOPE_FRAMES * hop - waveform.shape[-1])
    with torch.autocast(waveform.device.type, enabled=False):
        spectrum = stft(F.pad(waveform[:, 0], (0, num_missing)), n_fft, hop, window)  # [B, F, L]
        power = spectrum.real.square() + spectrum.imag.square()
        bands = _third_octaves(n_fft, sample_rate, power.device) @ power
    return (bands + _SMALLEST_ENVELOPE**2).sqrt(), power.sum(dim=1)


@lru_cache(maxsize=8)
def _third_octaves(n_fft: int, sample_rate: int, device: torch.device) -> Tensor:
    """Ones where a bin belongs to a band, `[bands, F]`; shared, so nobody may write into it."""
    with torch.inference_mode(False):
        bins_hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
        centres = _LOWEST_BAND_HZ * 2 ** (torch.arange(_NUM_BANDS, dtype=torch.float64) / 3)
        lower, upper = centres * 2 ** (-1 / 6), centres * 2 ** (1 / 6)
        is_inside = (bins_hz >= lower[:, None]) & (bins_hz < upper[:, None])
        return is_inside.float().to(device)


def _floored_log(magnitudes: Tensor) -> Tensor:
    return magnitudes.clamp(min=_MAGNITUDE_FLOOR).log()
