import json
import os
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmcodec.codec.checkpoint import WeightsError
from dmcodec.codec.conv import add_weight_norm, remove_weight_norm
from dmcodec.codec.model import Codec, load
from dmcodec.config import ConfigError


@pytest.fixture
def folder(codec, tmp_path):
    codec.save_pretrained(tmp_path / "my.codec")
    return tmp_path / "my.codec"


@pytest.fixture
def noise(generator):
    return 0.1 * torch.randn(1000, generator=generator)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_saved_codec_comes_back_the_same(codec, folder, noise):
    loaded = Codec.from_pretrained(folder)

    assert loaded.config == codec.config
    assert loaded.model_id == "my.codec"
    assert not loaded.training
    assert loaded.fingerprint() == codec.fingerprint()
    for name, value in codec.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype
    encoded = codec.encode(noise)
    assert torch.equal(loaded.encode(noise).codes, encoded.codes)
    assert torch.equal(loaded.decode(encoded), codec.decode(encoded))


def test_loaded_codec_trains_like_the_saved_one(build_codec, tmp_path, noise):
    codec = build_codec()
    codec.save_pretrained(tmp_path)
    loaded = Codec.from_pretrained(str(tmp_path))
    for one in (codec, loaded):
        add_weight_norm(one.train())
        one(noise[None, None], update=True).waveform.square().mean().backward()

    for (name, weight), (_, other) in zip(
        codec.named_parameters(), loaded.named_parameters(), strict=True
    ):
        if weight.grad is not None:
            torch.testing.assert_close(other.grad, weight.grad, msg=name)
    assert torch.equal(loaded.quantizer.codebooks, codec.quantizer.codebooks)


def test_half_precision_halves_the_file_and_stays_what_it_is(codec, folder, tmp_path, noise):
    codec.save_pretrained(tmp_path / "half", dtype=torch.float16)
    half = Codec.from_pretrained(tmp_path / "half")
    half.save_pretrained(tmp_path / "again", dtype=torch.float16)
    again = Codec.from_pretrained(tmp_path / "again")

    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, tmp_path / "half")]
    assert sizes[1] < 0.65 * sizes[0]
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    assert half.fingerprint() == again.fingerprint() != codec.fingerprint()
    for name, value in codec.state_dict().items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(half.state_dict()[name], rounded)


def test_loading_draws_no_random_numbers(folder):
    before = torch.get_rng_state()

    Codec.from_pretrained(folder)

    assert torch.equal(torch.get_rng_state(), before)


def test_saving_again_replaces_the_files_and_keeps_the_card(build_codec, tmp_path):
    build_codec(1).save_pretrained(tmp_path, card="# Mine\n")
    other = build_codec(2)

    other.save_pretrained(tmp_path)

    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert Codec.from_pretrained(tmp_path).fingerprint() == other.fingerprint()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


def test_interrupted_save_leaves_the_old_codec_whole(build_codec, tmp_path, monkeypatch):
    old = build_codec(1)
    old.save_pretrained(tmp_path)

    def fail(self, target):
        raise OSError(f"no power left to write {target}")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no power"):
            build_codec(2).save_pretrained(tmp_path)

    assert Codec.from_pretrained(tmp_path).fingerprint() == old.fingerprint()
    assert len(list(tmp_path.iterdir())) == 3


def test_weights_in_shards_are_the_same_codec_and_replace_other_files(build_codec, tmp_path):
    first, second = build_codec(1), build_codec(2)
    first.save_pretrained(tmp_path)

    second.save_pretrained(tmp_path, max_file_bytes=65_536)
    sharded = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    found = Codec.from_pretrained(tmp_path)
    first.save_pretrained(tmp_path)

    assert "model.safetensors" not in sharded
    assert sum("-of-" in name for name in sharded) > 1
    assert max(size for name, size in sharded.items() if "index" not in name) <= 65_536
    assert found.fingerprint() == second.fingerprint()
    assert Codec.from_pretrained(tmp_path).fingerprint() == first.fingerprint()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


def test_shards_of_another_config_are_refused(build_codec, tmp_path):
    build_codec(1).save_pretrained(tmp_path, max_file_bytes=65_536)
    config = json.loads((tmp_path / "config.json").read_text())
    config["seanet"]["dilation_base"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(WeightsError, match=r"saved with another config\.json"):
        Codec.from_pretrained(tmp_path)


def test_missing_shard_of_a_codec_is_named(build_codec, tmp_path):
    build_codec(1).save_pretrained(tmp_path, max_file_bytes=65_536)
    path = sorted(tmp_path.glob("model-*.safetensors"))[1]
    path.unlink()

    with pytest.raises(WeightsError, match=f"{path.name} is missing"):
        Codec.from_pretrained(tmp_path)


def test_card_says_what_the_codec_is(folder):
    card = (folder / "README.md").read_text()
    assert "4 x 16 codes, 50 frames/s, 0.8 kbps at 16000 Hz" in card


def test_codec_in_training_form_is_not_saved(build_codec, tmp_path):
    codec = build_codec()
    add_weight_norm(codec)
    with pytest.raises(ValueError, match="remove_weight_norm"):
        codec.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()

    remove_weight_norm(codec)
    codec.save_pretrained(tmp_path / "x")

    weights = load_file(tmp_path / "x" / "model.safetensors")
    for name, value in build_codec().state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"my.codec is not a codec folder: {name} is miss"):
        Codec.from_pretrained(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"!" + data[9:],
    ],
)
def test_damaged_weights_are_an_error(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        Codec.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "", "[1]", '"x"', "[" * 100000, "\udcff"])
def test_damaged_config_is_an_error(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WeightsError, match=r"config\.json (is not valid JSON|holds no table)"):
        Codec.from_pretrained(folder)


