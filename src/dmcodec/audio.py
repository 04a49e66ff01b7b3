"""Sound files to waveforms and back: read, write, downmix, resample, remove DC, exact lengths.

The house's one door to sound files, whose kinds are known to the room `sound`; soxr is known here
alone. No torch, no manifests, no training data: a waveform is a float32 numpy array `[T]`, mono,
nominally in [-1, 1].
"""

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile
import soxr  # type: ignore[import-untyped]

from dmcodec.sound import AudioError as AudioError
from dmcodec.sound import SoundBytes as SoundBytes
from dmcodec.sound.files import AUDIO_SUFFIXES as AUDIO_SUFFIXES
from dmcodec.sound.files import Sound, SoundStream, open_sound
from dmcodec.sound.folders import find_audio_files as find_audio_files
from dmcodec.storage import open_whole

Waveform = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
MAX_SAMPLE_RATE = 1_000_000
"""Hz; no sound has more. Rates above it are damage, and would ask for any amount of memory."""
PART_SECONDS = 600.0
"""Of sound that is held at a time. So many that formats without seeking (MP3, Ogg) are not decoded
over and over."""
MAX_PEAK = 100.0
"""Above it (40 dB over full scale) samples are integers that nobody divided, or damaged."""

# Half the length of soxr's HQ filter at equal rates, rounded up; it grows with the ratio of the
# rates when going down. Measured: a slice then differs from the whole by less than 1e-6.
_FILTER_MARGIN = 256
_WRITE_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a sound file holds; `num_samples` counts per channel, as stored."""

    sample_rate: int
    num_channels: int
    num_samples: int

    def num_samples_at(self, sample_rate: int) -> int:
        """Samples that `read_audio(path, sample_rate=sample_rate)` returns."""
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)


def audio_info(path: Path | str | SoundBytes) -> AudioInfo:
    """Rate, channels and length of a sound file, from its header where that knows them.

    MPEG frames and Ogg pages are counted; files that FFmpeg reads, and FLAC files of unknown
    length, are decoded for it.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: the file is damaged, cut short, empty, or no sound file.
    """
    with closing(open_sound(_as_sound(path))) as stream:
        return AudioInfo(stream.sample_rate, stream.num_channels, stream.num_samples)


def hold_pipe(path: Path | str | SoundBytes) -> Path | SoundBytes:
    """What a named pipe holds, which can be read once only; other paths as they are."""
    if not isinstance(path, SoundBytes) and Path(path).is_fifo():
        return SoundBytes(str(path), Path(path).read_bytes())
    return _as_sound(path)


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
    that formats without exact seeking (Ogg, MP3, telephone codecs, what FFmpeg reads) are decoded
    from their beginning. Files that were joined end to end are read as one. Float files and decoded
    MP3 may exceed full scale up to `MAX_PEAK`; nothing is clipped here.

    Args:
        path: the file, a pipe, or bytes; the content decides the format, not the suffix.
        sample_rate: of the result, in Hz.
        start_samples: first sample of the slice, counted at `sample_rate`.
        num_samples: length of the slice, counted at `sample_rate`; None means to the end.

    Returns:
        float32 `[T]`.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: damaged, cut short, empty, no sound file, or holds samples that are no sound:
            NaN, infinite or beyond `MAX_PEAK`.
        ValueError: the slice is not inside the file.
    """
    sound, sample_rate = hold_pipe(path), whole_rate(sample_rate)
    with closing(open_sound(sound)) as stream:
        file_rate = stream.sample_rate
        total = resampled_length(stream.num_samples, file_rate, sample_rate)
        end = total if num_samples is None else start_samples + num_samples
        if not 0 <= start_samples < end <= total:
            raise ValueError(
                f"{path}: asked for samples {start_samples} to {end} at {sample_rate} Hz, "
                f"the file has {total}; ask for at least one sample inside it"
            )
        if file_rate == sample_rate:
            return _read_mono(stream, sound, start_samples, end)

        # A slice may only begin where a sample of the file and one of the result coincide,
        # which is every `down` samples of the file and every `up` samples of the result.
        divisor = math.gcd(file_rate, sample_rate)
        down, up = file_rate // divisor, sample_rate // divisor
        margin = _FILTER_MARGIN * max(1, -(-file_rate // sample_rate))
        first_period = max(0, start_samples // up - -(-margin // down))
        source_end = min(stream.num_samples, -(-end * down // up) + margin)
        source = _read_mono(stream, sound, first_period * down, source_end)
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

    Samples beyond full scale, up to `MAX_PEAK`, are clipped, never wrapped. What `read_audio` gives
    for a 16-bit mono file is written back unchanged. The file appears whole: it is written under a
    temporary name in the same folder, then renamed over any older one.

    Args:
        path: ends in .wav or .flac; its folder exists.
        waveform: `[T]`, at least one sample, of float dtype; a tensor on the CPU will do.
        sample_rate: in Hz.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written.
        ValueError: another suffix, rank or dtype, no samples, or some that are no sound: NaN,
            infinite or beyond `MAX_PEAK`.
    """
    write_audio_blocks(path, [_check_waveform(waveform)], sample_rate)


def dump_wav(waveform: npt.NDArray[np.floating], sample_rate: int) -> bytes:
    """A mono waveform `[T]` as the bytes of a WAV file of floats: nothing is rounded."""
    buffer = io.BytesIO()
    soundfile.write(buffer, _check_waveform(waveform), sample_rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def dump_wav_16(waveform: npt.NDArray[np.floating], sample_rate: int) -> bytes:
    """A mono waveform `[T]` as the bytes that `write_audio` writes into a WAV file."""
    buffer = io.BytesIO()
    integers = to_int16(_check_waveform(waveform))
    soundfile.write(buffer, integers, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def wav_head_16(sample_rate: int) -> bytes:
    """What goes before `dump_pcm_16` of mono in a WAV file of unknown length.

    It states the largest size, as programs write to pipes.
    """
    unknown = (0xFFFFFFFF).to_bytes(4, "little")
    rate, byte_rate = sample_rate.to_bytes(4, "little"), (2 * sample_rate).to_bytes(4, "little")
    shape = b"\x10\0\0\0\x01\0\x01\0" + rate + byte_rate + b"\x02\0\x10\0"
    return b"RIFF" + unknown + b"WAVEfmt " + shape + b"data" + unknown


def to_int16(waveform: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """The nearest 16-bit samples; those beyond full scale are clipped. Any shape."""
    return np.clip(np.round(waveform * 32768.0), -32768, 32767).astype(np.int16)


def from_int16(samples: npt.NDArray[np.integer]) -> Waveform:
    """16-bit samples as float32 in [-1, 1), exactly. Any shape."""
    return samples.astype(np.float32) / np.float32(32768)


def dump_pcm_16(waveform: npt.NDArray[np.floating]) -> bytes:
    """`to_int16` as raw little-endian bytes, as programs take it through pipes."""
    return to_int16(waveform).astype("<i2").tobytes()


def write_audio_blocks(
    path: Path | str, blocks: Iterable[npt.NDArray[np.floating]], sample_rate: int = SAMPLE_RATE
) -> None:
    """`write_audio` of a waveform that comes in consecutive blocks `[T_i]`: memory stays bounded.

    When a block is refused, or asking for one raises, no file is left and an older one stays.
    """
    path, sample_rate = Path(path), whole_rate(sample_rate)
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
                    problem = find_problem(block) if block.size else None
                    if problem is not None:
                        raise ValueError(f"{path}: the waveform {problem}; not written")
                    file.write(to_int16(block))
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


def resample(waveform: npt.NDArray[np.floating], from_rate: float, to_rate: float) -> Waveform:
    """The waveform `[T]` at another rate (soxr HQ): exactly `resampled_length` samples, float32.

    Sample 0 stays at time 0; outside its ends the waveform counts as silence.
    """
    waveform = _check_waveform(waveform)
    from_rate, to_rate = whole_rate(from_rate), whole_rate(to_rate)
    length = resampled_length(waveform.shape[0], from_rate, to_rate)
    if from_rate == to_rate:
        return waveform
    # soxr rounds the length down for some inputs (one sample can give none): silence is appended,
    # enough for the missing samples, and cut off again.
    padding = 2 * max(1, -(-from_rate // to_rate))
    padded = np.pad(waveform, (0, padding))
    resampled: Waveform = soxr.resample(padded, from_rate, to_rate, quality="HQ")
    return resampled[:length]


class StreamResampler:
    """`resample` of a waveform that comes in blocks: the same samples, a little later.

    They equal those of the whole to 1e-6; the delay is that of the filter, about 20 ms at 16 kHz.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._from_rate, self._to_rate = from_rate, to_rate
        self._stream = (
            soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
            if from_rate != to_rate
            else None
        )
        self._num_in = self._num_out = 0

    def push(self, block: Waveform, *, is_last: bool = False) -> Waveform:
        """The samples that are ready after `block` [T], which may be empty."""
        if self._stream is None:
            return block
        self._num_in += len(block)
        if is_last:  # soxr rounds the length down: silence gives the last sample its due
            block = np.pad(block, (0, 2 * max(1, -(-self._from_rate // self._to_rate))))
        ready: Waveform = self._stream.resample_chunk(block, last=is_last)
        total = resampled_length(self._num_in, self._from_rate, self._to_rate)
        ready = ready[: total - self._num_out]
        self._num_out += len(ready)
        return ready


def whole_rate(sample_rate: float) -> int:
    """A sample rate as an int; ValueError for one that is no whole number of Hz."""
    if not float(sample_rate).is_integer():
        raise ValueError(f"a sample rate is a whole number of Hz, got {sample_rate}")
    return int(sample_rate)


def resampled_length(num_samples: int, from_rate: float, to_rate: float) -> int:
    """`ceil(num_samples * to_rate / from_rate)`: one sample stays at least one sample."""
    from_rate, to_rate = whole_rate(from_rate), whole_rate(to_rate)
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


def _as_sound(path: Path | str | SoundBytes) -> Sound:
    return path if isinstance(path, SoundBytes) else Path(path)


def _read_mono(stream: SoundStream, sound: Sound, start: int, end: int) -> Waveform:
    """Samples [start, end) of an open file, channels averaged: float32 `[end - start]`."""
    waveform = np.concatenate(list(stream.blocks(start, end)))
    problem = find_problem(waveform)
    if problem is not None:
        raise AudioError(f"{sound}: {problem} between frames {start} and {end}")
    return waveform


def find_problem(waveform: npt.NDArray[np.floating]) -> str | None:
    """Why these samples cannot be sound, as the end of a sentence about them; None: they can."""
    lowest, highest = float(waveform.min()), float(waveform.max())  # NaN where there is one
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return "has NaN or infinite samples"
    peak = max(highest, -lowest)
    if peak > MAX_PEAK:
        return (
            f"has samples up to {peak:.4g}, where full scale is 1 (16-bit samples are divided by "
            "32768)"
        )
    return None


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
