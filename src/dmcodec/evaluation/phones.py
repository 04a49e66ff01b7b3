"""Which phones a text has, and when each is spoken: PocketSphinx's dictionary and alignment."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmcodec.audio import Waveform, resample
from dmcodec.evaluation.intelligibility import make_normalizer
from dmcodec.evaluation.requirements import import_package
from dmcodec.quality import Unmeasurable

_RATE = 16_000
_FRAMES_PER_S = 100
NOT_SPEECH = -1
"""Label of frames without a phone: silence and noise."""


@dataclass(frozen=True)
class Phone:
    """One phone (CMU symbols); times count frames of 10 ms."""

    name: str
    start: int
    num_frames: int


class PhoneAligner:
    """Aligns texts whose words are all in the CMU dictionary."""

    def __init__(self) -> None:
        package = import_package("pocketsphinx", "phone alignment")
        # With its best-path search the second pass fails on most clips.
        self._decoder = package.Decoder(samprate=_RATE, loglevel="FATAL", lm=None, bestpath=False)
        self._normalize = make_normalizer("basic")

    def pronounce(self, text: str) -> tuple[str, ...]:
        """The phones of a text, each word as the dictionary has it first, without silences.

        Unmeasurable when a word is unknown or there is none.
        """
        found = [(word, self._decoder.lookup_word(word)) for word in self._normalize(text).split()]
        unknown = [word for word, phones in found if phones is None]
        if unknown or not found:
            raise Unmeasurable(f"phones: no pronunciation of {unknown[:1] or 'an empty text'}")
        return tuple(phone for _, phones in found for phone in phones.split())

    def align(self, waveform: Waveform, sample_rate: int, text: str) -> list[Phone]:
        """The phones of a waveform [T] that says `text`, silence included.

        Unmeasurable when a word is unknown or the alignment fails.
        """
        self.pronounce(text)
        words = self._normalize(text).split()
        signal = resample(waveform, sample_rate, _RATE)
        data = np.clip(np.round(signal * 32768), -32768, 32767).astype("<i2").tobytes()
        try:
            self._decoder.set_align_text(" ".join(words))
            self._decoder.reinit_feat()
            self._pass(data)
            self._decoder.set_alignment()
            self._pass(data)
        except RuntimeError as problem:
            raise Unmeasurable("phones: the text could not be aligned") from problem
        return [Phone(p.name, p.start, p.duration) for p in self._decoder.get_alignment().phones()]

    def _pass(self, data: bytes) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(data, full_utt=True)
        self._decoder.end_utt()


def dump_phones(phones: Sequence[Phone]) -> str:
    """Phones as JSON, for the cache."""
    return json.dumps([[p.name, p.start, p.num_frames] for p in phones])


def load_phones(text: str) -> list[Phone]:
    """The inverse of `dump_phones`."""
    return [Phone(name, start, num_frames) for name, start, num_frames in json.loads(text)]


def label_frames(
    phones: Sequence[Phone], inventory: dict[str, int], frame_rate: float, num_frames: int
) -> NDArray[np.int64]:
    """The number of the phone at the middle of each code frame [L]; NOT_SPEECH elsewhere.

    Args:
        phones: of one clip.
        inventory: phone -> number; phones that are new are added.
        frame_rate: of the codes, Hz.
        num_frames: L.
    """
    labels = np.full(num_frames, NOT_SPEECH, dtype=np.int64)
    middles = (np.arange(num_frames) + 0.5) / frame_rate * _FRAMES_PER_S
    for phone in phones:
        if phone.name.isalpha() and phone.name != "SIL":  # noise is written +SPN+
            inside = (middles >= phone.start) & (middles < phone.start + phone.num_frames)
            labels[inside] = inventory.setdefault(phone.name, len(inventory))
    return labels
