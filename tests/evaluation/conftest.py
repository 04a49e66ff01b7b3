"""Short clips of real speech and a small untrained codec, for the tests of this room."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.metrics.conftest import speech

from dmcodec.audio import write_audio
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig

__all__ = ["speech"]

TEXT = "the army found the people in poverty and left them in comparative wealth"


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory, speech: np.ndarray) -> Path:
    """Three clips of 1.2 to 1.6 s of two speakers; the last has no text."""
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    starts = {"a/one": (6_000, 19_200), "a/two": (26_000, 22_400), "b/three": (49_000, 25_600)}
    for clip, (start, length) in starts.items():
        path = folder / f"{clip}.flac"
        path.parent.mkdir(exist_ok=True)
        write_audio(path, speech[start : start + length])
        text = "" if clip == "b/three" else "some <words> of it"
        entry = {"id": clip, "audio": f"{clip}.flac", "speaker": clip[0], "text": text}
        lines.append(json.dumps(entry))
    path = folder / "clips.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small untrained codec: 4 books of 64 entries, 50 frames a second."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(7)
        config = CodecConfig(
            seanet=SEANetConfig(num_filters=4, latent_dim=8, num_lstm_layers=1),
            quantizer=QuantizerConfig(codebook_size=64, num_codebooks=4),
        )
        folder = tmp_path_factory.mktemp("models") / "tiny"
        Codec(config).save_pretrained(folder)
    return folder
