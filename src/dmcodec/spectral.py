"""Short-time spectra: STFT, mel filterbank, mel and log-mel spectrograms.

The one definition that losses, discriminators, metrics and plots share. Tensors in, tensors out;
no loss, no figure and no sound file here.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

LOG_FLOOR = 1e-5
"""Mel values below this count as silence in `log_mel_spectrogram` (natural logarithm: -11.5)."""

MelFormula = Literal["slaney", "htk"]

_LINEAR_MELS_PER_HZ = 3 / 200
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ * _LINEAR_MELS_PER_HZ
_LOG_MELS_PER_NEPER = 27 / math.log(6.4)
_HTK_MELS_PER_NEPER = 2595 / math.log(10)
_HTK_BREAK_HZ = 700.0


@dataclass(frozen=True, kw_only=True)
class Mel:
    """What a mel spectrogram is made with: its STFT and its filters.

    Attributes:
        sample_rate: Hz.
        n_fft: transform size in samples; F = n_fft // 2 + 1.
        num_mels: M.
        hop_length: samples between frames; None: a quarter of n_fft.
        win_length: window size in samples; None: n_fft.
        f_min: lower edge of the first filter, Hz.
        f_max: upper edge of the last filter, Hz; None: the Nyquist frequency.
        formula: how mels follow from Hz. "slaney" is linear below 1 kHz and logarithmic above;
            "htk" is 2595 log10(1 + f / 700). Both have filters of unit area.
        allow_empty_filters: accept filters so narrow that no bin falls inside them. Their mel
            values are always zero. The released DM-Codec trains with such (80 filters on n_fft
            256 and 128, of which 2 and 13 are empty), so equality with it needs them.
    """

    sample_rate: int
    n_fft: int
    num_mels: int
    hop_length: int | None = None
    win_length: int | None = None
    f_min: float = 0.0
    f_max: float | None = None
    formula: MelFormula = "slaney"
    allow_empty_filters: bool = False


def stft(waveform: Tensor, n_fft: int, hop_length: int, win_length: int) -> Tensor:
    """Complex short-time spectrum with a periodic Hann window, unscaled.

    The waveform is reflected at both ends so that frame l is centred on sample
    `(l + 1/2) * hop_length` (to half a sample). A waveform too short to fill one hop, or to be
    reflected, is first continued with zeros. Samples after the last whole hop enter only through
    the frames that overlap them.

    Args:
        waveform: `[B, T]`, any T from 1. Half precision is computed in float32.
        n_fft: transform size in samples; F = n_fft // 2 + 1.
        hop_length: samples between frames, at most `n_fft`.
        win_length: window size in samples, at most `n_fft`, centred in the transform.

    Returns:
        `[B, F, L]` complex, L = max(1, floor(T / hop_length)) for waveforms long enough to be
        reflected.

    Raises:
        ValueError: the waveform is not of rank 2 or empty, or the sizes do not fit each other.
    """
    if waveform.ndim != 2 or waveform.shape[1] == 0:
        raise ValueError(f"waveform must be [B, T] with T >= 1, got {list(waveform.shape)}")
    if not 1 <= hop_length <= n_fft:
        raise ValueError(f"hop_length must be within 1..n_fft ({n_fft}), got {hop_length}")
    if not 1 <= win_length <= n_fft:
        raise ValueError(f"win_length must be within 1..n_fft ({n_fft}), got {win_length}")
    if waveform.dtype in (torch.float16, torch.bfloat16):
        waveform = waveform.float()
    left = (n_fft - hop_length) // 2
    right = n_fft - hop_length - left
    shortest = max(hop_length, right + 1)
    if waveform.shape[1] < shortest:
        waveform = F.pad(waveform, (0, shortest - waveform.shape[1]))
    # Reflection is defined for [B, C, T], so the batch stands in as channels for a moment.
    padded = F.pad(waveform[None], (left, right), mode="reflect")[0]
    window = hann_window(win_length, waveform.device, waveform.dtype)
    before = (n_fft - win_length) // 2
    window = F.pad(window, (before, n_fft - win_length - before))  # [n_fft]
    frames = padded.unfold(-1, n_fft, hop_length) * window  # [B, L, n_fft]
    spectra: Tensor = _RealFFT.apply(frames)  # type: ignore[no-untyped-call]
    return spectra.transpose(1, 2)  # [B, F, L]


class _RealFFT(torch.autograd.Function):
    """`torch.fft.rfft` along the last axis, [..., N] -> [..., N // 2 + 1], with a faster gradient.

    torch pads the gradient to all N bins and transforms that. But the sum over half of the bins
    is the inverse transform of a real signal whose inner bins, which that counts twice, are halved.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, frames: Tensor) -> Tensor:
        ctx.size = frames.shape[-1]  # type: ignore[attr-defined]
        return torch.fft.rfft(frames)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        size: int = ctx.size  # type: ignore[attr-defined]
        halves = gradient.new_full(gradient.shape[-1:], 0.5 * size, dtype=gradient.real.dtype)
        halves[:1].fill_(size)  # an assigned number would be copied from the CPU
        if size % 2 == 0:
            halves[-1:].fill_(size)
        return torch.fft.irfft(gradient * halves, n=size)


