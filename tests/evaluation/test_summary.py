"""Rows, pooled figures and the tables made of them."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.report.tables import books_table, missing_notes, to_csv, to_markdown
from dmcodec.evaluation.rows import Row, WordContext, components, make_row
from dmcodec.evaluation.statistics import Bootstrap
from dmcodec.evaluation.summary import (
    CodesSummary,
    Figure,
    Summary,
    SystemSummary,
    measured_kbps,
    real_time_factors,
    summarize,
    summarize_differences,
    summarize_figures,
)
from dmcodec.evaluation.systems.system import ORIGINAL, SystemFacts
from dmcodec.evaluation.workspace import CachedScores, SoundRecord
from dmcodec.metrics.codes import book_statistics
from dmcodec.metrics.registry import MEASURES

SOUND = SoundRecord(key="k", sound_hash="h", num_samples=16_000, num_bits=4_000, encode_s=0.5,
                    decode_s=0.25)  # fmt: skip


def utterance(text: str | None = None, clip: str = "clip") -> Utterance:
    return Utterance(id=clip, audio="x.wav", speaker="s", text=text)


def scores(text: str | None = None, **values: float) -> CachedScores:
    return CachedScores(key="k", values=values, missing={}, text=text)


def row(clip: str, system: str = "x", **values: float) -> Row:
    missing = {"stoi": "STOI: too short"} if "stoi" not in values else {}
    result = CachedScores(key="k", values=values, missing=missing)
    return make_row(system, utterance(clip=clip), 16_000, SOUND, {"stoi": result}, None)


def test_words_are_counted_against_text_and_against_the_original() -> None:
    pytest.importorskip("jiwer", reason="pip install jiwer")
    words = WordContext(str.lower, "a b d")

    made = make_row("x", utterance("A B C"), 16_000, SOUND, {"words": scores("a b c e")}, words)

    assert made.scores["wer"] == pytest.approx(1 / 3)
    assert made.counts["wer"] == (3, 0, 0, 1)
    assert made.scores["wil"] == pytest.approx(1 - 9 / 12)
    assert made.scores["wer_own"] == pytest.approx(2 / 3)
    assert made.transcript == "a b c e"


def test_clip_without_text_has_no_wer_but_its_own_one() -> None:
    pytest.importorskip("jiwer", reason="pip install jiwer")

    made = make_row(
        "x", utterance(), 16_000, SOUND, {"words": scores("a")}, WordContext(str.lower, "a")
    )

    assert made.scores == {"wer_own": 0.0, "cer_own": 0.0}
    assert made.missing["wil"] == "the manifest has no text for this clip"


def test_what_was_not_reconstructed_is_missing_everywhere() -> None:
    made = make_row("x", utterance(), 16_000, None, {"stoi": "not reconstructed: broken"}, None)

    assert made.scores == {}
    assert set(made.missing.values()) == {"not reconstructed: broken"}
    assert set(made.missing) == {"stoi", "estoi"}


def test_pooled_error_rate_weighs_clips_by_their_words() -> None:
    pytest.importorskip("jiwer", reason="pip install jiwer")
    words = WordContext(str.lower, None)
    pairs = [("a b", "a x", "1"), ("a b c d e f", "a b c d e f", "2")]
    rows = [
        make_row("x", utterance(text, clip), 16_000, SOUND, {"words": scores(heard)}, words)
        for text, heard, clip in pairs
    ]

    figures = summarize_figures(rows, Bootstrap(), by_speaker=False)

    assert figures["wer"].estimate is not None
    assert figures["wer"].estimate.value == pytest.approx(1 / 8)
    assert components(rows[0], MEASURES["wil"]) == (1.0, 2.0, 2.0)
    assert figures["wer_own"].missing == {"the original was not transcribed": 2}


def test_means_say_how_many_clips_they_are_over() -> None:
    rows = [row("1", stoi=0.8), row("2", stoi=0.9), row("3")]

    figure = summarize_figures(rows, Bootstrap(), by_speaker=False)["stoi"]

    assert figure.estimate is not None
    assert figure.estimate.value == pytest.approx(0.85)
    assert figure.estimate.num_clips == 2
    assert figure.missing == {"STOI: too short": 1}


def test_differences_are_over_clips_that_both_have() -> None:
    ours = [row("1", stoi=0.8), row("2", stoi=0.9), row("3")]
    theirs = [row("2", stoi=0.7), row("1", stoi=0.7), row("3", stoi=0.1)]

    difference = summarize_differences(ours, theirs, Bootstrap(), by_speaker=False)["stoi"]

    assert difference.value == pytest.approx(0.15)
    assert difference.num_clips == 2
    assert difference.aso == 0.0


def test_lower_is_better_turns_the_stochastic_order_round() -> None:
    ours = [row(str(n), mcd=5.0 + n) for n in range(5)]
    theirs = [row(str(n), mcd=1.0 + n) for n in range(5)]

    difference = summarize_differences(ours, theirs, Bootstrap(), by_speaker=False)["mcd"]

    assert difference.value == pytest.approx(4.0)
    assert difference.aso == 1.0


def test_bitrate_and_real_time_factors_are_over_all_speech() -> None:
    rows = [row("1", stoi=0.8), row("2", stoi=0.9)]

    assert measured_kbps(rows) == pytest.approx(4.0)
    assert real_time_factors(rows) == (0.5, 0.25)
    assert measured_kbps([rows[0].model_copy(update={"num_bits": None})]) is None


@pytest.fixture
def summary() -> Summary:
    """Two systems; the second is never better and lacks a clip."""
    rows = {
        "one": [row("1", stoi=0.8), row("2", stoi=0.9)],
        "two|b": [row("1", stoi=0.7), row("2")],
    }
    bootstrap = Bootstrap()
    systems = [
        SystemSummary(
            name=name,
            facts=SystemFacts(identity="i", family="f", description="d", nominal_kbps=4.0),
            num_clips=2,
            num_silent=0,
            failed={},
            measured_kbps=None,
            encode_rtf=0.1,
            decode_rtf=None,
            first_packet_s=None,
            peak_memory_mb=None,
            codes=None,
            figures=summarize_figures(own, bootstrap, by_speaker=False),
            differences=summarize_differences(own, rows["one"], bootstrap, by_speaker=False)
            if name != "one"
            else {},
        )
        for name, own in rows.items()
    ]
    return Summary(
        about={"hash of clips": "abc"}, reference="one", confidence=0.95, systems=tuple(systems)
    )


def test_markdown_shows_intervals_counts_and_reasons(summary: Summary) -> None:
    text = to_markdown(summary)

    assert "| one | 4.00 | 0.850 [0.800, 0.900] |" in text
    assert "| two/b | 4.00 | 0.700 [0.700, 0.700] (n=1) |" in text
    assert "- STOI missing for 1 clips of two|b: STOI: too short" in text
    assert "| two/b | -0.100 [-0.100, -0.100], p<0.001, ε=1.00 |" in text
    assert "- hash of clips: abc" in text


def test_what_several_systems_lack_alike_is_said_once(summary: Summary) -> None:
    lacking = {
        name: Figure(estimate=None, missing={"too short": 2}) for name in ("pesq", "pesq_nb")
    }
    whole = summary.systems[0].figures
    three = [
        summary.systems[0].model_copy(update={"name": name, "figures": {**whole, **lacking}})
        for name in ("a", "b")
    ]
    three.append(
        summary.systems[0].model_copy(
            update={"name": "c", "num_silent": 1, "figures": {**whole, "pesq": whole["stoi"]}}
        )
    )
    # With a value somewhere, a measure is not among those that could not be computed at all.
    with_value = three[2].figures | {"pesq_nb": whole["stoi"]}
    three[2] = three[2].model_copy(update={"figures": with_value})
    full = summary.model_copy(update={"systems": tuple(three)})

    assert missing_notes(full) == [
        "1 reconstructions of c are silent: the low end of the scales",
        "PESQ-WB, PESQ-NB missing for 2 clips of a, b: too short",
    ]


def test_clips_that_a_recognizer_answers_with_nothing_or_in_circles_are_counted() -> None:
    heard = {"1": "a b c", "2": "", "3": "and so on " * 40}
    rows = [
        row(clip, ORIGINAL, stoi=0.8).model_copy(update={"transcript": heard[clip]})
        for clip in heard
    ]
    config = EvaluationConfig(manifests=(Path("clips.jsonl"),), systems=("x=opus:6",))

    (system,) = summarize(config, {}, ORIGINAL, {}, rows, {}).systems

    assert (system.num_unheard, system.num_repetitive) == (1, 1)
    text = missing_notes(Summary(about={}, reference="x", confidence=0.95, systems=(system,)))
    assert text[:2] == [
        "1 clips of original gave the recognizer no word: all are deletions",
        "1 clips of original made the recognizer repeat itself: scored so",
    ]


def test_books_of_a_codec_in_several_rows_are_listed_once(summary: Summary) -> None:
    codes = [np.array([[0, 1, 2, 3], [0, 0, 1, 1]])] * 2
    books = book_statistics(codes, 4)
    system = summary.systems[0]

    def with_books(first: int, last: int) -> SystemSummary:
        facts = system.facts.model_copy(update={"num_codebooks": 2, "first_codebook": first})
        held = CodesSummary(books=tuple(books[first - 1 : last]), phones=())
        return system.model_copy(update={"facts": facts, "codes": held})

    listed = [with_books(1, 2), with_books(1, 1), with_books(2, 2)]
    _, lines = books_table(summary.model_copy(update={"systems": tuple(listed)}))

    assert [line[:4] for line in lines] == [["f", "1", "100.0", "4"], ["f", "2", "50.0", "2"]]


def test_csv_has_a_line_for_each_system_and_measure(summary: Summary) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(summary))))

    assert [(line["system"], line["measure"]) for line in lines] == [
        ("one", "stoi"),
        ("two|b", "stoi"),
    ]
    assert float(lines[1]["difference"]) == pytest.approx(-0.1)
    assert (lines[1]["clips"], lines[1]["missing"], lines[0]["p_value"]) == ("1", "1", "")


def test_summary_survives_json(summary: Summary) -> None:
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
