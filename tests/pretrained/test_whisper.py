from pathlib import Path

import numpy as np
import pytest
import torch
from tests.teachers.conftest import speech_like

from dmcodec.audio import read_audio
from dmcodec.pretrained.whisper import (
    encoder_states,
    load_processor,
    load_whisper,
    log_mel,
    max_frames,
    model_width,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "4077-13754-0000.flac"


@pytest.fixture(scope="module")
def whisper(whisper_model: Path):
    return load_whisper(whisper_model)


def test_log_mels_are_those_of_transformers(transformers) -> None:
    waveform = speech_like(20_001)
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    expected = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features

    whole = log_mel(torch.from_numpy(waveform)[None], 1_500, 80)
    short = log_mel(torch.from_numpy(waveform)[None], 63, 80)

    torch.testing.assert_close(whole[..., :3_000], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(short, expected[..., :127], rtol=0, atol=1e-5)


def test_states_of_30_s_are_those_of_transformers(whisper) -> None:
    mels = log_mel(torch.from_numpy(speech_like(48_000))[None], 1_500, 80)

    states = encoder_states(whisper.model.encoder, mels)

    with torch.no_grad():
        expected = whisper.model.encoder(mels[..., :3_000], output_hidden_states=True)
    assert len(states) == len(expected.hidden_states) == 2
    for state, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other, rtol=1e-4, atol=1e-5)


def test_short_sound_has_the_embedding_that_it_has_in_30_s(whisper) -> None:
    waveform = torch.from_numpy(speech_like(16_100))[None]  # 50.3 frames
    encoder = whisper.model.encoder

    short = encoder_states(encoder, log_mel(waveform, 51, 80))[0]

    whole = encoder_states(encoder, log_mel(waveform, 1_500, 80))[0]
    torch.testing.assert_close(short, whole[:, :51], rtol=1e-5, atol=1e-5)


def test_frame_i_is_centred_on_sample_320_i(whisper) -> None:
    frame = 20
    waveform = torch.from_numpy(speech_like(16_000))[None].requires_grad_()

    embedding = encoder_states(whisper.model.encoder, log_mel(waveform, 50, 80))[0]
    embedding[0, frame].sum().backward()

    assert waveform.grad is not None
    heard = waveform.grad[0].nonzero()[:, 0]
    # Two convolutions of three mel frames see five, 160 samples apart, of 400 samples each; the
    # first sample of a Hann window weighs nothing.
    assert (int(heard.min()), int(heard.max())) == (320 * frame - 519, 320 * frame + 519)


def test_too_much_sound_at_once_is_refused(whisper) -> None:
    encoder = whisper.model.encoder
    mels = torch.zeros(1, 80, 2 * max_frames(encoder) + 3)
    with pytest.raises(ValueError, match="takes 1 to 1500 frames at once, got 1501"):
        encoder_states(encoder, mels)


def test_width_is_read_without_the_weights(whisper_model: Path, ctranslate2_model: Path) -> None:
    assert model_width(whisper_model) == model_width(ctranslate2_model) == 16


def test_packaged_features_are_those_of_ctranslate2(packaged_whisper: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install 'dmcodec[offline]'")
    mels = log_mel(torch.from_numpy(read_audio(EXAMPLE))[None], 1_500, 80)
    own = ctranslate2.models.Whisper(str(packaged_whisper), compute_type="float32", intra_threads=1)
    inputs = ctranslate2.StorageView.from_array(mels[..., :3_000].contiguous().numpy())

    features = encoder_states(load_whisper(packaged_whisper).model.encoder, mels)[-1]

    # Weights are float16 in both, sums float32 in another order; features reach 13.
    expected = np.array(own.encode(inputs, to_cpu=True))
    np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=5e-3)


def test_packaged_model_writes_what_faster_whisper_writes(packaged_whisper: Path) -> None:
    faster_whisper = pytest.importorskip("faster_whisper", reason="pip install 'dmcodec[offline]'")
    waveform = read_audio(EXAMPLE)
    own = faster_whisper.WhisperModel(
        str(packaged_whisper), device="cpu", compute_type="float32", cpu_threads=1
    )
    segments, _ = own.transcribe(waveform, beam_size=1, temperature=0, without_timestamps=True)
    expected = "".join(segment.text for segment in segments)
    processor = load_processor(packaged_whisper)

    inputs = processor(waveform, sampling_rate=16_000, return_tensors="pt")
    ids = load_whisper(packaged_whisper).generate(**inputs, do_sample=False, num_beams=1)

    text = processor.batch_decode(ids, skip_special_tokens=True)[0]
    assert text.strip() == expected.strip()
    assert "people in poverty and left them in comparative wealth" in text
