"""Which phones a text has, and when each is spoken: PocketSphinx's dictionary and alignment."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dmcodec.audio import Waveform, resample
from dmcodec.config import parse_json
from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.words import make_normalizer
from dmcodec.pretrained.sphinx import FRAMES_PER_S, Sphinx, SphinxError, SpokenPhone

_RATE = 16_000
NOT_SPEECH = -1
"""Label of frames without a phone: silence and noise."""


class PhoneAligner:
    """Aligns texts whose words are all in the CMU dictionary."""

    def __init__(self) -> None:
        # With its best-path search the second pass fails on most clips.
        self._sphinx = Sphinx("phone alignment", {"lm": None, "bestpath": False})
        self._normalize = make_normalizer("basic")

    def pronounce(self, text: str) -> tuple[str, ...]:
        """The phones of a text, each word as the dictionary has it first, without silences.

        Unmeasurable when a word is unknown or there is none.
        """
        found = {word: self._sphinx.pronounce(word) for word in self._normalize(text).split()}
        unknown = [word for word, phones in found.items() if phones is None]
        if unknown or not found:
            raise Unmeasurable(f"phones: no pronunciation of {unknown[:1] or 'an empty text'}")
        words = self._normalize(text).split()
        return tuple(phone for word in words for phone in found[word] or ())

    def align(self, waveform: Waveform, sample_rate: int, text: str) -> list[SpokenPhone]:
        """The phones of a waveform [T] that says `text`, silence included.

        Unmeasurable when a word is unknown or the alignment fails.
        """
        self.pronounce(text)
        words = self._normalize(text).split()
        try:
            return self._sphinx.align_phones(resample(waveform, sample_rate, _RATE), words)
        except SphinxError as problem:
            raise Unmeasurable("phones: the text could not be aligned") from problem


def dump_phones(phones: Sequence[SpokenPhone]) -> str:
    """Phones as JSON, for the cache."""
    return json.dumps([[p.name, p.start, p.num_frames] for p in phones])


def load_phones(text: str) -> list[SpokenPhone]:
    """The inverse of `dump_phones`."""
    try:
        return [
            SpokenPhone(str(name), int(start), int(count))
            for name, start, count in parse_json(text)
        ]
    except (ValueError, TypeError) as error:
        raise ValueError(f"phones in the cache are damaged, remove it: {error}") from error


def label_frames(
    phones: Sequence[SpokenPhone], inventory: dict[str, int], frame_rate: float, num_frames: int
) -> NDArray[np.int64]:
    """The number of the phone at the middle of each code frame [L]; NOT_SPEECH elsewhere.

    Args:
        phones: of one clip.
        inventory: phone -> number; phones that are new are added.
        frame_rate: of the codes, Hz.
        num_frames: L.
    """
    labels = np.full(num_frames, NOT_SPEECH, dtype=np.int64)
    middles = (np.arange(num_frames) + 0.5) / frame_rate * FRAMES_PER_S
    for phone in phones:
        if phone.name.isalpha() and phone.name != "SIL":  # noise is written +SPN+
            inside = (middles >= phone.start) & (middles < phone.start + phone.num_frames)
            labels[inside] = inventory.setdefault(phone.name, len(inventory))
    return labels
