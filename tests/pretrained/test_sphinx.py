from pathlib import Path

import numpy as np
import pytest

from dmcodec.audio import read_audio
from dmcodec.pretrained.sphinx import Sphinx, SphinxError

EXAMPLE = Path(__file__).parents[2] / "examples" / "4077-13754-0000.flac"
TEXT = "the army found the people in poverty and left them in comparative wealth"
WORDS = TEXT.split()

pytest.importorskip("pocketsphinx", reason="pip install 'dmcodec[teachers]'")


@pytest.fixture(scope="module")
def sphinx() -> Sphinx:
    return Sphinx("a test", {"maxhmmpf": 1000, "maxwpf": 10})


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_audio(EXAMPLE)


def test_words_follow_the_recording_when_it_begins_later(sphinx: Sphinx, speech) -> None:
    early = sphinx.align(speech, WORDS)
    late = sphinx.align(np.concatenate([np.zeros(8_000, np.float32), speech]), WORDS)

    assert [word.text for word in early] == WORDS
    shifts = [b.start_samples - a.start_samples for a, b in zip(early, late, strict=True)]
    assert np.median(shifts) == pytest.approx(8_000, abs=160)
    assert all(word.start_samples < word.end_samples for word in early)


def test_recognition_is_the_same_after_an_alignment(sphinx: Sphinx, speech) -> None:
    before = sphinx.recognize(speech)
    sphinx.align(speech, WORDS)

    assert sphinx.recognize(speech) == before
    assert "army" in [word.text for word in before]


def test_phones_lie_inside_the_words_that_they_spell(sphinx: Sphinx, speech) -> None:
    aligner = Sphinx("a test", {"lm": None, "bestpath": False})

    phones = aligner.align_phones(speech, WORDS)

    spoken = [phone for phone in phones if phone.name.isalpha() and phone.name != "SIL"]
    assert [phone.name for phone in spoken][:5] == ["DH", "AH", "AA", "R", "M"]
    army = sphinx.align(speech, WORDS)[1]
    inside = [p.name for p in spoken if army.start_samples <= 160 * p.start < army.end_samples]
    assert {"AA", "R", "M", "IY"} <= set(inside)


def test_texts_that_do_not_fit_are_an_error(sphinx: Sphinx, speech) -> None:
    with pytest.raises(SphinxError, match="pocketsphinx"):
        sphinx.align(speech[:4_000], WORDS)
    with pytest.raises(SphinxError, match="pocketsphinx"):
        sphinx.align(speech, ["blorxt"])


def test_a_new_word_is_learnt(sphinx: Sphinx) -> None:
    assert not sphinx.knows("dmcodec")
    sphinx.learn("dmcodec", "D IY EH M K OW D EH K")
    assert sphinx.knows("dmcodec")
