"""Sound files to waveforms and back: read, write, downmix, resample, remove DC, exact lengths.

The only file that knows soundfile and soxr. No torch here, no manifests, no training data:
a waveform is a float32 numpy array `[T]`, mono, nominally in [-1, 1].
"""

import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr  # type: ignore[import-untyped]

from dmcodec.storage import open_whole

Waveform = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
MAX_SAMPLE_RATE = 1_000_000
"""Hz; no sound has more. Rates above it are damage, and would ask for any amount of memory."""
PART_SECONDS = 600.0
"""Of sound that is held at a time. So many that formats without seeking (MP3, Ogg) are not decoded
over and over."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")

# Reading in blocks keeps the memory bounded by what the file really holds, whatever its header
# claims, and never holds all channels of a long file at once.
_BLOCK_FRAMES = 1 << 16
# Half the length of soxr's HQ filter at equal rates, rounded up; it grows with the ratio of the
# rates when going down. Measured: a slice then differs from the whole by less than 1e-6.
_FILTER_MARGIN = 256
# Seeking in these is not exact to the sample (libsndfile, Vorbis: off by hundreds of samples; MP3
# frames need those before them), so their slices are decoded from the beginning of the file.
_FORMATS_WITHOUT_EXACT_SEEK = ("OGG", "MP3")
# How libsndfile's log says that a WAV or AIFF file ends before the sound its header promises.
_CUT_SHORT = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)$", re.MULTILINE)
# Programs that write to a pipe cannot know the size and put something above this.
_UNKNOWN_SIZE_BYTES = 0x7FFF0000
# What libsndfile says of a FLAC file whose header does not know its length.
_UNKNOWN_FRAMES = 2**63 - 1
_WRITE_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


class AudioError(ValueError):
    """A sound file is damaged, empty, or no sound file; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class SoundBytes:
    """A whole sound file in memory; errors call it by `name`."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the header of a sound file says; `num_samples` counts per channel, as stored."""

    sample_rate: int
    num_channels: int
    num_samples: int

    def num_samples_at(self, sample_rate: int) -> int:
        """Samples that `read_audio(path, sample_rate=sample_rate)` returns."""
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)


def audio_info(path: Path | str | SoundBytes) -> AudioInfo:
    """Rate, channels and length of a sound file, from its header alone.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: the file is damaged, empty, or no sound file.
    """
    with _open_sound_file(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames)


