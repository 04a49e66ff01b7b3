"""One file or several: the same tensors, files within their bound, and damage said in words."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmcodec.codec.tensor_files import (
    LEAST_BYTES,
    TensorFileError,
    load_tensors,
    save_tensors,
)


def make_tensors() -> dict[str, Tensor]:
    """About 1 MB; one tensor alone is larger than the least file, others share one."""
    return {
        "large": torch.randn(7, 11, 1_013),
        "medium": torch.randn(100, 200),
        "transposed": torch.randn(50, 301).t(),
        "half": torch.randn(3_000).half(),
        **{f"small.{n}": torch.randn(40, n + 1) for n in range(60)},
        "count": torch.tensor(5),
        "flag": torch.tensor(True),
        "none": torch.zeros(0, 3),
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value), name


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with `make_tensors` in files of the least size."""
    torch.default_generator.manual_seed(1)
    save_tensors(make_tensors(), tmp_path, "codec", max_bytes=LEAST_BYTES, metadata={"of": "me"})
    return tmp_path


@pytest.mark.parametrize("max_bytes", [LEAST_BYTES, LEAST_BYTES + 12_345, 300_000])
def test_shards_give_what_was_saved_and_keep_to_their_size(tmp_path, max_bytes):
    tensors = make_tensors()

    save_tensors(tensors, tmp_path, "codec", max_bytes=max_bytes, metadata={"of": "me"})
    found, metadata = load_tensors(tmp_path, "codec")

    assert_equal(found, tensors)
    assert metadata["of"] == "me"
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"codec-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) <= max_bytes
    # Two neighbours would not fit into one file; the sizes that are reckoned with are rounded up.
    assert all(a + b > 0.9 * max_bytes for a, b in itertools.pairwise(sizes))


def test_tensors_that_fit_are_one_plain_file(tmp_path):
    tensors = make_tensors()

    save_tensors(tensors, tmp_path, "codec", max_bytes=2_000_000)

    assert [path.name for path in tmp_path.iterdir()] == ["codec.safetensors"]
    assert_equal(load_file(tmp_path / "codec.safetensors"), tensors)
    assert_equal(load_tensors(tmp_path, "codec")[0], tensors)


def test_without_cut_tensors_the_index_is_that_of_hugging_face(tmp_path):
    tensors = {f"w{n}": torch.randn(100, 100) for n in range(5)}

    save_tensors(tensors, tmp_path, "model", max_bytes=90_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())

    assert index["metadata"]["total_size"] == 5 * 40_000
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


def test_one_tensor_in_pieces_is_no_plain_file(tmp_path):
    tensors = {"w": torch.randn(30_000)}

    save_tensors(tensors, tmp_path, "model", max_bytes=LEAST_BYTES)

    assert not (tmp_path / "model.safetensors").exists()
    assert_equal(load_tensors(tmp_path, "model")[0], tensors)


def test_missing_shard_is_named(shards):
    path = sorted(shards.glob("*.safetensors"))[3]
    path.unlink()

    with pytest.raises(TensorFileError, match=rf"{path.name} is missing.*copy all of them"):
        load_tensors(shards, "codec")


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_damaged_shard_is_named(shards, damage):
    path = sorted(shards.glob("*.safetensors"))[3]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-5]
    elif damage == "bit":
        data[-1] ^= 1  # which the format itself would not notice
    elif damage == "empty":
        data = bytearray()
    else:  # one of another save
        tensors = load_file(path)
        save_file({k: v + 1 for k, v in tensors.items()}, path)
        data = bytearray(path.read_bytes())
    path.write_bytes(data)

    with pytest.raises(TensorFileError, match=rf"{path.name} is damaged or from another save"):
        load_tensors(shards, "codec")


def _replace_file(index):
    index["weight_map"]["count"] = "../secret-00001-of-00001.safetensors"


def _forget_tensor(index):
    del index["weight_map"]["count"]


def _reshape(index):
    index["metadata"]["cut"]["large"]["shape"] = [7, 11, 1_014]


def _turn_negative(index):
    index["metadata"]["cut"]["large"]["shape"] = [-7, 11, -1_013]


def _lose_piece(index):
    index["metadata"]["cut"]["large"]["pieces"].pop()


def _drop_metadata(index):
    del index["metadata"]


@pytest.mark.parametrize(
    "change",
    [_replace_file, _forget_tensor, _reshape, _turn_negative, _lose_piece, _drop_metadata],
)
def test_index_of_wrong_contents_is_refused(shards, change):
    path = shards / "codec.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))

    with pytest.raises(TensorFileError, match=r"codec\.safetensors\.index\.json"):
        load_tensors(shards, "codec")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000])
def test_index_that_is_none_is_refused(shards, text):
    (shards / "codec.safetensors.index.json").write_text(text)

    with pytest.raises(TensorFileError, match=r"cannot read .*index\.json"):
        load_tensors(shards, "codec")


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(TensorFileError, match=r"cannot read .*codec\.safetensors"):
        load_tensors(tmp_path, "codec")


def test_impossible_bound_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 65536 bytes"):
        save_tensors({"w": torch.zeros(3)}, tmp_path, "codec", max_bytes=100)
