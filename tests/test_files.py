"""Sound files to `.dmc` and back, and where results go."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dmcodec.audio import write_audio
from dmcodec.codec.engine import TorchCodec
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.files import decode_blocks, decode_bytes, encode_file
from dmcodec.paths import find_inputs, plan_outputs
from dmcodec.tokens.bitstream import dumps, loads, make_header


@pytest.fixture
def codec() -> TorchCodec:
    return TorchCodec(
        Codec(
            CodecConfig(
                seanet=SEANetConfig(num_filters=2, latent_dim=4, num_lstm_layers=1),
                quantizer=QuantizerConfig(codebook_size=16, num_codebooks=2),
            )
        ).eval()
    )


def test_long_files_read_in_parts_give_the_codes_of_the_whole(
    codec: TorchCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "long.flac"
    write_audio(path, (0.1 * rng.standard_normal(16_123)).astype(np.float32), 24_000)
    whole = encode_file(codec, path)

    monkeypatch.setattr("dmcodec.codec.model.LONG_FRAMES", 8)
    monkeypatch.setattr("dmcodec.audio.PART_SECONDS", 0.14)

    assert encode_file(codec, path) == whole


def test_long_files_are_decoded_in_blocks(
    codec: TorchCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.wav"
    waveform = 0.1 * np.random.default_rng(6).standard_normal(16_123)
    write_audio(path, waveform.astype(np.float32), 16_000)
    data = encode_file(codec, path)
    whole, _ = decode_bytes(codec, data, num_codebooks=1)

    monkeypatch.setattr("dmcodec.codec.model.LONG_FRAMES", 8)
    monkeypatch.setattr("dmcodec.codec.long.CHUNK_FRAMES", 9)
    blocks, _ = decode_blocks(codec, data, num_codebooks=1)

    np.testing.assert_allclose(np.concatenate(list(blocks)), whole, atol=1e-6)


def test_model_names_are_made_to_fit_the_header(codec: TorchCodec) -> None:
    codec.model_id = "somebody/a-model-name-longer-than-the-header-holds-é"
    assert make_header(codec, 1, 2).model_id == "a-model-name-longer-th"
    codec.model_id = "é"
    assert make_header(codec, 1, 2).model_id == "untitled"


def test_codes_of_another_layout_are_refused(codec: TorchCodec, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, np.full(700, 0.1, np.float32), 16_000)
    file = loads(encode_file(codec, path))
    header = file.header.__class__(**{**vars(file.header), "codebook_size": 64})
    with pytest.raises(ValueError, match="is not that of the codec"):
        decode_bytes(codec, dumps(file.codes, header), any_model=True)


def test_lost_frames_are_silent(codec: TorchCodec, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    rng = np.random.default_rng(1)
    write_audio(path, (0.3 * rng.standard_normal(320 * 600)).astype(np.float32), 16_000)
    data = bytearray(encode_file(codec, path))
    data[-1] ^= 1  # the second chunk begins at frame 500: 2 books of 4 bits, 500 bytes a chunk

    waveform, damaged = decode_bytes(codec, bytes(data), on_damage="skip")

    assert damaged == (1,)
    assert torch.from_numpy(waveform[: 320 * 500]).abs().max() > 0
    assert np.abs(waveform[320 * 500 :]).max() == 0


def test_a_folder_without_files_is_named_and_the_others_are_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.wav").touch()
    problems: list[str] = []

    found = find_inputs([tmp_path / "empty", tmp_path / "x.wav"], problems.append)

    assert found == [tmp_path / "x.wav"]
    assert problems == [f"folder {tmp_path / 'empty'} holds no file to work on"]


def test_two_inputs_for_one_result_are_an_error(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav"]
    with pytest.raises(ValueError, match="several inputs would be written"):
        plan_outputs(paths, paths, tmp_path / "out", ".dmc")
