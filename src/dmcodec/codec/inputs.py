"""What users may hand to the codec as audio, made into waveforms."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from dmcodec import audio as audio_files
from dmcodec.audio import SoundBytes, read_audio, resample, whole_rate

Audio = str | Path | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | Tensor


def to_waveforms(
    audio: Audio | Sequence[Audio], given_rate: float | None, sample_rate: int
) -> list[Tensor]:
    """All waveforms in `audio` as float32 tensors [T] at `sample_rate`.

    Args:
        audio: a path, the bytes of a sound file or an open one, an array or tensor [T], [B, T] or
            [B, 1, T], or a list of any of these.
        given_rate: Hz of arrays and tensors; None when it is `sample_rate`. Files know theirs.
        sample_rate: Hz of the result.

    Raises ValueError for what is empty, not finite, far beyond full scale, not float or of another
    shape, and what `read_audio` raises for files.
    """
    sound = _find_sound(audio)
    if sound is not None:
        return [torch.from_numpy(read_audio(sound, sample_rate=sample_rate))]
    if isinstance(audio, np.ndarray | Tensor):
        waveforms = list(_rows(audio))
        if given_rate is None or given_rate == sample_rate:
            return waveforms
        given_rate = whole_rate(given_rate)
        return [
            torch.from_numpy(resample(w.cpu().numpy(), given_rate, sample_rate)) for w in waveforms
        ]
    if not isinstance(audio, Sequence) or not audio:
        raise ValueError(
            "audio must be a path, bytes, a file, a numpy array, a tensor or a non-empty list of "
            f"these, got {type(audio).__name__}"
        )
    several = cast(Sequence[Audio], audio)
    return [w for one in several for w in to_waveforms(one, given_rate, sample_rate)]


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
    problem = find_problem(waveform)
    if problem is not None:
        raise ValueError(f"audio {problem}")
    return waveform


def check_block(block: Tensor, name: str) -> Tensor:
    """A part [T] of a waveform, which may be empty, as float32 on its device.

    Raises ValueError that names it for what is not float, of another shape, or no sound.
    """
    if not isinstance(block, Tensor) or block.ndim != 1 or not block.is_floating_point():
        found = (
            f"{block.dtype} {list(block.shape)}"
            if isinstance(block, Tensor)
            else type(block).__name__
        )
        raise ValueError(f"{name} must be a tensor of float samples [T] in [-1, 1], got {found}")
    block = block.detach()
    problem = find_problem(block) if len(block) else None
    if problem is not None:
        raise ValueError(f"{name} {problem}")
    return block.float()


def find_problem(waveform: Tensor) -> str | None:
    """As `dmcodec.audio.find_problem`, of at least one sample on any device."""
    extremes = torch.stack([waveform.min(), waveform.max()])  # NaN where there is one
    return audio_files.find_problem(extremes.float().cpu().numpy())


def _find_sound(audio: object) -> Path | SoundBytes | None:
    """The path, or the bytes of a file that is in memory or open; None for anything else."""
    if isinstance(audio, str | Path):
        return Path(audio)
    if isinstance(audio, bytes | bytearray | memoryview):
        return SoundBytes("the bytes given", bytes(audio))
    if not hasattr(audio, "read"):
        return None
    data = audio.read()
    if not isinstance(data, bytes):
        raise ValueError("a file to encode must be open in binary mode: open(path, 'rb')")
    return SoundBytes(str(getattr(audio, "name", "the file given")), data)
