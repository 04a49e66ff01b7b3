"""The waveform of an utterance: from a sound file, a segment of one, or a container of many.

What utterances there are is known to manifest.py, what is in a container to containers.py.
"""

from pathlib import Path

from dmcodec.audio import (
    SAMPLE_RATE,
    SoundBytes,
    Waveform,
    audio_info,
    read_audio,
    samples_to_seconds,
)
from dmcodec.containers import read_table_sound, read_tar_sound
from dmcodec.manifest import Utterance

# A manifest's seconds with two decimals may end a segment so much after its file.
_SEGMENT_TOLERANCE_S = 0.01


def measure(utterance: Utterance, sample_rate: int = SAMPLE_RATE) -> int:
    """Samples of the utterance at `sample_rate`, from the header of its sound file."""
    sound = open_sound(utterance)
    total = audio_info(sound).num_samples_at(sample_rate)
    start, end = _span(utterance, total, sample_rate)
    return end - start


def read_utterance(
    utterance: Utterance,
    *,
    sample_rate: int = SAMPLE_RATE,
    start_samples: int = 0,
    num_samples: int | None = None,
    max_samples: int | None = None,
) -> Waveform:
    """The utterance, or a slice of it, as a mono waveform [T]; see `dmcodec.audio.read_audio`.

    A segment may end up to 10 ms after its file, as rounded seconds do: it ends with the file
    then. The slice counts from the utterance's first sample. An utterance longer than
    `max_samples` is refused before it is decoded.

    Raises FileNotFoundError, AudioError, or ValueError where a segment or slice is not inside.
    """
    sound = open_sound(utterance)
    if utterance.start_samples is None and max_samples is None:  # reads the header once only
        return read_audio(
            sound, sample_rate=sample_rate, start_samples=start_samples, num_samples=num_samples
        )
    first, end = _span(utterance, audio_info(sound).num_samples_at(sample_rate), sample_rate)
    if max_samples is not None and end - first > max_samples:
        raise ValueError(
            f"{sound}: lasts {samples_to_seconds(end - first, sample_rate):.1f} s, more than the "
            f"{samples_to_seconds(max_samples, sample_rate):g} s allowed"
        )
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
    name = f"{path}[{utterance.id}]"
    read = read_tar_sound if path.suffix.lower() == ".tar" else read_table_sound
    return SoundBytes(name, read(path, entry))


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
