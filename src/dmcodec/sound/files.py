"""Opens sound files of every kind: exact lengths, and blocks of samples from any place on.

libsndfile decodes; what it takes on trust is checked here. What it does not know goes to media.py.
"""

import io
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from dmcodec.sound import AudioError, SoundBytes, media, mpeg
from dmcodec.sound.layout import find_data_chunk, find_parts, has_second_flac
from dmcodec.sound.parts import Part, PartFile

Sound = Path | SoundBytes

# Reading in blocks keeps the memory bounded by what the file really holds, whatever its header
# claims, and never holds all channels of a long file at once.
_BLOCK_FRAMES = 1 << 16
# Seeking in these is not exact to the sample (libsndfile, Vorbis: off by hundreds of samples; MP3
# frames need those before them), so they are decoded from the beginning.
_FORMATS_WITHOUT_EXACT_SEEK = ("OGG", "MP3")
MIN_RATE, MAX_RATE = 1_000, 1_000_000
"""In Hz. Lower rates hold no speech, and a waveform would grow without bound at the codec's."""
# What libsndfile says of a FLAC file whose header does not know its length.
_UNKNOWN_FRAMES = 2**63 - 1
# Programs that write to a pipe put sizes from here on into 32 bits, and such into 64.
_UNKNOWN_32, _UNKNOWN_64 = 0x7FFF0000, 1 << 62
# How libsndfile's log says that a file ends before the sound that its header promises: of WAV,
# AIFF, SVX and AU the size of the sound, of W64 and RF64 that of the file.
_SHORT_DATA = re.compile(r"^ *(?:data|SSND|BODY|Data Size +) : (\d+) \(should be (\d+)\)$", re.M)
_SHORT_FILE = re.compile(r"^ *(?:riff|Riff size) : (\d+) \(should be (\d+)\)$", re.M)
_SHORT_OTHERWISE = re.compile(
    r"^Seems to be a truncated file|\bfile seems to be truncated|^Data length \d+ should be",
    re.IGNORECASE | re.MULTILINE,
)
_FRAMES_OF = {
    "CAF": re.compile(r"^ *Valid frames +: (\d+)$", re.M),
    "AVR": re.compile(r"^ *Frames +: (\d+)$", re.M),
    "MPC2K": re.compile(r"^ *Frames +: (\d+)$", re.M),
    "MAT5": re.compile(r"Cols : (\d+)\s+Type : \d+ +Size : \d+\s+Name : wavedata", re.M),
}
_SUFFIXES = ".wav .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .w64 .rf64 .bwf .au .snd .caf"
AUDIO_SUFFIXES = (*_SUFFIXES.split(), ".sph", ".nist", ".voc")
"""Of files that libsndfile reads."""


class SoundStream(Protocol):
    """An open sound file; `num_samples` counts per channel."""

    sample_rate: int
    num_channels: int
    num_samples: int

    def blocks(self, start: int, end: int) -> Iterator[npt.NDArray[np.float32]]:
        """Samples [start, end) of the channels' mean, in blocks [T_i]; AudioError if damaged."""
        ...

    def close(self) -> None:
        """Lets go of the file."""
        ...


def open_sound(sound: Sound) -> SoundStream:
    """The open file, with at least one sample.

    Raises FileNotFoundError, and AudioError for what is damaged, cut short, empty or no sound.
    """
    with open_bytes(sound) as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            raise AudioError(f"{sound}: the file is empty (0 bytes)")
        parts = find_parts(file, size, str(sound))
        if parts[0].start == parts[0].end:
            raise AudioError(f"{sound}: the file holds no samples")
    try:
        stream: SoundStream = _SndfileStream(sound, parts)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", "a raw file has no header")
        known = " ".join(AUDIO_SUFFIXES)
        reason = f"{reason.rstrip('.')} (readable: {known})"
        stream = media.open_media(sound, lambda: open_bytes(sound), reason)
    if not MIN_RATE <= stream.sample_rate <= MAX_RATE:
        stream.close()
        raise AudioError(
            f"{sound}: its header says {stream.sample_rate} samples a second; {MIN_RATE} to "
            f"{MAX_RATE} can be read"
        )
    return stream


