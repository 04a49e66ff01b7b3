"""CMU PocketSphinx with the US-English model that its package carries: words, alignment, phones.

Needs no network. Far from today's recognizers, but its forced alignment finds word edges better
than Whisper's attention does, which has no place for pauses.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dmcodec.audio import Waveform, dump_pcm_16
from dmcodec.packages import import_package

SAMPLE_RATE = 16_000
FRAMES_PER_S = 100
_FRAME_SAMPLES = SAMPLE_RATE // FRAMES_PER_S


class SphinxError(ValueError):
    """A text that cannot be laid over a recording."""


class SpokenWord(NamedTuple):
    """A word in lower case and when it is spoken: samples [start, end)."""

    text: str
    start_samples: int
    end_samples: int


class SpokenPhone(NamedTuple):
    """A phone (CMU symbols, `SIL` and `+...+` for what is none); times count frames of 10 ms."""

    name: str
    start: int
    num_frames: int


class Sphinx:
    """One decoder; each recording is heard by itself: what was learnt of earlier ones is forgotten.

    Args:
        purpose: what needs the package, for the message of MissingPackage.
        settings: of the package's decoder, such as bounds of its search.
    """

    def __init__(self, purpose: str, settings: Mapping[str, Any] = MappingProxyType({})) -> None:
        package = import_package("pocketsphinx", purpose)
        self._decoder = package.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL", **settings)
        # Without a language model (lm None, which loads faster) there is nothing to go back to.
        has_words = settings.get("lm", True) is not None
        self._recognition = self._decoder.current_search() if has_words else None

    def recognize(self, waveform: Waveform) -> list[SpokenWord]:
        """The words that are heard in a waveform [T] at 16 kHz, without silence and noise."""
        assert self._recognition is not None, "this decoder has no language model"
        self._decoder.activate_search(self._recognition)
        self._run(waveform)
        return self._words()

    def align(self, waveform: Waveform, words: Sequence[str]) -> list[SpokenWord]:
        """When known words are spoken in a waveform [T]; SphinxError when they do not fit."""
        self._set_text(words)
        self._try(waveform)
        found = self._words()
        if [word.text for word in found] != list(words):
            raise SphinxError("pocketsphinx found no way to lay the text over the recording")
        return found

    def align_phones(self, waveform: Waveform, words: Sequence[str]) -> list[SpokenPhone]:
        """The phones of known words in a waveform [T], silence included."""
        self._set_text(words)
        self._try(waveform)
        try:
            self._decoder.set_alignment()
        except RuntimeError as error:
            raise SphinxError(f"pocketsphinx: {error}") from error
        self._try(waveform)
        phones = self._decoder.get_alignment().phones()
        return [SpokenPhone(phone.name, phone.start, phone.duration) for phone in phones]

    def knows(self, word: str) -> bool:
        """Whether a word in lower case is in the dictionary."""
        return self._decoder.lookup_word(word) is not None

    def pronounce(self, word: str) -> list[str] | None:
        """The phones of a word in lower case as the dictionary has it first; None if it has not."""
        phones = self._decoder.lookup_word(word)
        return None if phones is None else str(phones).split()

    def learn(self, word: str, phones: str) -> None:
        """Adds a word with its pronunciation, phones between spaces."""
        self._decoder.add_word(word, phones, True)

    def _set_text(self, words: Sequence[str]) -> None:
        try:
            self._decoder.set_align_text(" ".join(words))
        except RuntimeError as error:
            raise SphinxError(f"pocketsphinx: {error}") from error

    def _try(self, waveform: Waveform) -> None:
        try:
            self._run(waveform)
        except RuntimeError as error:
            raise SphinxError(f"pocketsphinx: {error}") from error

    def _run(self, waveform: Waveform) -> None:
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(dump_pcm_16(waveform), full_utt=True)
        self._decoder.end_utt()

    def _words(self) -> list[SpokenWord]:
        if self._decoder.hyp() is None:
            return []
        return [
            SpokenWord(
                segment.word.split("(")[0],
                segment.start_frame * _FRAME_SAMPLES,
                (segment.end_frame + 1) * _FRAME_SAMPLES,
            )
            for segment in self._decoder.seg()
            if segment.word[0] not in "<[+"
        ]
