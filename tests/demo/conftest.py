"""A small codec as a visitor chooses it, and recordings to give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dmcodec.audio import SoundBytes, Waveform, dump_wav
from dmcodec.codec.engine import TorchCodec
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.demo.models import Model
from dmcodec.demo.recordings import Recording, open_recording


def make_model(seed: int) -> Model:
    """An untrained codec with 3 books of 16 entries, hop 320."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        config = CodecConfig(
            seanet=SEANetConfig(num_filters=2, latent_dim=4, num_lstm_layers=1),
            quantizer=QuantizerConfig(num_codebooks=3, codebook_size=16),
        )
        codec = Codec(config)
        codec(torch.randn(8, 1, 6400) * 0.1, update=True)  # books as far apart as its latents
    return Model(TorchCodec(codec.eval()))


def make_noise(num_samples: int, seed: int) -> Waveform:
    """Something to encode: white noise, -20 dB."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(num_samples)).astype(np.float32)


@pytest.fixture(scope="session")
def model() -> Model:
    return make_model(3)


@pytest.fixture(scope="session")
def other_model() -> Model:
    return make_model(4)


@pytest.fixture
def sound() -> SoundBytes:
    """1.3 frames more than half a second."""
    return SoundBytes("a talk.wav", dump_wav(make_noise(8_416, 1), 16_000))


@pytest.fixture
def recording(model: Model, sound: SoundBytes) -> Recording:
    return open_recording(model, sound, max_seconds=10)


@pytest.fixture(scope="session")
def model_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.codec.save_pretrained(folder)
    return folder
