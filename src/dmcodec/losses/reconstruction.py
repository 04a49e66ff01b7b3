"""Reconstruction losses: how far a decoded waveform is from the original.

Waveform L1, multi-scale mel distance and multi-resolution STFT distance. Functions of tensors;
weights between the terms belong to the training step.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from dmcodec.spectral import Mel, MelFormula, log_mel_spectrogram, mel_spectrogram, stft

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


def _floored_log(magnitudes: Tensor) -> Tensor:
    return magnitudes.clamp(min=_MAGNITUDE_FLOOR).log()