def mel_filterbank(mel: Mel) -> Tensor:
    """Triangular mel filters of unit area: a filter w Hz wide has its peak at 2/w.

    The default formula is what `librosa.filters.mel` gives by default.

    Returns:
        `[M, F]` float32 on the CPU, the caller's own copy.

    Raises:
        ValueError: a size or the frequency range is wrong, or filters are empty and not allowed.

    Reference: Slaney 1998, Auditory Toolbox, Interval Research technical report 1998-010; Young
    et al. 2006, The HTK Book, sec. 5.4 (there without the unit area).
    """
    return _filterbank(mel, torch.device("cpu"), torch.float32).clone()


def mel_spectrogram(waveform: Tensor, mel: Mel) -> Tensor:
    """Mel-weighted STFT magnitudes (not powers), in float32 also under autocast.

    Args:
        waveform: `[B, T]`, any T from 1.
        mel: sizes and filters.

    Returns:
        `[B, M, L]`, frames as in `stft`. The gradient is finite everywhere, silence included.

    Raises:
        ValueError: as `stft` and `mel_filterbank`.
    """
    hop_length = mel.n_fft // 4 if mel.hop_length is None else mel.hop_length
    win_length = mel.n_fft if mel.win_length is None else mel.win_length
    with torch.autocast(waveform.device.type, enabled=False):
        magnitudes = stft(waveform, mel.n_fft, hop_length, win_length).abs()  # [B, F, L]
        return _filterbank(mel, magnitudes.device, magnitudes.dtype) @ magnitudes  # [B, M, L]


def log_mel_spectrogram(waveform: Tensor, mel: Mel) -> Tensor:
    """Natural logarithm of `mel_spectrogram`, floored at `LOG_FLOOR`.

    Arguments, shapes and errors are those of `mel_spectrogram`. Below the floor the gradient is
    zero.
    """
    return mel_spectrogram(waveform, mel).clamp(min=LOG_FLOOR).log()


@lru_cache(maxsize=64)
def hann_window(win_length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Periodic Hann window `[win_length]`; shared, so nobody may write into it."""
    # A tensor made in inference mode could never be used in training again.
    with torch.inference_mode(False):
        return torch.hann_window(win_length, periodic=True, device=device, dtype=dtype)


@lru_cache(maxsize=64)
def _filterbank(mel: Mel, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Filterbank `[M, F]` computed in float64; shared, so nobody may write into it."""
    sample_rate, n_fft, num_mels, formula = mel.sample_rate, mel.n_fft, mel.num_mels, mel.formula
    f_min, f_max = mel.f_min, sample_rate / 2 if mel.f_max is None else mel.f_max
    if sample_rate < 1 or n_fft < 2 or num_mels < 1:
        raise ValueError(
            "sample_rate and num_mels must be positive and n_fft at least 2, got "
            f"sample_rate={sample_rate}, num_mels={num_mels}, n_fft={n_fft}"
        )
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"need 0 <= f_min < f_max <= {sample_rate / 2} Hz, got f_min={f_min}, f_max={f_max}"
        )
    with torch.inference_mode(False):
        bins_hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
        edges_mel = torch.linspace(
            _hz_to_mel(f_min, formula),
            _hz_to_mel(f_max, formula),
            num_mels + 2,
            dtype=torch.float64,
        )
        edges_hz = _mel_to_hz(edges_mel, formula)
        lower, centre, upper = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
        rising = (bins_hz - lower) / (centre - lower)
        falling = (upper - bins_hz) / (upper - centre)
        triangles = torch.minimum(rising, falling).clamp(min=0)  # [M, F]
        filters = triangles * (2 / (upper - lower))
        num_empty = int((filters.amax(dim=1) == 0).sum())
        if num_empty and not mel.allow_empty_filters:
            raise ValueError(
                f"{num_empty} of {num_mels} mel filters on n_fft {n_fft} at {sample_rate} Hz hold "
                "no frequency bin; use fewer mels, a larger n_fft, or allow_empty_filters=True"
            )
        return filters.to(device=device, dtype=dtype)


def _hz_to_mel(frequency_hz: float, formula: MelFormula) -> float:
    match formula:
        case "htk":
            return _HTK_MELS_PER_NEPER * math.log1p(frequency_hz / _HTK_BREAK_HZ)
        case "slaney":
            if frequency_hz < _BREAK_HZ:
                return frequency_hz * _LINEAR_MELS_PER_HZ
            return _BREAK_MEL + _LOG_MELS_PER_NEPER * math.log(frequency_hz / _BREAK_HZ)
        case _:
            assert_never(formula)


def _mel_to_hz(mels: Tensor, formula: MelFormula) -> Tensor:
    match formula:
        case "htk":
            return _HTK_BREAK_HZ * torch.expm1(mels / _HTK_MELS_PER_NEPER)
        case "slaney":
            linear = mels / _LINEAR_MELS_PER_HZ
            logarithmic = _BREAK_HZ * torch.exp((mels - _BREAK_MEL) / _LOG_MELS_PER_NEPER)
            return torch.where(mels < _BREAK_MEL, linear, logarithmic)
        case _:
            assert_never(formula)
