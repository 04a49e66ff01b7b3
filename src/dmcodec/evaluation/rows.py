"""One row for each system and clip: scores, reasons for missing ones, counts, bits and times."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dmcodec.config import Record
from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.workspace import CachedScores, SoundRecord
from dmcodec.metrics.measure import Measure, Unmeasurable
from dmcodec.metrics.registry import GROUPS, MEASURES
from dmcodec.metrics.words import ErrorCounts, count_errors


class Row(Record):
    """What is known of one clip of one system.

    `scores` holds what could be computed, `missing` the reason for everything else that was asked
    for. `counts` are hits, substitutions, deletions and insertions of `wer`, `cer`, `wer_own`,
    `cer_own` and `content_per`. Samples are at 16 kHz.
    """

    system: str
    id: str
    speaker: str | None
    corpus: str | None
    num_samples: int
    scores: dict[str, float]
    missing: dict[str, str]
    counts: dict[str, tuple[int, int, int, int]]
    transcript: str | None = None
    num_bits: int | None = None
    encode_s: float | None = None
    decode_s: float | None = None
    length_difference_samples: int | None = None
    is_silent: bool = False


class WordContext(NamedTuple):
    """What word errors of a clip are counted against.

    original_transcript: what the recognizer heard in the original; None when it failed there.
    """

    normalize: Callable[[str], str]
    original_transcript: str | None


def make_row(
    system: str,
    utterance: Utterance,
    num_samples: int,
    sound: SoundRecord | None,
    results: Mapping[str, CachedScores | str],
    words: WordContext | None,
    *,
    is_original_silent: bool = False,
) -> Row:
    """Puts a row together.

    Args:
        system: its name.
        utterance: the clip.
        num_samples: of the original.
        sound: the record of the reconstruction; None when there is none.
        results: group -> its scores, or the reason why the whole group is missing.
        words: None when the group "words" was not asked for.
        is_original_silent: then a silent reconstruction is none to count.
    """
    scores: dict[str, float] = {}
    missing: dict[str, str] = {}
    counts: dict[str, tuple[int, int, int, int]] = {}
    transcript = None
    for group, result in results.items():
        if isinstance(result, str):
            missing |= dict.fromkeys(GROUPS[group].names, result)
        elif not GROUPS[group].hears_text:
            scores |= result.values
            missing |= result.missing
            if result.counts is not None:
                counts |= dict.fromkeys(result.values, result.counts)
        elif result.text is None:
            missing |= dict.fromkeys(GROUPS[group].names, result.missing["transcript"])
        elif words is not None:
            transcript = result.text
            _count_words(utterance.text, result.text, words, scores, missing, counts)
    return Row(
        system=system,
        id=utterance.id,
        speaker=utterance.speaker,
        corpus=utterance.corpus,
        num_samples=num_samples,
        scores={name: scores[name] for name in MEASURES if name in scores},
        missing=missing,
        counts=counts,
        transcript=transcript,
        num_bits=sound.num_bits if sound else None,
        encode_s=sound.encode_s if sound else None,
        decode_s=sound.decode_s if sound else None,
        length_difference_samples=sound.length_difference_samples if sound else None,
        # Silence that comes out silent is no failure.
        is_silent=sound is not None and sound.is_silent and not is_original_silent,
    )


def _count_words(
    text: str | None,
    transcript: str,
    words: WordContext,
    scores: dict[str, float],
    missing: dict[str, str],
    counts: dict[str, tuple[int, int, int, int]],
) -> None:
    """Adds the word measures of one clip to `scores`, `missing` and `counts`."""
    heard = words.normalize(transcript)
    references = {
        "": (text, "the manifest has no text for this clip"),
        "_own": (words.original_transcript, "the original was not transcribed"),
    }
    for suffix, (reference, reason) in references.items():
        names = [f"wer{suffix}", f"cer{suffix}"] + (["wil"] if not suffix else [])
        try:
            if reference is None:
                raise Unmeasurable(reason)
            in_words, in_characters = count_errors(words.normalize(reference), heard)
        except Unmeasurable as problem:
            missing |= dict.fromkeys(names, str(problem))
            continue
        for unit, errors in (("wer", in_words), ("cer", in_characters)):
            scores[unit + suffix] = errors.error_rate
            counts[unit + suffix] = errors.as_tuple()
        if not suffix:
            scores["wil"] = in_words.information_lost


def components(row: Row, measure: Measure) -> tuple[float, float, float] | None:
    """What a row adds to the pooled figure of a measure; None when the measure is missing.

    Sums of these over clips are what `statistics` turns into a figure: (value, 1, 0) for means,
    (errors, words, 0) for error rates, (hits, words, heard words) for WIL.
    """
    if measure.name not in row.scores:
        return None
    if measure.pooling == "mean":
        return row.scores[measure.name], 1.0, 0.0
    counts = ErrorCounts(*row.counts["wer" if measure.name == "wil" else measure.name])
    if measure.pooling == "errors":
        return float(counts.errors), float(counts.reference_length), 0.0
    return float(counts.hits), float(counts.reference_length), float(counts.hypothesis_length)
