"""Sound in files that only FFmpeg knows (AAC, MP4, WebM, ...), through PyAV, which is optional."""

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dmcodec.sound import AudioError, SoundBytes

if TYPE_CHECKING:
    from pathlib import Path

MEDIA_SUFFIXES = (".m4a", ".aac", ".mp4", ".webm", ".mka", ".mkv", ".mov", ".amr", ".wma")
# No playlists and no protocols: a file that is read must not open other files or addresses.
_FORMATS = "aac,ac3,amr,asf,avi,flac,matroska,webm,mov,mp3,mp4,mpegts,ogg,wv,ape"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
_EBML_MAGIC, _SEGMENT_ID = b"\x1a\x45\xdf\xa3", 0x18538067


def open_media(
    sound: "Path | SoundBytes", open_bytes: Callable[[], BinaryIO], reason: str
) -> "MediaStream":
    """The first sound track of a file that libsndfile refused for `reason`.

    Raises AudioError when FFmpeg does not know it either, or PyAV is not there.
    """
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{sound}: cannot be read as sound: {reason}; for {' '.join(MEDIA_SUFFIXES)}: "
            "pip install 'dmcodec[media]'"
        ) from None
    with open_bytes() as file:
        _check_whole(file, str(sound))
    try:
        return MediaStream(str(sound), open_bytes)
    except IndexError as error:
        raise AudioError(f"{sound}: has no sound track") from error
    except av.FFmpegError as error:
        raise AudioError(f"{sound}: cannot be read as sound: {reason}") from error


class MediaStream:
    """Frames of one sound track; the length is that of a first pass over all of them."""

    def __init__(self, name: str, open_bytes: Callable[[], BinaryIO]) -> None:
        self._name, self._open_bytes = name, open_bytes
        self.sample_rate, self.num_channels, self.num_samples = 0, 0, 0
        for frame in self._frames():
            if self.sample_rate not in (0, frame.sample_rate):
                raise AudioError(f"{name}: changes its rate on the way: convert it once, by ffmpeg")
            self.sample_rate, self.num_channels = frame.sample_rate, frame.layout.nb_channels
            self.num_samples += frame.samples
        if self.num_samples == 0:
            raise AudioError(f"{name}: the file holds no samples")

    def blocks(self, start: int, end: int) -> Iterator[npt.NDArray[np.float32]]:
        """As `SoundStream`: decoded from the beginning, whatever the start."""
        position = 0
        for frame in self._frames():
            first, position = position, position + frame.samples
            if position > start:
                yield _to_mono(frame)[max(0, start - first) : end - first]
            if position >= end:
                return
        raise AudioError(f"{self._name}: damaged: ends at sample {position} instead of {end}")

    def close(self) -> None:
        """There is nothing to let go of between two passes."""

    def _frames(self) -> Iterator[Any]:
        import av

        with (
            self._open_bytes() as file,
            av.open(file, "r", options=_OPTIONS, metadata_errors="replace") as container,
        ):
            track = container.streams.audio[0]
            num_packets = 0
            try:
                for packet in container.demux(track):
                    if packet.is_corrupt:
                        raise AudioError(f"{self._name}: damaged or cut short in its sound track")
                    num_packets += packet.size > 0
                    yield from packet.decode()
            except av.FFmpegError as error:
                raise AudioError(f"{self._name}: damaged: {error.strerror}") from error
            if num_packets < track.frames:
                raise AudioError(
                    f"{self._name}: cut short: its header promises {track.frames} packets of "
                    f"sound, {num_packets} are there"
                )


def _to_mono(frame: Any) -> npt.NDArray[np.float32]:
    """The mean of a frame's channels [T], integers scaled to [-1, 1)."""
    samples = frame.to_ndarray()  # [C, T], or [1, T * C] when packed
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min)
    return samples.mean(axis=0).astype(np.float32)


def _check_whole(file: BinaryIO, name: str) -> None:
    """The outermost boxes of MP4 and Matroska state their sizes: the file must have them."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    end = 0
    if head[:4] == _EBML_MAGIC:
        file.seek(4)
        header_size = _read_ebml_size(file)
        file.seek(header_size or 0, 1)
        if int.from_bytes(file.read(4), "big") == _SEGMENT_ID:
            length = _read_ebml_size(file)
            end = 0 if length is None else file.tell() + length
    elif head[4:8] == b"ftyp":
        while end + 8 <= size:
            file.seek(end)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            if end and kind == b"ftyp":
                raise AudioError(
                    f"{name}: holds several MP4 files one after another, of which decoders read "
                    "the first: split it, or join the sounds with ffmpeg"
                )
            if length < 8 or not kind.isalnum():  # 0: to the end of the file
                return
            end += length
    if end > size:
        raise AudioError(f"{name}: cut short: its header promises {end} bytes, {size} are there")


def _read_ebml_size(file: BinaryIO) -> int | None:
    """A size of 1 to 8 bytes, as many as the first has leading zero bits; None: not known."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    num_bytes = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(num_bytes - 1), "big")
    bits = 7 * num_bytes
    value &= (1 << bits) - 1
    return None if value == (1 << bits) - 1 else value
