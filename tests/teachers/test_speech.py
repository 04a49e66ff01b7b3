import shutil

import numpy as np
import pytest
import torch
from tests.teachers.conftest import speech_like

from dmcodec.teachers.alignment import FrameGrid, codec_grid
from dmcodec.teachers.speech import SpeechTeacher, SpeechTeacherConfig

GRID = codec_grid(16_000, 320)


@pytest.fixture(scope="module")
def hubert(speech_model) -> SpeechTeacher:
    return SpeechTeacher(SpeechTeacherConfig(model=str(speech_model)), GRID)


@pytest.fixture(scope="module")
def wav2vec2(masked_speech_model) -> SpeechTeacher:
    return SpeechTeacher(SpeechTeacherConfig(model=str(masked_speech_model)), GRID)


def batch_of(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.from_numpy(speech_like(length, seed=row))
    return waveforms, torch.tensor(lengths)


def reference_features(transformers, folder, waveform: np.ndarray) -> torch.Tensor:
    """Mean over hidden states [L', H] by transformers alone."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(inputs, output_hidden_states=True).hidden_states
    return torch.stack(states).mean(dim=0)[0]


def test_features_equal_those_of_transformers(transformers, speech_model, hubert):
    waveform = speech_like(9_000)

    (features,) = hubert.features(torch.from_numpy(waveform)[None], torch.tensor([9_000]))

    expected = reference_features(transformers, speech_model, waveform)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_model_stored_in_half_precision_works_in_single(transformers, speech_model, tmp_path):
    shutil.copytree(speech_model, tmp_path / "half")
    model = transformers.AutoModel.from_pretrained(speech_model).half()
    model.save_pretrained(tmp_path / "half")
    teacher = SpeechTeacher(SpeechTeacherConfig(model=str(tmp_path / "half")), GRID)
    waveform = speech_like(9_000)

    (features,) = teacher.features(torch.from_numpy(waveform)[None], torch.tensor([9_000]))

    assert features.dtype == torch.float32
    expected = reference_features(transformers, speech_model, waveform)
    torch.testing.assert_close(features, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("model", ["hubert", "wav2vec2"])
def test_batches_never_change_features(model, request):
    teacher = request.getfixturevalue(model)
    waveforms, num_samples = batch_of([8_000, 5_000, 8_000, 399, 400])

    together = teacher.features(waveforms, num_samples)

    for row, length in enumerate(num_samples.tolist()):
        alone = teacher.features(waveforms[row : row + 1, :length], num_samples[row : row + 1])[0]
        # Masked attention sums padding as zeros: other rounding, nothing more.
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)
    assert [len(each) for each in together] == [24, 15, 24, 0, 1]


def test_online_and_stored_features_agree(hubert):
    waveforms, num_samples = batch_of([8_000, 5_000])

    values, mask = hubert.frame_features(waveforms, num_samples, 25)

    for row, length in enumerate(num_samples.tolist()):
        num_frames = -(-length // 320)
        track, _ = hubert.track(waveforms[row, :length].numpy(), None, "u", num_frames)
        np.testing.assert_allclose(
            values[row, :num_frames].detach().numpy(), track.dense(), atol=1e-5
        )
        np.testing.assert_array_equal(mask[row, :num_frames].numpy(), track.mask)
        assert not mask[row, num_frames:].any()
        assert not values[row, num_frames:].any()


def test_another_frame_rate_follows_the_time(speech_model):
    waveform = speech_like(16_000)
    at_50 = SpeechTeacher(SpeechTeacherConfig(model=str(speech_model)), FrameGrid(320, 200))
    at_25 = SpeechTeacher(SpeechTeacherConfig(model=str(speech_model)), FrameGrid(640, 200))

    fast, slow = (
        teacher.track(waveform, None, "u", n)[0] for teacher, n in ((at_50, 49), (at_25, 25))
    )

    np.testing.assert_allclose(slow.dense()[:24], fast.dense()[:48:2], atol=1e-6)


def test_clip_shorter_than_a_receptive_field_is_masked(hubert):
    track, words = hubert.track(speech_like(100), None, "u", 1)

    assert words == []
    assert track.mask.tolist() == [False]


def test_gradient_reaches_the_waveform_and_no_weight(hubert):
    waveforms, num_samples = batch_of([4_000, 4_000])
    waveforms.requires_grad_()

    values, _ = hubert.frame_features(waveforms, num_samples, 13)
    values.square().sum().backward()

    assert (waveforms.grad.abs().sum(dim=1) > 0).all()
    assert not any(weight.requires_grad for weight in hubert._encoder._model.parameters())


def test_text_model_is_refused_as_speech_model(language_model, speech_model, tmp_path):
    for path in language_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"missing preprocessor_config\.json"):
        SpeechTeacher(SpeechTeacherConfig(model=str(tmp_path)), GRID)
    (tmp_path / "preprocessor_config.json").write_bytes(
        (speech_model / "preprocessor_config.json").read_bytes()
    )
    with pytest.raises(ValueError, match="raw waveforms"):
        SpeechTeacher(SpeechTeacherConfig(model=str(tmp_path)), GRID)
