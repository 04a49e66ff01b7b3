"""Words with their times: what a finder of words is, and times read from a file.

Every finder takes a waveform [T] at `TIME_RATE` and gives words in order. The models that find
words are in recognizers.py, what the language model makes of them in text.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from dmcodec.audio import Waveform, seconds_to_samples
from dmcodec.config import Record, parse_json
from dmcodec.teachers.alignment import Word


class SttConfig(Record):
    """Where words and their times come from.

    Attributes:
        kind: a Hugging Face CTC model, a Hugging Face Whisper model, pocketsphinx (US English,
            carries its model), or a file of word times.
        model: name or folder for "ctc" and "whisper". For "pocketsphinx", optionally, a Whisper
            that recognizes what has no text: its words are better, pocketsphinx's times are.
        use_transcripts: utterances whose manifest has a text get this text, with times from
            forced alignment by the model ("ctc", "pocketsphinx"); others are recognized.
        language: for multilingual Whisper models, such as "en"; None: the model finds out.
        word_times: for "given": JSONL with `id` and `words` (`text`, `start_s`, `end_s`; null for
            a word that lies on no frame but is read with the others), or a CTM file (id, channel,
            start, duration, word).
    """

    kind: Literal["ctc", "whisper", "pocketsphinx", "given"] = "ctc"
    model: str | None = None
    use_transcripts: bool = False
    language: str | None = None
    word_times: Path | None = Field(None, description="for kind = given")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model is None and self.kind in ("ctc", "whisper"):
            raise ValueError(f"stt.model is needed for kind {self.kind}")
        if self.model is not None and self.kind == "given":
            raise ValueError("stt.model is not used by kind given")
        if (self.word_times is not None) != (self.kind == "given"):
            raise ValueError("stt.word_times is needed for kind given, and only there")
        if self.use_transcripts and self.kind not in ("ctc", "pocketsphinx"):
            raise ValueError(f"stt.use_transcripts: {self.kind} cannot align a given text")
        if self.language is not None and (self.model is None or self.kind == "ctc"):
            raise ValueError("stt.language is for Whisper models")
        return self


class WordFinder(Protocol):
    """Finds the words of a recording."""

    def find(self, waveform: Waveform, text: str | None, utterance_id: str) -> list[Word]:
        """Words in order; none for silence. Raises AlignmentError for a text that does not fit."""
        ...


class GivenWords:
    """Words from a file; utterances that it does not name are errors."""

    def __init__(self, words: Mapping[str, list[Word]]) -> None:
        self._words = words

    def find(self, waveform: Waveform, text: str | None, utterance_id: str) -> list[Word]:
        """The words of that utterance."""
        if utterance_id not in self._words:
            raise ValueError(f"the file of word times has no words of {utterance_id!r}")
        return self._words[utterance_id]


def read_word_times(path: Path) -> dict[str, list[Word]]:
    """Words by utterance from JSONL or CTM; each utterance's words ordered by their start.

    Words without times stay behind the word that they follow.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of word times")
    words: dict[str, list[Word]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip() or line.startswith(b";;"):
            continue
        try:
            if path.suffix == ".jsonl":
                entry = parse_json(line)
                found = words.setdefault(str(entry["id"]), [])
                found += [_timed(w["text"], w["start_s"], w["end_s"]) for w in entry["words"]]
            else:
                utterance_id, _, start, duration, text, *_ = line.decode().split()
                end = float(start) + float(duration)
                words.setdefault(utterance_id, []).append(_timed(text, start, end))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}:{number}: no word times: {error}") from error
    return {key: _in_order(each) for key, each in words.items()}


def _in_order(words: Sequence[Word]) -> list[Word]:
    places, last = [], 0.0
    for word in words:
        last = word.start_samples if word.is_timed else last
        places.append(last)
    return [words[index] for index in sorted(range(len(words)), key=places.__getitem__)]


def _timed(text: str, start_s: float | str | None, end_s: float | str | None) -> Word:
    if start_s is None or end_s is None:
        return Word(str(text))
    start, end = seconds_to_samples(float(start_s)), seconds_to_samples(float(end_s))
    if end < start:
        raise ValueError(f"{text!r} ends before it begins")
    return Word(str(text), start, end)