def read_audio(
    path: Path | str | SoundBytes,
    *,
    sample_rate: int = SAMPLE_RATE,
    start_samples: int = 0,
    num_samples: int | None = None,
) -> Waveform:
    """A sound file, or a slice of it, as a mono waveform at `sample_rate`.

    Channels are averaged, then resampled (soxr HQ). The whole file gives exactly
    `ceil(frames * sample_rate / file_rate)` samples, at least one. A slice equals the same slice
    of the whole to 1e-6 and reads only its part of the file (and a margin for the filter), except
    that Ogg and MP3 files are decoded from their beginning. Float files and decoded MP3 may exceed
    full scale; nothing is clipped here.

    Args:
        path: the file, or its bytes; its content decides the format, not its suffix.
        sample_rate: of the result, in Hz.
        start_samples: first sample of the slice, counted at `sample_rate`.
        num_samples: length of the slice, counted at `sample_rate`; None means to the end.

    Returns:
        float32 `[T]`.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: damaged, empty, no sound file, or holds NaN or infinite samples.
        ValueError: the slice is not inside the file.
    """
    with _open_sound_file(path) as file:
        file_rate = file.samplerate
        total = resampled_length(file.frames, file_rate, sample_rate)
        end = total if num_samples is None else start_samples + num_samples
        if not 0 <= start_samples < end <= total:
            raise ValueError(
                f"{path}: asked for samples {start_samples} to {end} at {sample_rate} Hz, "
                f"the file has {total}; ask for at least one sample inside it"
            )
        if file_rate == sample_rate:
            return _read_mono(file, path, start_samples, end)

        # A slice may only begin where a sample of the file and one of the result coincide,
        # which is every `down` samples of the file and every `up` samples of the result.
        divisor = math.gcd(file_rate, sample_rate)
        down, up = file_rate // divisor, sample_rate // divisor
        margin = _FILTER_MARGIN * max(1, -(-file_rate // sample_rate))
        first_period = max(0, start_samples // up - -(-margin // down))
        source_end = min(file.frames, -(-end * down // up) + margin)
        source = _read_mono(file, path, first_period * down, source_end)
    offset = start_samples - first_period * up
    resampled = resample(source, file_rate, sample_rate)
    return resampled[offset : offset + end - start_samples].copy()


def read_parts(
    path: Path | str | SoundBytes,
    *,
    sample_rate: int,
    start_samples: int = 0,
    num_samples: int,
) -> Iterator[Waveform]:
    """A slice of a sound file in consecutive parts of `PART_SECONDS`, the last one shorter.

    Memory holds one part at a time; joined, they are what `read_audio` gives for the slice (to
    1e-6 where it resamples). Raises as `read_audio` does, when a part is asked for.
    """
    part_samples = round(PART_SECONDS * sample_rate)
    end = start_samples + num_samples
    for start in range(start_samples, end, part_samples):
        length = min(part_samples, end - start)
        yield read_audio(path, sample_rate=sample_rate, start_samples=start, num_samples=length)


def overlapping_parts(
    blocks: Iterable[Waveform], part_samples: int, context_samples: int
) -> Iterator[tuple[Waveform, int, int]]:
    """Consecutive parts of a waveform, each with context on either side.

    Args:
        blocks: the waveform in consecutive blocks `[T_i]` of any sizes.
        part_samples: of a part; the last is longer by up to the context, or shorter.
        context_samples: before and after a part, as far as there is sound.

    Yields a part with its context, how many samples of context come before the part, and how many
    the part itself has.
    """
    buffer = np.zeros(0, np.float32)
    before = 0
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) > before + part_samples + context_samples:
            yield buffer[: before + part_samples + context_samples], before, part_samples
            drop = max(0, before + part_samples - context_samples)
            buffer, before = buffer[drop:], before + part_samples - drop
    if len(buffer) > before:
        yield buffer, before, len(buffer) - before


def write_audio(
    path: Path | str, waveform: npt.NDArray[np.floating], sample_rate: int = SAMPLE_RATE
) -> None:
    """Write a mono waveform as 16-bit WAV or FLAC, chosen by the suffix.

    Samples beyond full scale are clipped, never wrapped. What `read_audio` gives for a 16-bit mono
    file is written back unchanged. The file appears whole: it is written under a temporary name in
    the same folder, then renamed over any older one.

    Args:
        path: ends in .wav or .flac; its folder exists.
        waveform: `[T]`, at least one sample, of float dtype; a tensor on the CPU will do.
        sample_rate: in Hz.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written.
        ValueError: another suffix, rank or dtype, no samples, NaN or infinite samples.
    """
    write_audio_blocks(path, [_check_waveform(waveform)], sample_rate)


def write_audio_blocks(
    path: Path | str, blocks: Iterable[npt.NDArray[np.floating]], sample_rate: int = SAMPLE_RATE
) -> None:
    """`write_audio` of a waveform that comes in consecutive blocks `[T_i]`: memory stays bounded.

    When a block is refused, or asking for one raises, no file is left and an older one stays.
    """
    path = Path(path)
    format_name = _WRITE_FORMATS.get(path.suffix.lower())
    if format_name is None:
        raise ValueError(f"{path}: can write .wav and .flac, not {path.suffix!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; create it before writing {path}")
    with open_whole(path) as output:
        sink = _Sink(output)
        try:
            with soundfile.SoundFile(
                sink, "w", sample_rate, channels=1, subtype="PCM_16", format=format_name
            ) as file:
                for block in blocks:
                    block = check_samples(block)
                    if not np.isfinite(block).all():
                        raise ValueError(
                            f"{path}: the waveform has NaN or infinite samples; not written"
                        )
                    integers = np.clip(np.round(block * 32768.0), -32768, 32767)
                    file.write(integers.astype(np.int16))
        except (soundfile.LibsndfileError, AssertionError) as error:
            # An assertion is how soundfile says that not everything was written.
            reason = sink.error or getattr(error, "error_string", None)
            if reason is None:
                raise
            raise OSError(f"{path}: cannot be written: {reason}") from error
        if sink.error is not None:
            raise OSError(f"{path}: cannot be written: {sink.error}")


class _Sink:
    """A file for libsndfile to write to, which remembers what went wrong.

    libsndfile passes over a failed write at the end of a FLAC file: on a full disk it would be cut
    short without a word.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: str | None = None
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file; what is buffered is written first, which may fail."""
        return self._attempt(self._file.seek, offset, whence)

    def write(self, data: bytes) -> int:
        """As of a file, but 0 when it fails."""
        return self._attempt(self._file.write, data)

    def flush(self) -> None:
        """As of a file."""
        self._attempt(self._file.flush)

    def _attempt(self, function: Callable[..., int | None], *arguments: object) -> int:
        try:
            return function(*arguments) or 0
        except OSError as error:
            self.error = self.error or error.strerror
            return 0


def resample(waveform: npt.NDArray[np.floating], from_rate: int, to_rate: int) -> Waveform:
    """The waveform `[T]` at another rate (soxr HQ): exactly `resampled_length` samples, float32.

    Sample 0 stays at time 0; outside its ends the waveform counts as silence.
    """
    waveform = _check_waveform(waveform)
    length = resampled_length(waveform.shape[0], from_rate, to_rate)
    if from_rate == to_rate:
        return waveform
    # soxr rounds the length down for some inputs (one sample can give none): silence is appended,
    # enough for the missing samples, and cut off again.
    padding = 2 * max(1, -(-from_rate // to_rate))
    padded = np.pad(waveform, (0, padding))
    resampled: Waveform = soxr.resample(padded, from_rate, to_rate, quality="HQ")
    return resampled[:length]


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """`ceil(num_samples * to_rate / from_rate)`: one sample stays at least one sample."""
    if from_rate < 1 or to_rate < 1:
        raise ValueError(f"sample rates must be positive, got {from_rate} and {to_rate}")
    return -(-num_samples * to_rate // from_rate)


def remove_dc(waveform: npt.NDArray[np.floating]) -> Waveform:
    """The waveform `[T]` less its mean (computed in float64), float32; may exceed full scale."""
    waveform = _check_waveform(waveform)
    return waveform - np.float32(waveform.mean(dtype=np.float64))


def seconds_to_samples(seconds: float, sample_rate: int = SAMPLE_RATE) -> int:
    """The nearest whole number of samples; halves go up. Refuses negative and non-finite times."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"a duration must be finite and not negative, got {seconds} s")
    return math.floor(seconds * sample_rate + 0.5)


def samples_to_seconds(num_samples: int, sample_rate: int = SAMPLE_RATE) -> float:
    """Seconds for flags, logs and reports; inside the package time stays in samples."""
    return num_samples / sample_rate


def find_audio_files(folder: Path | str) -> list[Path]:
    """Every file below `folder` whose suffix is in `AUDIO_SUFFIXES`, sorted by path.

    Hidden files (names beginning with a dot) are left out: other systems leave such files with
    sound-file suffixes and no sound. Returns an empty list when there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.name[0] != "." and path.is_file()
    )


def _open_sound_file(path: Path | str | SoundBytes) -> soundfile.SoundFile:
    """The open file, positioned at its start, with at least one sample by its header."""
    if isinstance(path, SoundBytes):
        num_bytes = len(path.data)
    else:
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        if not path.is_file():
            raise AudioError(f"{path}: not a sound file but a folder or a device")
        num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        file = soundfile.SoundFile(io.BytesIO(path.data) if isinstance(path, SoundBytes) else path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", "a raw file has no header")
        supported = " ".join(AUDIO_SUFFIXES)
        raise AudioError(
            f"{path}: cannot be read as sound: {reason} (readable: {supported})"
        ) from error
    try:
        _check_header(file, path)
    except AudioError:
        file.close()
        raise
    return file


def _check_header(file: soundfile.SoundFile, path: Path | SoundBytes) -> None:
    if file.frames < 1:
        raise AudioError(f"{path}: the file holds no samples")
    if file.frames == _UNKNOWN_FRAMES:
        raise AudioError(
            f"{path}: its header does not say how long it is, as when flac writes to a pipe: "
            "convert it once, with sox or ffmpeg, from file to file"
        )
    cut_short = _CUT_SHORT.search(file.extra_info)
    if cut_short and int(cut_short[2]) < int(cut_short[1]) < _UNKNOWN_SIZE_BYTES:
        raise AudioError(
            f"{path}: cut short: its header promises {cut_short[1]} bytes of sound, "
            f"{cut_short[2]} are there"
        )


def _read_mono(
    file: soundfile.SoundFile, path: Path | str | SoundBytes, start: int, end: int
) -> Waveform:
    """Frames [start, end) of an open file, channels averaged: float32 `[end - start]`."""
    try:
        if file.format in _FORMATS_WITHOUT_EXACT_SEEK:
            for _ in _read_blocks(file, path, start):
                pass
        else:
            file.seek(start)
        blocks = list(_read_blocks(file, path, end - start))
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: damaged: {error.error_string} between frames {start} and {end}"
        ) from error
    waveform = np.concatenate(blocks)
    if not np.isfinite(waveform).all():
        raise AudioError(f"{path}: has NaN or infinite samples between frames {start} and {end}")
    return waveform


def _read_blocks(
    file: soundfile.SoundFile, path: Path | str | SoundBytes, num_frames: int
) -> Iterator[Waveform]:
    """Mono blocks `[<= _BLOCK_FRAMES]` that add up to `num_frames`."""
    missing = num_frames
    while missing > 0:
        block = file.read(min(missing, _BLOCK_FRAMES), dtype="float32", always_2d=True)  # [T, C]
        if block.shape[0] == 0:
            raise AudioError(
                f"{path}: damaged or cut short: its header promises {file.frames} frames, "
                f"{missing} of the {num_frames} asked for could not be read"
            )
        missing -= block.shape[0]
        yield block[:, 0] if file.channels == 1 else block.mean(axis=1)


def check_samples(waveform: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """Float samples as they are; ValueError for integers, which would be far too loud as floats."""
    waveform = np.asarray(waveform)
    if waveform.dtype.kind != "f":
        raise ValueError(
            f"the waveform has dtype {waveform.dtype}; give float samples in [-1, 1] "
            "(16-bit samples divided by 32768)"
        )
    return waveform


def _check_waveform(waveform: npt.NDArray[np.floating]) -> Waveform:
    """The waveform as float32 `[T]` with T >= 1."""
    waveform = check_samples(waveform)
    if waveform.ndim != 1 or waveform.shape[0] == 0:
        raise ValueError(
            f"a waveform must be mono [T] with at least one sample, got shape {waveform.shape}"
        )
    return waveform.astype(np.float32, copy=False)
