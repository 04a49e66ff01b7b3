import pytest
from pydantic import ValidationError

from dmcodec.training.distillation import DistillationConfig, Guide, SpeechGuide, TextGuide

STT = {"kind": "ctc", "model": "some/model"}
TEXT = {"teacher": {"language_model": "some/bert", "stt": STT}}


def test_strength_is_zero_before_the_start_and_rises_over_the_ramp():
    guide = Guide(start_step=10, ramp_steps=3)

    assert [guide.strength_at(step) for step in (0, 9, 10, 11, 12, 13, 99)] == [
        0, 0, 0.25, 0.5, 0.75, 1, 1,
    ]  # fmt: skip
    assert Guide().strength_at(0) == 1


@pytest.mark.parametrize("books", [[], [0], [1, 1], ["first"]])
def test_books_are_numbered_from_one_each_once(books):
    with pytest.raises(ValidationError, match="books"):
        Guide(books=books)


@pytest.mark.parametrize("alignment", ["mean", "cls"])
def test_constant_teachers_need_a_loss_over_dimensions(alignment):
    text = {**TEXT, "teacher": {**TEXT["teacher"], "alignment": alignment}}
    with pytest.raises(ValidationError, match="frame_cosine"):
        TextGuide.model_validate(text)
    assert TextGuide.model_validate({**text, "loss": "frame_cosine"}).loss == "frame_cosine"


@pytest.mark.parametrize(
    "stt",
    [{**STT, "use_transcripts": True}, {"kind": "given", "word_times": "words.ctm"}],
)
def test_transcripts_of_whole_utterances_need_a_store(stt):
    text = {"teacher": {"language_model": "some/bert", "stt": stt}}
    with pytest.raises(ValidationError, match="name a store"):
        TextGuide.model_validate(text)
    TextGuide.model_validate({**text, "store": "features"})


def test_guides_must_fit_the_codec():
    text = TextGuide.model_validate({**TEXT, "books": [9]})
    with pytest.raises(ValueError, match="books 1 to 8"):
        DistillationConfig(text=text).check_codec(8, 768, 16_000)
    own = DistillationConfig(speech=SpeechGuide(own_map_dim=4))
    own.check_codec(8, None, 16_000)
    with pytest.raises(ValueError, match="no teacher uses"):
        own.check_codec(8, 768, 16_000)
    with pytest.raises(ValueError, match="must be the width"):
        DistillationConfig(speech=SpeechGuide()).check_codec(8, None, 16_000)
    with pytest.raises(ValueError, match="names no guide"):
        DistillationConfig().check_codec(8, None, 16_000)
    with pytest.raises(ValueError, match="hear 16 kHz, the codec works at 24000"):
        DistillationConfig(speech=SpeechGuide()).check_codec(8, 768, 24_000)
