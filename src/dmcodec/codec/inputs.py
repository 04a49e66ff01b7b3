"""What users may hand to the codec as audio, made into waveforms."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Audio = str | Path | np.ndarray | Tensor


def to_waveforms(
    audio: Audio | Sequence[Audio], given_rate: int | None, sample_rate: int
) -> list[Tensor]:
    """All waveforms in `audio` as float32 tensors [T] at `sample_rate`.

    Args:
        audio: a path, an array or tensor [T], [B, T] or [B, 1, T], or a list of any of these.
        given_rate: Hz of arrays and tensors; None when it is `sample_rate`. Files know theirs.
        sample_rate: Hz of the result.

    Raises ValueError for what is empty, not finite, not float or of another shape, and what
    `read_audio` raises for files.
    """
    if isinstance(audio, str | Path):
        from dmcodec.audio import read_audio

        return [torch.from_numpy(read_audio(Path(audio), sample_rate=sample_rate))]
    if isinstance(audio, np.ndarray | Tensor):
        waveforms = list(_rows(audio))
        if given_rate is None or given_rate == sample_rate:
            return waveforms
        from dmcodec.audio import resample

        return [
            torch.from_numpy(resample(w.cpu().numpy(), given_rate, sample_rate)) for w in waveforms
        ]
    if not isinstance(audio, Sequence) or not audio:
        raise ValueError(
            "audio must be a path, a numpy array, a tensor or a non-empty list of these, "
            f"got {type(audio).__name__}"
        )
    return [w for one in audio for w in to_waveforms(one, given_rate, sample_rate)]


def _rows(audio: np.ndarray | Tensor) -> Tensor:
    """[T], [B, T] or [B, 1, T] of float samples -> float32 [B, T]."""
    if isinstance(audio, np.ndarray) and audio.dtype.kind == "f":
        # The copy makes any array fit for torch: read-only, reversed or of another byte order.
        audio = torch.from_numpy(np.array(audio, np.float32, order="C"))
    if isinstance(audio, np.ndarray) or not audio.is_floating_point():
        raise ValueError(
            f"audio has dtype {audio.dtype}; give float samples in [-1, 1]"
            " (16-bit samples divided by 32768)"
        )
    waveform = audio.detach().float()
    if waveform.ndim == 3 and waveform.shape[1] == 1:
        waveform = waveform[:, 0]
    elif waveform.ndim == 1:
        waveform = waveform[None]
    if waveform.ndim != 2:
        raise ValueError(
            f"audio must be [T], [B, T] or [B, 1, T], got shape {tuple(waveform.shape)};"
            " average the channels of stereo audio first"
        )
    if waveform.shape[0] >= 100 and waveform.shape[1] <= 8:
        raise ValueError(
            f"audio of shape {tuple(waveform.shape)} looks like [T, channels]; average the channels"
            " or give [B, T]"
        )
    if waveform.numel() == 0:
        raise ValueError("audio is empty; give at least one sample")
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError("audio holds NaN or infinite samples")
    return waveform
