import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.scripts import load_script

from dmcodec.audio import read_audio
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.tokens.lm import Vocabulary
from dmcodec.tokens.shards import CorpusInfo, TokenRow, dump_shard

pytest.importorskip("transformers", reason="needs pip install 'dmcodec[teachers]'")
pytest.importorskip("pyarrow", reason="shards are Parquet: pip install 'dmcodec[data]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "token_gpt.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("examples/token_gpt.py")


def write_tokens(folder: Path, codec: Codec, num_rows: int, seed: int) -> None:
    """Rows in which each frame follows from the one before: a model can learn them."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        book = (int(rng.integers(16)) + 3 * np.arange(40)) % 16
        codes = np.stack([book, 15 - book]).astype(np.uint16)
        rows.append(TokenRow(str(number), codes, 12_800, None, None, "ab" * 16, "0" * 16))
    info = CorpusInfo(
        model_id="tiny",
        model_hash=codec.fingerprint(),
        sample_rate=16_000,
        hop_length=320,
        num_codebooks=2,
        codebook_size=16,
        shard_size=num_rows,
        manifest_hash="00",
        num_utterances=num_rows,
    )
    folder.mkdir()
    (folder / "codec_info.json").write_text(info.model_dump_json())
    (folder / "shard-000000.parquet").write_bytes(dump_shard(rows, [], info.settings_hash()))


def test_gpt_learns_and_what_it_adds_is_decoded(example: ModuleType, tmp_path: Path) -> None:
    config = CodecConfig.model_validate(
        {
            "seanet": {"num_filters": 2, "latent_dim": 8, "num_lstm_layers": 1},
            "quantizer": {"num_codebooks": 2, "codebook_size": 16},
        }
    )
    codec = Codec(config).eval()
    codec.save_pretrained(tmp_path / "codec")
    write_tokens(tmp_path / "train", codec, 30, seed=1)
    write_tokens(tmp_path / "valid", codec, 4, seed=2)
    out, folders = tmp_path / "out", [str(tmp_path / name) for name in ("train", "valid")]

    settings = (
        f"-o {out} --model {tmp_path / 'codec'} --steps 100 --length 32 --width 32 --layers 1 "
        "--batch-size 8 --prompt-seconds 0.4 --seconds 0.1 --threads 1"
    )
    example.main([*folders, *settings.split()])

    result = json.loads((out / "result.json").read_text())
    for name in ("train", "valid"):
        assert result[name]["unigram"] == pytest.approx(np.log(16), abs=0.05)
        assert result[name]["loss"] < 0.7 * result[name]["unigram"]
    prompt, continuation = (read_audio(out / f"{n}.wav") for n in ("prompt", "continuation"))
    assert (len(prompt), len(continuation)) == (20 * 320, 25 * 320)


def test_tokens_of_another_model_and_short_lists_are_refused(
    example: ModuleType, tmp_path: Path
) -> None:
    config = CodecConfig.model_validate(
        {
            "seanet": {"num_filters": 2, "latent_dim": 8, "num_lstm_layers": 1},
            "quantizer": {"num_codebooks": 2, "codebook_size": 16},
        }
    )
    codec, other = Codec(config).eval(), Codec(config).eval()
    codec.save_pretrained(tmp_path / "codec")
    write_tokens(tmp_path / "other", other, 2, seed=1)
    write_tokens(tmp_path / "few", codec, 1, seed=2)
    options = ["-o", str(tmp_path / "out"), "--model", str(tmp_path / "codec"), "--length", "4096"]

    with pytest.raises(SystemExit, match="name it with --model"):
        example.main([str(tmp_path / "other"), str(tmp_path / "few"), *options])
    with pytest.raises(SystemExit, match="fewer than 4096 ids"):
        example.main([str(tmp_path / "few"), str(tmp_path / "few"), *options])


def test_unigram_loss_is_that_of_counts(example: ModuleType) -> None:
    vocabulary = Vocabulary(codebooks=(0, 1), codebook_size=2)  # ids 0, 1; 2, 3; start 4
    train = torch.tensor([[4, 0, 2, 0, 2, 1, 2, 5]])
    ids = torch.tensor([[4, 0, 3, 1, 2, 5]])

    nats = example.unigram_nats(train, ids, vocabulary)

    expected = -np.mean(np.log([3 / 5, 1 / 5, 2 / 5, 4 / 5]))
    assert nats == pytest.approx(expected, rel=1e-6)


def test_model_is_continued_in_turn_by_the_books(example: ModuleType) -> None:
    vocabulary = Vocabulary(codebooks=(0, 1), codebook_size=4)
    model = example.make_model(vocabulary, 8, 8, 1)
    codes = np.array([[0, 1, 2], [3, 3, 3]], dtype=np.uint16)

    spoken = example.go_on(model, codes, vocabulary, 5)  # longer than the model's 8 positions

    assert spoken.shape == (2, 8)
    np.testing.assert_array_equal(spoken[:, :3], codes)
