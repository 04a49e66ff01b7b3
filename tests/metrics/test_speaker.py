from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.metrics.conftest import TINY_WAV2VEC2

from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.speaker import cosine_similarity, load_speaker_model


def test_cosine_by_hand() -> None:
    first, second = np.array([3.0, 4.0], np.float32), np.array([4.0, 3.0], np.float32)

    assert cosine_similarity(first, second) == pytest.approx(24 / 25)
    with pytest.raises(Unmeasurable, match="embedding is zero"):
        cosine_similarity(first, np.zeros(2, np.float32))


def test_resemblyzer_is_called_as_its_package_says(speech: np.ndarray) -> None:
    for name in ("webrtcvad", "librosa", "resemblyzer"):
        pytest.importorskip(name, reason="pip install 'dmcodec[eval]', then Resemblyzer --no-deps")
    import resemblyzer

    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    expected = encoder.embed_utterance(resemblyzer.preprocess_wav(speech))

    embedding = load_speaker_model("resemblyzer").embed(speech, 16_000)

    np.testing.assert_allclose(embedding, expected, atol=1e-6)
    with pytest.raises(Unmeasurable, match="silent"):
        load_speaker_model("resemblyzer").embed(np.zeros_like(speech), 16_000)


def test_x_vector_models_of_transformers_are_called_directly(
    tmp_path: Path, speech: np.ndarray
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    model, extractor = _make_x_vector_model(transformers)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    clip = speech[:16_000]
    inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).embeddings[0]

    embedding = load_speaker_model(str(tmp_path)).embed(clip, 16_000)

    torch.testing.assert_close(torch.from_numpy(embedding), expected)
    with pytest.raises(Unmeasurable, match="shorter than"):
        load_speaker_model(str(tmp_path)).embed(clip[:1_000], 16_000)


def _make_x_vector_model(transformers: Any) -> tuple[Any, Any]:
    config = transformers.Wav2Vec2Config(
        **TINY_WAV2VEC2,
        tdnn_dim=(8, 8, 8, 8, 16),
        xvector_output_dim=12,
    )
    model = transformers.Wav2Vec2ForXVector(config).eval()
    return model, transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