def test_other_formats_are_refused_with_a_hint(folder):
    change_config(folder, format="dmcodec-codec/2")
    with pytest.raises(WeightsError, match=r"'dmcodec-codec/2', not .*load_published"):
        Codec.from_pretrained(folder)


def test_unknown_setting_is_an_error(folder):
    change_config(folder, frame_size=320)
    with pytest.raises(ConfigError, match=r"config\.json: unknown key 'frame_size'"):
        Codec.from_pretrained(folder)


def test_weights_of_another_shape_are_named_before_anything_is_allocated(folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, seanet=config["seanet"] | {"latent_dim": 4096})
    with pytest.raises(WeightsError, match=r"5 of another shape \(encoder.conv_out.conv.weight"):
        Codec.from_pretrained(folder)


def test_missing_and_unexpected_weights_are_named(folder):
    def change(tensors):
        tensors["extra"] = torch.zeros(1)
        del tensors["quantizer.codebooks"]
        del tensors["encoder.conv_in.conv.bias"]

    change_weights(folder, change)
    message = (
        r"2 missing \(encoder.conv_in.conv.bias; quantizer.codebooks\), 1 unexpected \(extra\)$"
    )
    with pytest.raises(WeightsError, match=message):
        Codec.from_pretrained(folder)


@pytest.fixture
def no_network(monkeypatch):
    """Offline, as HF_HUB_OFFLINE=1 makes it, and any attempt to connect is a failure."""

    def refuse(*args):
        raise AssertionError(f"tried to connect to {args[1:]}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    "name", ["someone/no-such-codec", "no_such_folder/", "a/b/c", "/no/folder"]
)
def test_what_is_nowhere_says_so_without_a_network(no_network, name):
    with pytest.raises(FileNotFoundError, match=r"no codec .* there is no such folder, and the"):
        Codec.from_pretrained(name)


def test_hub_codec_is_read_from_its_local_copy(folder, codec, monkeypatch):
    asked = []

    def snapshot(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)

    loaded = Codec.from_pretrained("someone/codec", revision="v2")

    patterns = ["config.json", "README.md", "model*.safetensors*"]
    assert asked == [("someone/codec", "v2", patterns)]
    assert loaded.model_id == "someone/codec"
    assert loaded.fingerprint() == codec.fingerprint()


def test_load_takes_a_folder_or_says_that_no_model_is_bundled(codec, folder, monkeypatch, tmp_path):
    assert load(folder).fingerprint() == codec.fingerprint()

    monkeypatch.setattr("dmcodec.codec.checkpoint.__file__", str(tmp_path / "checkpoint.py"))
    with pytest.raises(FileNotFoundError, match="carries no model"):
        load()
    codec.save_pretrained(tmp_path / "bundled")
    assert load().model_id == "dmcodec-small"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_are_saved_as_floats_only(codec, tmp_path, dtype):
    with pytest.raises(ValueError, match=f"not as {dtype}"):
        codec.save_pretrained(tmp_path / "x", dtype=dtype)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.to(torch.int8), "is torch.int8; weights must be float32"),
        (lambda value: torch.full_like(value, torch.nan), "holds NaN or infinite"),
        (lambda value: value.index_fill(0, torch.tensor([0]), torch.inf), "holds NaN or infinite"),
    ],
)
@pytest.mark.parametrize("name", ["encoder.conv_in.conv.weight", "quantizer.codebooks"])
def test_weights_that_would_give_codes_of_nothing_are_refused(folder, name, change, reason):
    def edit(tensors):
        tensors[name] = change(tensors[name])

    change_weights(folder, edit)

    with pytest.raises(WeightsError, match=rf"{name} {reason}"):
        Codec.from_pretrained(folder)


def test_weights_that_do_not_fit_half_precision_are_not_saved(build_codec, tmp_path):
    codec = build_codec()
    with torch.no_grad():
        codec.decoder.conv_out.conv.bias.fill_(1e6)  # float16 ends at 65504

    with pytest.raises(WeightsError, match=r"conv_out\.conv\.bias holds NaN or infinite"):
        codec.save_pretrained(tmp_path / "x", dtype=torch.float16)
    codec.save_pretrained(tmp_path / "x", dtype=torch.bfloat16)

    assert Codec.from_pretrained(tmp_path / "x").decoder.conv_out.conv.bias[0] > 9e5


def test_parts_of_two_models_in_one_folder_are_refused(folder, codec, tmp_path):
    # Same shapes: only what the weights know of their config tells them apart.
    config = codec.config.model_copy(update={"sample_rate": 24_000})
    other = type(codec)(config).eval()
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", folder / "config.json")

    with pytest.raises(WeightsError, match="parts of two models"):
        Codec.from_pretrained(folder)


def test_layout_of_config_is_free_and_weights_without_its_hash_are_taken(folder, codec):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text())))  # in one line
    assert Codec.from_pretrained(folder).fingerprint() == codec.fingerprint()
    change_weights(folder, lambda tensors: None)  # saved without metadata, as by earlier versions

    assert Codec.from_pretrained(folder).fingerprint() == codec.fingerprint()


def test_codec_folder_has_the_permissions_of_the_umask(codec, tmp_path):
    before = os.umask(0o077)
    try:
        codec.save_pretrained(tmp_path / "x")
    finally:
        os.umask(before)

    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()} == {0o600}
