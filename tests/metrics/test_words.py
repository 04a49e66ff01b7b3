import pytest

from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.words import ErrorCounts, count_errors, is_repetitive, make_normalizer


def test_word_errors_are_those_counted_by_hand() -> None:
    pytest.importorskip("jiwer", reason="pip install jiwer")

    words, characters = count_errors("one two three four", "one three four five six")

    # "two" is deleted, "five" and "six" are inserted.
    assert words == ErrorCounts(hits=3, substitutions=0, deletions=1, insertions=2)
    assert words.error_rate == pytest.approx(3 / 4)
    assert words.information_lost == pytest.approx(1 - 9 / 20)
    assert characters.reference_length == len("one two three four")


def test_rates_are_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer", reason="pip install jiwer")
    pair = ("he hoped there would be stew for dinner", "he hope there would stew and dinner too")

    words, characters = count_errors(*pair)

    assert words.error_rate == pytest.approx(jiwer.wer(*pair))
    assert words.information_lost == pytest.approx(jiwer.wil(*pair))
    assert characters.error_rate == pytest.approx(jiwer.cer(*pair))


def test_nothing_recognized_is_all_deletions() -> None:
    pytest.importorskip("jiwer", reason="pip install jiwer")

    words, _ = count_errors("two words", "")

    assert (words.error_rate, words.information_lost, words.deletions) == (1.0, 1.0, 2)


def test_empty_reference_has_no_error_rate() -> None:
    with pytest.raises(Unmeasurable, match="reference text is empty"):
        count_errors("", "words")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't STOP, he said — 'now'!", "don't stop he said now"),
        ("it\u2019s  well-known\nand_so", "it's well known and so"),
        ("Grün 5 o'clock.", "grün 5 o'clock"),
        ("...", ""),
        ("हिन्दी, ठीक है।", "हिन्दी ठीक है"),
        ("ที่นี่ (ครับ)", "ที่นี่ ครับ"),
        ("தமிழ்!", "தமிழ்"),
        ("السَّلَامُ عَلَيْكُمْ", "السَّلَامُ عَلَيْكُمْ"),
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("\u0130zmir I\u0307zmir", "izmir izmir"),
        (
            "c\u02bchoant don\u2018t don\u00b4t rock\u2019n\u2019roll",
            "c'hoant don't don't rock'n'roll",
        ),
        ("\u2018now\u2019 ''then'' 'tis", "now then tis"),
        ("co\u00adop नि\u200dन a\u200bb 1\ufe0f\u20e3", "coop निन a b 1"),
        ("\u00a8 \u0301 ", ""),
    ],
)
def test_basic_normalizer_keeps_words_only(text: str, expected: str) -> None:
    assert make_normalizer("basic")(text) == expected


@pytest.mark.parametrize(
    ("said", "heard"),
    [("की", "का"), ("นี่", "นี้"), ("சி", "சு"), ("عِلْم", "عَلَم"), ("שָׁם", "שֵׁם")],
)
def test_words_that_differ_in_marks_alone_are_different(said: str, heard: str) -> None:
    normalize = make_normalizer("basic")

    words, _ = count_errors(normalize(said), normalize(heard))

    assert (words.reference_length, words.substitutions) == (1, 1)


def test_normalizing_twice_changes_nothing() -> None:
    normalize = make_normalizer("basic")

    for code in [*range(0x3100), 0xFF07, 0xFF40, 0x1E9E, 0xE0100]:
        once = normalize(f"a{chr(code)}b {chr(code)}")

        assert normalize(once) == once


def test_whisper_normalizer_writes_numbers_as_digits() -> None:
    pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")

    assert make_normalizer("whisper")("TWENTY FIVE dollars, isn't it?") == "$25 is not it"


def test_a_recognizer_that_goes_round_in_circles_is_noticed() -> None:
    sentence = "he hoped there would be stew for dinner turnips and carrots and bruised potatoes"

    assert is_repetitive("and so on " * 30)
    assert not is_repetitive(sentence)
    assert not is_repetitive("no no no")
    assert not is_repetitive("")
