import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pretrained.ctranslate2_files import pack

from dmcodec.pretrained.ctranslate2 import CTranslate2Error, is_ctranslate2, read_ctranslate2
from dmcodec.pretrained.whisper import load_whisper

VARIABLES = {
    "a": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.array(7, dtype=np.int16),
}


def save(folder: Path, data: bytes) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(data)
    return folder


def test_variables_come_back_with_their_shapes_and_aliases(tmp_path: Path) -> None:
    model = read_ctranslate2(save(tmp_path, pack(VARIABLES, [("c", "a")])))

    assert list(model.variables) == ["a", "b", "c"]
    for name, values in VARIABLES.items():
        np.testing.assert_array_equal(model.variables[name], values)
        assert model.variables[name].dtype == values.dtype
    np.testing.assert_array_equal(model.variables["c"], VARIABLES["a"])


def test_a_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    data = pack(VARIABLES, [("c", "a")])
    for length in range(len(data)):
        with pytest.raises(CTranslate2Error, match="cut short or damaged"):
            read_ctranslate2(save(tmp_path, data[:length]))


def test_a_flipped_bit_gives_an_error_or_other_values_and_nothing_else(tmp_path: Path) -> None:
    data = pack(VARIABLES, [("c", "a")])
    num_refused = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0x81
        try:
            read_ctranslate2(save(tmp_path, bytes(flipped)))
        except CTranslate2Error:
            num_refused += 1
    assert num_refused > len(data) // 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pack(VARIABLES, version=9), "not a CTranslate2 model, or of version 9"),
        (pack(VARIABLES, kind="TransformerSpec"), "holds a 'TransformerSpec', a Whisper model"),
        (pack(VARIABLES) + b"x", "1 bytes too many"),
        (pack(VARIABLES, [("c", "z")]), "'c' stands for 'z'"),
        (pack({"a": np.zeros((1,) * 5, np.float32)}), "has rank 5"),
        (b"\x06\0\0\0" + struct.pack("<H", 12) + b"WhisperSpec\0" + b"\xff" * 8, "4294967295 var"),
        # Sizes whose product is more than any memory.
        (
            pack({"a": np.zeros(4, np.float16)}).replace(
                b"\x01\x04\0\0\0", b"\x01\xff\xff\xff\xff"
            ),
            "8 bytes, 8589934590 are due",
        ),
        (
            pack({"a": np.zeros(2, np.float16), "b": np.zeros(2, np.float16)}).replace(
                b"\x02\0b\0", b"\x02\0a\0"
            ),
            "'a' is there twice",
        ),
    ],
)
def test_hostile_files_are_refused_with_what_is_wrong(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(CTranslate2Error, match=message):
        read_ctranslate2(save(tmp_path, data))


def test_damaged_configurations_are_refused(tmp_path: Path) -> None:
    save(tmp_path, pack(VARIABLES))
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CTranslate2Error, match=r"config\.json: damaged"):
            read_ctranslate2(tmp_path)


def test_the_model_is_that_of_transformers(
    transformers, whisper_model: Path, ctranslate2_model: Path
) -> None:
    expected = transformers.WhisperForConditionalGeneration.from_pretrained(whisper_model)

    model = load_whisper(ctranslate2_model)

    assert is_ctranslate2(ctranslate2_model)
    assert not is_ctranslate2(whisper_model)
    weights = model.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(weights[name], value.half().float(), rtol=0, atol=0)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.proj_out.weight.data_ptr() == model.model.decoder.embed_tokens.weight.data_ptr()
    for name in ("d_model", "encoder_layers", "decoder_attention_heads", "max_target_positions"):
        assert getattr(model.config, name) == getattr(expected.config, name)
    generation = model.generation_config
    assert generation.alignment_heads == [[0, 1]]
    assert (generation.suppress_tokens, generation.begin_suppress_tokens) == ([3, 4], [5])
    for name in ("eos_token_id", "decoder_start_token_id", "no_timestamps_token_id"):
        assert getattr(generation, name) == getattr(expected.generation_config, name)


def change_variable(folder: Path, name: str, values: np.ndarray | None) -> None:
    """Rewrites model.bin with another value of a variable, or without it."""
    variables = dict(read_ctranslate2(folder).variables)
    alias = ("decoder/projection/weight", "decoder/embeddings/weight")
    del variables[alias[0]]
    variables = {key: np.array(value) for key, value in variables.items()}
    variables.pop(name)
    if values is not None:
        variables[name] = values
    (folder / "model.bin").write_bytes(pack(variables, [alias]))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("encoder/conv2/bias", None, "needs the variable encoder/conv2/bias, has none"),
        ("encoder/conv1/weight", np.zeros(4, np.float16), r"encoder/conv1/weight, has shape \[4\]"),
        ("encoder/conv2/bias", np.full(16, np.nan, np.float16), "values that are not finite"),
        ("encoder/conv2/bias", np.zeros(16, np.int8), "int8: a quantized model"),
        ("encoder/conv2/bias", np.zeros(15, np.float16), "make no Whisper model"),
        (
            "encoder/layer_0/self_attention/linear_0/bias",
            np.zeros(47, np.float16),
            "has no 3 parts",
        ),
        ("encoder/num_heads", np.array(0, np.int16), "0 heads do not divide a width of 16"),
    ],
)
def test_tensors_that_make_no_model_are_refused(
    ctranslate2_model: Path, tmp_path: Path, name: str, values: np.ndarray | None, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ctranslate2_model, folder)
    change_variable(folder, name, values)

    with pytest.raises(CTranslate2Error, match=message):
        load_whisper(folder)


def test_tokenizers_of_other_models_are_refused(ctranslate2_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ctranslate2_model, folder)
    for table, message in (
        ({"added_tokens": []}, r"has no <\|endoftext\|>: not Whisper's"),
        ({}, r"tokenizer\.json: damaged"),
        ({"added_tokens": [{"content": "a", "id": 1e400}]}, r"tokenizer\.json: damaged"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps(table))
        with pytest.raises(CTranslate2Error, match=message):
            load_whisper(folder)
    (folder / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(CTranslate2Error, match="nested too deeply"):
        load_whisper(folder)
