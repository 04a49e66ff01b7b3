import re
from pathlib import Path

import numpy as np
import pytest

from dmcodec.audio import write_audio
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.corpus.manifest import read_manifest
from dmcodec.tokenize.job import describe_corpus, tokenize

TOKENS_MD = Path(__file__).parents[2] / "docs" / "tokens.md"


def test_code_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="needs pip install 'dmcodec[data]'")
    config = CodecConfig.model_validate(
        {
            "seanet": {"num_filters": 2, "latent_dim": 8, "num_lstm_layers": 1},
            "quantizer": {"num_codebooks": 8, "codebook_size": 64},
        }
    )
    codec = Codec(config).eval()
    waveform = 0.1 * np.random.default_rng(0).standard_normal(8_000)
    write_audio(tmp_path / "a.wav", waveform)
    utterances = read_manifest(tmp_path)
    info = describe_corpus(codec, utterances)
    tokenize(codec, utterances, tmp_path / "tokens" / "train", info)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("dmcodec.codec.model.load", lambda: codec)
    blocks = re.findall(r"```python\n(.*?)```", TOKENS_MD.read_text(encoding="utf-8"), re.DOTALL)

    names: dict[str, object] = {}
    exec("\n".join(blocks), names)

    assert len(blocks) == 5
    assert len(names["waveform"]) == 8_000  # type: ignore[arg-type]
    assert len(names["packed"]) == 1  # type: ignore[arg-type]
