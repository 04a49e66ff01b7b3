"""What the page answers, asked without a browser."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from dmcodec import demo
from dmcodec.audio import SoundBytes, read_audio
from dmcodec.demo.models import Models
from dmcodec.demo.recordings import Recording, decode
from dmcodec.demo.visits import Visits
from dmcodec.tokens.bitstream import loads

if TYPE_CHECKING:
    from dmcodec.demo.page import Page

MISSING = [name for name in ("gradio", "matplotlib") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}")
CLIPS = Path(demo.__file__).with_name("clips")
ANNA, BEN = SimpleNamespace(session_hash="anna"), SimpleNamespace(session_hash="ben")


@pytest.fixture(scope="module")
def page(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Page]":
    visits = Visits(tmp_path_factory.mktemp("visits"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(visits.root))  # read when Gradio is imported, too
        from dmcodec.demo.page import Page

        yield Page(Models([str(model_folder)], is_open=False), visits, max_seconds=5)


@pytest.fixture
def talk(sound: SoundBytes, tmp_path: Path) -> str:
    path = tmp_path / "a talk.wav"
    path.write_bytes(sound.data)
    return str(path)


def test_a_recording_comes_back_with_all_books(page: "Page", talk: str) -> None:
    answer = page.open_first(talk, None, ANNA)

    recording = answer[page.recording]
    assert answer[page.message] == ""
    assert answer[page.decoded].num_codebooks == 3
    assert answer[page.slider].maximum == answer[page.slider].value == 3
    played = read_audio(Path(answer[page.sound].value["path"]))
    assert played == pytest.approx(decode(recording, 3).waveform, abs=1 / 32768)
    assert len(played) == recording.num_samples


def test_the_slider_chooses_what_is_heard_and_downloaded(page: "Page", talk: str) -> None:
    recording = page.open_first(talk, None, ANNA)[page.recording]

    answer = page.choose_books(recording, 2, ANNA)

    downloaded = Path(answer[page.download].value["path"])
    assert downloaded.name == "a talk.2-books.dmc"
    assert (loads(downloaded.read_bytes()).codes == recording.codes[:2].numpy()).all()
    assert answer[page.sound].label == "Decoded from 2 books"
    assert "decoded from 2 books" in page.look(recording, answer[page.decoded])[page.pictures]


def test_a_refusal_is_a_sentence_and_leaves_nothing_of_the_one_before(
    page: "Page", talk: str, tmp_path: Path
) -> None:
    page.open_first(talk, None, ANNA)
    (tmp_path / "letter.wav").write_text("Dear <b>reader</b>")

    answer = page.open_first(str(tmp_path / "letter.wav"), None, ANNA)

    assert "letter.wav: cannot be read as sound" in answer[page.message]
    assert str(tmp_path) not in answer[page.message]
    assert (answer[page.recording], answer[page.decoded]) == (None, None)
    assert answer[page.results].visible is False


def test_a_file_that_was_swept_away_is_asked_for_again(page: "Page", tmp_path: Path) -> None:
    answer = page.open_first(str(tmp_path / "gone.wav"), None, ANNA)

    assert "give it again" in answer[page.message]


def test_a_model_that_is_not_offered_is_refused(page: "Page", talk: str) -> None:
    assert "not among the models" in page.open_first(talk, "some/other", ANNA)[page.message]


def test_books_have_players_alone_and_added(page: "Page", talk: str) -> None:
    recording = page.open_first(talk, None, ANNA)[page.recording]

    html = page.play_books(recording, ANNA)

    assert html.count("<audio") == 5  # the first book alone is the first book
    assert html.count(">alone<") == 3
    assert [f"books 1 to {n}<" in html for n in (1, 2, 3)] == [False, True, True]


def test_voices_are_mixed_once_both_are_there(page: "Page", talk: str) -> None:
    first = page.open_first(talk, None, ANNA)[page.recording]
    answer = page.open_second(str(CLIPS / "high-voice.flac"), None)
    assert answer[page.second_message] == ""

    html = page.mix_voices(first, answer[page.second], 1, "cut", ANNA)

    assert "book 1 of the first, books 2 to 3 of the second" in html
    assert "The second was cut from 177 to 27 frames" in html
    assert html.count("<audio") == 4
    assert "<audio" not in page.mix_voices(first, None, 1, "cut", ANNA)


def test_visitors_have_files_of_their_own(page: "Page", talk: str) -> None:
    def files(answer: dict[Any, Any]) -> list[Path]:
        return [Path(answer[part].value["path"]) for part in (page.original, page.sound)]

    anna = files(page.open_first(talk, None, ANNA))
    ben = files(page.open_first(talk, None, BEN))
    page.end(ANNA)

    assert not any(path.exists() for path in anna)
    assert all(path.exists() for path in ben)


def test_nothing_is_shown_of_no_recording(page: "Page") -> None:
    assert page.look(None, None) == {page.figures: "", page.pictures: ""}
    assert "<audio" not in page.play_books(None, ANNA)
    assert "books of 16" in page.open_first(None, None, ANNA)[page.model_facts]


def test_the_clips_that_ship_are_sounds_of_two_voices(page: "Page") -> None:
    opened = [
        page.open_second(str(path), None)[page.second] for path in sorted(CLIPS.glob("*.flac"))
    ]

    assert all(isinstance(each, Recording) for each in opened)
    assert [each.num_samples for each in opened] == [56_560, 71_760]
