import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcodec.audio import write_audio
from dmcodec.codec.model import Codec, CodecConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that works at once and has learnt nothing."""
    torch.set_num_threads(1)
    config = CodecConfig.model_validate(
        {
            "seanet": {"num_filters": 2, "latent_dim": 8, "num_lstm_layers": 1},
            "quantizer": {"num_codebooks": 3, "codebook_size": 64},
        }
    )
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(1)  # noqa: TID251 (the layers draw from the global generator)
        Codec(config).save_pretrained(folder)
    return folder


@pytest.fixture
def codec(model: Path) -> Codec:
    return Codec.from_pretrained(model)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 sound files of 2 ms to 1 s, some at 8 kHz."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(5)
    lines = []
    for number in range(21):
        length = int(rng.integers(30, 16_000)) if number else 30
        waveform = 0.1 * rng.standard_normal(length)
        write_audio(folder / f"{number}.wav", waveform, 8_000 if number % 5 == 3 else 16_000)
        line = {"id": f"s/{number}.x", "audio": f"{number}.wav", "speaker": f"p{number % 2}"}
        lines.append(json.dumps({**line, "text": "hé" if number % 3 else ""}))
    (folder / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "list.jsonl"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
