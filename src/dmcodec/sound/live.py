"""Sound that comes through a pipe: WAV of any layout, read front to back without waiting for more.

Reference: Microsoft, "Multiple Channel Audio Data and WAVE Files" (WAVE_FORMAT_EXTENSIBLE).
"""

import logging
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from dmcodec.sound.files import MAX_RATE, MIN_RATE

logger = logging.getLogger(__name__)

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# The rest of the name of a sub-format whose first two bytes are the format.
_SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_MAX_HEADER_CHUNK = 1 << 20
_OTHER_KINDS = (b"fLaC", b"OggS", b"RF64", b"RIFX", b"FORM", b"caff", b".snd", b"riff")
_UNKNOWN = 0x7FFF0000


class WavLayout(NamedTuple):
    """How samples lie in a WAV file's data; `num_bytes` is None when that is not known."""

    sample_rate: int
    num_channels: int
    sample_bytes: int
    is_float: bool
    num_bytes: int | None

    @property
    def frame_bytes(self) -> int:
        """Of one sample of every channel."""
        return self.num_channels * self.sample_bytes


class LiveSound:
    """Raw 16-bit mono PCM, or WAV, from a pipe.

    Attributes:
        sample_rate: of the sound, in Hz.
    """

    def __init__(self, source: BinaryIO, raw_rate: int) -> None:
        self._source = source
        head = _read_all(source.read, 4)
        if head in _OTHER_KINDS or head[:3] == b"ID3":
            raise ValueError(
                "stdin is a sound file of another kind than WAV; a stream is raw 16-bit PCM or "
                "WAV: convert it first, with sox or ffmpeg"
            )
        is_wav = head == b"RIFF"
        self._layout = _read_header(source) if is_wav else WavLayout(raw_rate, 1, 2, False, None)
        self._head = b"" if is_wav else head
        self.sample_rate = self._layout.sample_rate

    def chunks(self, num_samples: int) -> Iterator[npt.NDArray[np.float32]]:
        """Consecutive waveforms [num_samples], channels averaged; the last one is shorter.

        The last may be empty. What follows the sound in the file is read and thrown away.
        """
        layout, left = self._layout, self._layout.num_bytes
        rest = self._head
        while True:
            size = num_samples * layout.frame_bytes
            wanted = size if left is None else min(size, left)
            data = rest + _read_all(self._source.read, wanted - len(rest))
            rest = b""
            if left is not None:
                left -= len(data)
            yield _to_mono(data[: len(data) // layout.frame_bytes * layout.frame_bytes], layout)
            if len(data) < size:
                break
        if left:
            logger.warning("stdin ended %d bytes of sound before its header says", left)
        while self._source.read(1 << 16):  # so that the program before does not fail
            pass


def _read_header(source: BinaryIO) -> WavLayout:
    """The layout of a WAV file behind its first four bytes, up to its first sample."""
    _, kind = struct.unpack("<I4s", _need(source, 8))
    if kind != b"WAVE":
        raise ValueError("stdin is no WAV that can be read: it begins with RIFF alone")
    layout: WavLayout | None = None
    while True:
        name, length = struct.unpack("<4sI", _need(source, 8))
        if name == b"data":
            if layout is None:
                raise ValueError("stdin is no WAV that can be read: it has no 'fmt ' chunk")
            is_unknown = length == 0 or length >= _UNKNOWN
            return layout._replace(num_bytes=None if is_unknown else length)
        if length > _MAX_HEADER_CHUNK:
            raise ValueError(f"stdin is no WAV that can be read: {length} bytes before its sound")
        body = _need(source, length + length % 2)
        if name == b"fmt ":
            layout = _parse_format(body)


def _parse_format(body: bytes) -> WavLayout:
    if len(body) < 16:
        raise ValueError("stdin is no WAV that can be read: its 'fmt ' chunk is too short")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if kind == _EXTENSIBLE and body[26:40] == _SUBFORMAT_TAIL:
        (kind,) = struct.unpack("<H", body[24:26])
    is_float = kind == _FLOAT
    if kind not in (_PCM, _FLOAT) or bits not in ((32, 64) if is_float else (8, 16, 24, 32)):
        raise ValueError(
            f"stdin is WAV of format {kind} with {bits} bits; a stream is PCM of 8, 16, 24 or 32 "
            "bits or float: convert it first, with sox or ffmpeg"
        )
    if channels < 1 or not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(
            f"stdin is WAV of {channels} channels at {rate} Hz; needs 1 or more at {MIN_RATE} to "
            f"{MAX_RATE} Hz"
        )
    return WavLayout(rate, channels, bits // 8, is_float, None)


def _need(source: BinaryIO, size: int) -> bytes:
    data = _read_all(source.read, size)
    if len(data) < size:
        raise ValueError("stdin is no WAV that can be read: it ends inside its header")
    return data


def _read_all(read: Callable[[int], bytes], size: int) -> bytes:
    """`size` bytes, fewer at the end only: a pipe may hand out less at a time."""
    data = bytearray()
    while len(data) < size and (part := read(size - len(data))):
        data += part
    return bytes(data)


def _to_mono(data: bytes, layout: WavLayout) -> npt.NDArray[np.float32]:
    """Whole frames as a waveform [T] in [-1, 1]."""
    size = layout.sample_bytes
    if layout.is_float:
        samples = np.frombuffer(data, f"<f{size}").astype(np.float64)
    elif size == 1:  # unsigned, unlike the others
        samples = (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    else:
        # Every sample becomes the upper bytes of 32 bits.
        padded = np.zeros((len(data) // size, 4), np.uint8)
        padded[:, 4 - size :] = np.frombuffer(data, np.uint8).reshape(-1, size)
        samples = padded.view("<i4")[:, 0] / 2.0**31
    return samples.reshape(-1, layout.num_channels).mean(axis=1).astype(np.float32)