def open_bytes(sound: Sound) -> BinaryIO:
    """The file's bytes; FileNotFoundError, or AudioError for what is no file."""
    if isinstance(sound, SoundBytes):
        return io.BytesIO(sound.data)
    if not sound.exists():
        raise FileNotFoundError(f"{sound}: no such file")
    if not sound.is_file():
        raise AudioError(f"{sound}: not a sound file but a folder or a device")
    return sound.open("rb")


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """As soundfile's, which seeks after every read and so fails where the end is not known."""

    def seekable(self) -> bool:
        return self.frames != _UNKNOWN_FRAMES and super().seekable()


class _Opened(NamedTuple):
    """A part that libsndfile has open, and the file below it when Python reads that."""

    file: _SoundFile
    below: PartFile | None

    def close(self) -> None:
        self.file.close()
        if self.below is not None:
            self.below.close()


class _SndfileStream:
    """The parts of a sound file one after another; one of them is open at a time."""

    def __init__(self, sound: Sound, parts: list[Part]) -> None:
        self._sound, self._parts, self._lengths = sound, parts, list[int]()
        self._opened: _Opened | None = None
        self._number = self._position = 0  # of the open part, of its next sample
        try:
            first = self._open(0)
            if first.subtype.startswith("MPEG") and first.format != "MP3":
                self._parts = self._mpeg_parts()
                self.close()
                first = self._open(0)
            self.sample_rate, self.num_channels = first.samplerate, first.channels
            for number in range(len(self._parts)):
                self._lengths.append(self._measure(number))
            self.num_samples = sum(self._lengths)
            if self.num_samples < 1:
                raise AudioError(f"{sound}: the file holds no samples")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def blocks(self, start: int, end: int) -> Iterator[npt.NDArray[np.float32]]:
        first = 0
        for number, length in enumerate(self._lengths):
            from_, to = max(start - first, 0), min(end - first, length)
            if from_ < to:
                yield from self._part_blocks(number, from_, to)
            first += length

    def _open(self, number: int) -> _SoundFile:
        """The part, open; at its beginning when it was not open before."""
        if self._number == number and self._opened is not None:
            return self._opened.file
        self.close()
        part = self._parts[number]
        is_whole = part == Part(0, part.end) and len(self._parts) == 1
        if is_whole and isinstance(self._sound, Path) and part.end == self._sound.stat().st_size:
            # As bytes, for names need not be UTF-8.
            opened = _Opened(_SoundFile(os.fsencode(self._sound)), None)
        else:
            below = PartFile(open_bytes(self._sound), part)
            try:
                opened = _Opened(_SoundFile(below), below)
            except BaseException:
                below.close()
                raise
        self._number, self._position, self._opened = number, 0, opened
        return opened.file

    def _measure(self, number: int) -> int:
        """The samples of a part, which is of the first one's rate and whole."""
        file = self._open(number)
        if file.samplerate != self.sample_rate:
            raise AudioError(
                f"{self._sound}: holds streams of {self.sample_rate} and {file.samplerate} Hz one "
                "after another: convert it once, with sox or ffmpeg"
            )
        self._check_promise(file)
        counted = self._parts[number].num_samples
        if counted is not None:
            if file.frames < counted:
                raise AudioError(
                    f"{self._sound}: holds {counted} samples, of which its decoder reads "
                    f"{file.frames}: convert it once, with sox or ffmpeg"
                )
            return counted
        return self._count(file) if file.frames == _UNKNOWN_FRAMES else file.frames

    def _count(self, file: _SoundFile) -> int:
        """Samples of a FLAC stream whose header does not say how many, by decoding it."""
        if isinstance(self._sound, Path):
            status = self._sound.stat()
            return _count_flac(self._sound, status.st_size, status.st_mtime_ns)
        count = _count_frames(self._sound, file)
        self.close()
        return count

    def _check_promise(self, file: _SoundFile) -> None:
        log = file.extra_info
        for pattern, unknown in ((_SHORT_DATA, _UNKNOWN_32), (_SHORT_FILE, _UNKNOWN_64)):
            found = pattern.search(log)
            if found and int(found[2]) < int(found[1]) < unknown:
                raise AudioError(
                    f"{self._sound}: cut short: its header promises {found[1]} bytes of sound, "
                    f"{found[2]} are there"
                )
        frames = _FRAMES_OF.get(file.format)
        stated = frames.search(log) if frames is not None else None
        if stated is not None and int(stated[1]) > file.frames:
            raise AudioError(
                f"{self._sound}: cut short: its header promises {stated[1]} samples, "
                f"{file.frames} are there"
            )
        if _SHORT_OTHERWISE.search(log):
            raise AudioError(f"{self._sound}: cut short: its header promises more than is there")

    def _mpeg_parts(self) -> list[Part]:
        """Those of MPEG frames in the data of WAV files."""
        parts: list[Part] = []
        with open_bytes(self._sound) as file:
            for part in self._parts:
                found = find_data_chunk(file, part.start, part.end)
                if found is not None:
                    parts += mpeg.find_parts(file, *found, str(self._sound))
        if not parts:
            raise AudioError(f"{self._sound}: damaged: holds no MPEG frames")
        return parts

    def _part_blocks(self, number: int, start: int, end: int) -> Iterator[npt.NDArray[np.float32]]:
        """Mono blocks [<= _BLOCK_FRAMES] that add up to `end - start`."""
        try:
            file = self._go_to(number, start)
            yield from self._read(file, end - start)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{self._sound}: damaged: {error.error_string} between frames {start} and {end}"
            ) from error
        if end == self._lengths[number] and file.format == "FLAC":
            with open_bytes(self._sound) as below:
                if has_second_flac(below):
                    raise AudioError(
                        f"{self._sound}: holds several FLAC streams one after another, of which "
                        "decoders read the first: split it, or join the sounds with sox"
                    )

    def _go_to(self, number: int, start: int) -> _SoundFile:
        """The part at a sample; from its beginning where seeking is not exact or impossible."""
        file = self._open(number)
        if self._position == start:
            return file
        if file.format not in _FORMATS_WITHOUT_EXACT_SEEK and file.seekable():
            try:
                file.seek(start)
            except soundfile.LibsndfileError:  # DWVW says that it can, and cannot
                pass
            else:
                self._position = start
                return file
        if self._position > start:
            self.close()
            file = self._open(number)
        for _ in self._read(file, start - self._position):
            pass
        return file

    def _read(self, file: _SoundFile, num_frames: int) -> Iterator[npt.NDArray[np.float32]]:
        missing = num_frames
        while missing > 0:
            block = file.read(min(missing, _BLOCK_FRAMES), dtype="float32", always_2d=True)
            if block.shape[0] == 0:
                raise AudioError(
                    f"{self._sound}: damaged or cut short: its header promises "
                    f"{self._lengths[self._number]} frames, {missing} of the {num_frames} asked "
                    "for could not be read"
                )
            missing -= block.shape[0]
            self._position += block.shape[0]
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


@lru_cache(maxsize=1024)
def _count_flac(path: Path, size: int, changed_ns: int) -> int:
    """As `_count_frames`; the size and time of change make a changed file another one."""
    with _SoundFile(os.fsencode(path)) as file:
        return _count_frames(path, file)


def _count_frames(sound: Sound, file: _SoundFile) -> int:
    total = 0
    try:
        while frames := len(file.read(_BLOCK_FRAMES, dtype="int16", always_2d=True)):
            total += frames
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{sound}: damaged: {error.error_string} after {total} frames") from error
    return total
