"""Text normalization, counts of word errors, and what a recognizer wrote when it heard nothing."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dmcodec.audio import SAMPLE_RATE, Waveform
from dmcodec.metrics.measure import Group, ModelChoice, Original, Unmeasurable, rate
from dmcodec.metrics.recognizers import (
    check_recognizer,
    load_recognizer,
    recognizer_identity,
    recognizer_modules,
)
from dmcodec.packages import import_package
from dmcodec.spelling import bare_words

Normalizer = Literal["basic", "whisper"]

_MAX_COMPRESSION = 2.4


def make_normalizer(name: Normalizer) -> Callable[[str], str]:
    """The function that both texts of a comparison go through.

    "basic": Unicode NFKC, lower case, everything but letters with their marks, digits and
    apostrophes inside words becomes a space; signs that are not seen (soft hyphens, joiners) are
    left out. "whisper": the English normalizer of the Whisper paper (contractions written
    out, numbers as digits, spelling kept), for recognizers that write numbers and punctuation.
    """
    if name == "whisper":
        module = import_package(
            "transformers.models.whisper.english_normalizer", "the normalizer whisper"
        )
        normalizer: Any = module.EnglishTextNormalizer({})
        return lambda text: str(normalizer(text)).strip()
    return bare_words


def is_repetitive(text: str) -> bool:
    """Whether a recognizer went round in circles: the text shrinks to less than 1 / 2.4.

    Reference: Radford et al. 2022, arXiv:2212.04356, sec. 4.5.
    """
    data = text.encode()
    return len(data) > _MAX_COMPRESSION * len(zlib.compress(data))


@dataclass(frozen=True)
class ErrorCounts:
    """Hits, substitutions, deletions and insertions of one aligned pair of texts."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        """Words or characters of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def hypothesis_length(self) -> int:
        """Words or characters of the hypothesis."""
        return self.hits + self.substitutions + self.insertions

    def as_tuple(self) -> tuple[int, int, int, int]:
        """Hits, substitutions, deletions, insertions."""
        return self.hits, self.substitutions, self.deletions, self.insertions

    @property
    def error_rate(self) -> float:
        """Errors per word (or character) of the reference; may exceed 1."""
        return self.errors / self.reference_length

    @property
    def information_lost(self) -> float:
        """WIL, 0 to 1; 1 when nothing was recognized.

        Reference: Morris et al. 2004, doi:10.21437/Interspeech.2004-668.
        """
        if self.hypothesis_length == 0:
            return 1.0
        return 1 - self.hits**2 / (self.reference_length * self.hypothesis_length)


def count_errors(reference: str, hypothesis: str) -> tuple[ErrorCounts, ErrorCounts]:
    """Errors in words and in characters between two normalized texts, through jiwer.

    An empty hypothesis is all deletions. An empty reference has no rate: Unmeasurable.
    """
    if not reference:
        raise Unmeasurable("word errors: the reference text is empty")
    jiwer = import_package("jiwer", "WER")
    return _counts(jiwer.process_words(reference, hypothesis)), _counts(
        jiwer.process_characters(reference, hypothesis)
    )


def _counts(output: Any) -> ErrorCounts:
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)


def _transcribe(original: Original, estimate: Waveform) -> str:
    """What the recognizer hears; errors are counted when rows are put together."""
    recognizer = original.models.get(load_recognizer, original.config.recognizer)
    return recognizer.transcribe(estimate, SAMPLE_RATE)


WORDS = Group(
    "words",
    (
        rate("wer", "WER", "word errors per word of the transcript", is_main=True),
        rate(
            "wil", "WIL", "word information lost against the transcript",
            pooling="information_lost", is_main=True,
        ),
        rate("cer", "CER", "character errors per character of the transcript"),
        rate(
            "wer_own", "WER own", "word errors against the recognizer's words for the original",
            is_main=True, has_chart=True,
        ),
        rate("cer_own", "CER own", "character errors against the text of the original"),
    ),
    _transcribe,
    modules=("jiwer",),
    model=ModelChoice(
        "recognizer",
        identity=lambda config: recognizer_identity(config.recognizer),
        modules=lambda config: recognizer_modules(config.recognizer),
        check=lambda config: check_recognizer(config.recognizer),
    ),
    uses_original=False,
    is_slow=True,
    hears_text=True,
)  # fmt: skip
