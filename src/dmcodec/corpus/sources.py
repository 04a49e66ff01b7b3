"""The waveform of an utterance: from a sound file, a segment of one, or a container of many.

What utterances there are is known to manifest.py, what is in a container to containers.py and
tables.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dmcodec.audio import (
    SAMPLE_RATE,
    SoundBytes,
    Waveform,
    audio_info,
    read_audio,
    read_parts,
)
from dmcodec.corpus.containers import read_ark_sound, read_tar_sound
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.tables import TABLE_SUFFIXES, read_table_sound

# A manifest's seconds with two decimals may end a segment so much after its file.
_SEGMENT_TOLERANCE_S = 0.01


class Source(NamedTuple):
    """Where the samples of an utterance are; nothing is decoded yet.

    sound: the file, or its bytes out of a container.
    start_samples, num_samples: the utterance in the file, at `sample_rate`.
    """

    sound: Path | SoundBytes
    sample_rate: int
    start_samples: int
    num_samples: int

    def read(self) -> Waveform:
        """The whole utterance as a mono waveform [T]; see `dmcodec.audio.read_audio`."""
        return read_audio(
            self.sound,
            sample_rate=self.sample_rate,
            start_samples=self.start_samples,
            num_samples=self.num_samples,
        )

    def read_parts(self) -> Iterator[Waveform]:
        """The utterance in consecutive parts; see `dmcodec.audio.read_parts`."""
        return read_parts(
            self.sound,
            sample_rate=self.sample_rate,
            start_samples=self.start_samples,
            num_samples=self.num_samples,
        )


def find_source(utterance: Utterance, sample_rate: int = SAMPLE_RATE) -> Source:
    """The utterance by the header of its sound file; raises as `read_utterance` does."""
    sound = open_sound(utterance)
    start, end = _span(utterance, audio_info(sound).num_samples_at(sample_rate), sample_rate)
    return Source(sound, sample_rate, start, end - start)


def measure(utterance: Utterance, sample_rate: int = SAMPLE_RATE) -> int:
    """Samples of the utterance at `sample_rate`, from the header of its sound file."""
    return find_source(utterance, sample_rate).num_samples


def read_utterance(
    utterance: Utterance,
    *,
    sample_rate: int = SAMPLE_RATE,
    start_samples: int = 0,
    num_samples: int | None = None,
) -> Waveform:
    """The utterance, or a slice of it, as a mono waveform [T]; see `dmcodec.audio.read_audio`.

    A segment may end up to 10 ms after its file, as rounded seconds do: it ends with the file
    then. The slice counts from the utterance's first sample.

    Raises FileNotFoundError, AudioError, or ValueError where a segment or slice is not inside.
    """
    sound = open_sound(utterance)
    if utterance.start_samples is None:  # reads the header once only
        return read_audio(
            sound, sample_rate=sample_rate, start_samples=start_samples, num_samples=num_samples
        )
    first, end = _span(utterance, audio_info(sound).num_samples_at(sample_rate), sample_rate)
    stop = end - first if num_samples is None else start_samples + num_samples
    if not 0 <= start_samples < stop <= end - first:
        raise ValueError(
            f"{sound}: asked for samples {start_samples} to {stop} of utterance "
            f"{utterance.id!r}, which has {end - first}"
        )
    return read_audio(
        sound,
        sample_rate=sample_rate,
        start_samples=first + start_samples,
        num_samples=stop - start_samples,
    )


def open_sound(utterance: Utterance) -> Path | SoundBytes:
    """The sound file that holds the utterance: its path, or its bytes out of a container."""
    path, entry = utterance.audio, utterance.entry
    if entry is None:
        return path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.name.lower().endswith(TABLE_SUFFIXES):
        sound = read_table_sound(path, entry)
        return sound if isinstance(sound, Path) else replace(sound, name=f"{path}[{utterance.id}]")
    read = read_ark_sound if path.suffix.lower() == ".ark" else read_tar_sound
    return SoundBytes(f"{path}[{utterance.id}]", read(path, entry))


def _span(utterance: Utterance, total: int, sample_rate: int) -> tuple[int, int]:
    """First sample of the utterance in its sound file of `total` samples, and the one after it."""
    if utterance.start_samples is None:
        return 0, total
    start = round(utterance.start_samples * sample_rate / SAMPLE_RATE)
    end = total
    if utterance.num_samples is not None:
        length = max(1, round(utterance.num_samples * sample_rate / SAMPLE_RATE))
        end = start + length
        if total < end <= total + _SEGMENT_TOLERANCE_S * sample_rate:
            end = total
    if not start < end <= total:
        raise ValueError(
            f"{utterance.audio}: the segment {utterance.id!r} is samples {start} to {end} at "
            f"{sample_rate} Hz, the file has {total}"
        )
    return start, end
