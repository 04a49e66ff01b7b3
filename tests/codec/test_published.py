"""Official weights, against a second way to run them and against outputs of the official network.

The official network's outputs with its weights are too large for the repository, all but those of
the quantizer. So a reference of the whole network is written out below with plain functions, and
the codec is compared with it on random weights. Where DMCODEC_OFFICIAL_FIXTURES names a folder of
official outputs (see tests/golden/make_official.py), codec and reference are compared with those.
"""

import json
import os
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dmcodec.codec.checkpoint import WeightsError
from dmcodec.codec.published import load_published
from dmcodec.config import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUT = json.loads((GOLDEN / "official_layout.json").read_text())
TINY = {
    **LAYOUT["config"],
    "n_filters": 2,
    "dimension": 6,
    "semantic_dimension": 5,
    "codebook_size": 16,
    "n_q": 3,
}
VARIANTS = {
    "elu": {},
    "snake": {"activation": "Snake"},
    "no map": {"semantic_dimension": 6},
    "other strides": {"strides": [5, 3, 2]},
    "two residual layers": {"n_residual_layers": 2, "residual_kernel_size": 5, "dilation_base": 3},
    "one direction": {"bidirectional": False, "lstm_layers": 1},
}


# The official layout, written out: names and shapes of every tensor.


def convolution_shapes(name, channels_out, channels_in, kernel):
    """A weight-normalized convolution [out, in, kernel]; transposed ones have [in, out, kernel]."""
    kind = "convtr" if "convtr" in name else "conv"
    first, second = (channels_in, channels_out) if kind == "convtr" else (channels_out, channels_in)
    return {
        f"{name}.{kind}.bias": [channels_out],
        f"{name}.{kind}.weight_g": [first, 1, 1],
        f"{name}.{kind}.weight_v": [first, second, kernel],
    }


def activation_shapes(config, name, channels):
    return {f"{name}.alpha": [1, channels, 1]} if config["activation"] == "Snake" else {}


def unit_shapes(config, name, channels):
    half = channels // 2
    return {
        **activation_shapes(config, f"{name}.block.0", channels),
        **convolution_shapes(
            f"{name}.block.1.conv", half, channels, config["residual_kernel_size"]
        ),
        **activation_shapes(config, f"{name}.block.2", half),
        **convolution_shapes(f"{name}.block.3.conv", channels, half, 1),
        **convolution_shapes(f"{name}.shortcut.conv", channels, channels, 1),
    }


def lstm_shapes(config, name, size, is_bidirectional):
    shapes = {}
    for layer in range(config["lstm_layers"]):
        size_in = size * (2 if is_bidirectional and layer else 1)
        for end in ("", "_reverse") if is_bidirectional else ("",):
            shapes[f"{name}.lstm.weight_ih_l{layer}{end}"] = [4 * size, size_in]
            shapes[f"{name}.lstm.weight_hh_l{layer}{end}"] = [4 * size, size]
            shapes[f"{name}.lstm.bias_ih_l{layer}{end}"] = [4 * size]
            shapes[f"{name}.lstm.bias_hh_l{layer}{end}"] = [4 * size]
    return shapes


def official_shapes(config):
    dimension, channels = config["dimension"], config["n_filters"]
    numbers = count()

    def name(part):
        return f"{part}.model.{next(numbers)}"

    shapes = convolution_shapes(name("encoder") + ".conv", channels, 1, 7)
    for stride in reversed(config["strides"]):
        for _ in range(config["n_residual_layers"]):
            shapes |= unit_shapes(config, name("encoder"), channels)
        shapes |= activation_shapes(config, name("encoder"), channels)
        downsample = name("encoder") + ".conv"
        shapes |= convolution_shapes(downsample, 2 * channels, channels, 2 * stride)
        channels *= 2
    shapes |= lstm_shapes(config, name("encoder"), channels, config["bidirectional"])
    last = channels * (2 if config["bidirectional"] else 1)
    shapes |= activation_shapes(config, name("encoder"), last)
    shapes |= convolution_shapes(name("encoder") + ".conv", dimension, last, 7)

    if config["semantic_dimension"] != dimension:
        shapes["transform.weight"] = [config["semantic_dimension"], dimension]
        shapes["transform.bias"] = [config["semantic_dimension"]]
    for book in range(config["n_q"]):
        prefix = f"quantizer.vq.layers.{book}._codebook"
        shapes[f"{prefix}.inited"] = [1]
        shapes[f"{prefix}.cluster_size"] = [config["codebook_size"]]
        shapes[f"{prefix}.embed"] = [config["codebook_size"], dimension]
        shapes[f"{prefix}.embed_avg"] = [config["codebook_size"], dimension]

    numbers = count()
    shapes |= convolution_shapes(name("decoder") + ".conv", channels, dimension, 7)
    shapes |= lstm_shapes(config, name("decoder"), channels, False)
    for stride in config["strides"]:
        shapes |= activation_shapes(config, name("decoder"), channels)
        upsample = name("decoder") + ".convtr"
        shapes |= convolution_shapes(upsample, channels // 2, channels, 2 * stride)
        channels //= 2
        for _ in range(config["n_residual_layers"]):
            shapes |= unit_shapes(config, name("decoder"), channels)
    shapes |= activation_shapes(config, name("decoder"), channels)
    return shapes | convolution_shapes(name("decoder") + ".conv", 1, channels, 7)


def random_weights(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in official_shapes(config).items():
        value = torch.randn(shape, generator=generator)
        if name.endswith(("weight_g", "alpha", "cluster_size", "inited")):
            value = 1 + 0.2 * value.tanh()  # signals keep their size from layer to layer
        elif "lstm" in name or "bias" in name:
            value = 0.1 * value
        elif "embed" in name:
            value = 0.5 * value
        weights[name] = value
    return weights


# The official network, written out with plain functions on the official tensors.


def mirror(x, left, right):
    """Both ends of [B, C, T] mirrored; what is too short is continued with zeros before."""
    num_zeros = max(0, max(left, right) + 1 - x.shape[-1])
    x = torch.cat([x, x.new_zeros(*x.shape[:2], num_zeros)], dim=-1)
    last = x.shape[-1] - 1
    steps = [*range(left, 0, -1), *range(last + 1), *range(last - 1, last - 1 - right, -1)]
    return x[..., steps[: len(steps) - num_zeros]]


def normalized_weight(weights, name):
    direction, size = weights[f"{name}.weight_v"], weights[f"{name}.weight_g"]
    return size * direction / direction.square().sum(dim=(1, 2), keepdim=True).sqrt()


def convolve(x, weights, name, stride=1, dilation=1):
    weight = normalized_weight(weights, f"{name}.conv")
    padding = (weight.shape[-1] - 1) * dilation + 1 - stride
    right = padding // 2
    x = mirror(x, padding - right, right + -x.shape[-1] % stride)
    return F.conv1d(x, weight, weights[f"{name}.conv.bias"], stride, dilation=dilation)


def upsample(x, weights, name, stride):
    weight = normalized_weight(weights, f"{name}.convtr")
    y = F.conv_transpose1d(x, weight, weights[f"{name}.convtr.bias"], stride)
    right = stride // 2
    return y[..., stride - right : y.shape[-1] - right]


def activate(x, weights, name):
    if f"{name}.alpha" not in weights:
        return torch.where(x > 0, x, x.exp() - 1)
    alpha = weights[f"{name}.alpha"]
    return x + torch.sin(alpha * x) ** 2 / alpha


def residual_unit(x, weights, name, dilation):
    y = convolve(
        activate(x, weights, f"{name}.block.0"), weights, f"{name}.block.1.conv", 1, dilation
    )
    y = convolve(activate(y, weights, f"{name}.block.2"), weights, f"{name}.block.3.conv")
    return convolve(x, weights, f"{name}.shortcut.conv") + y


def lstm_direction(x, weights, name, end):
    """One layer in one direction over [L, B, C], step by step."""
    input_gates = x @ weights[f"{name}.weight_ih_{end}"].t() + weights[f"{name}.bias_ih_{end}"]
    hidden = cell = x.new_zeros(x.shape[1], weights[f"{name}.weight_hh_{end}"].shape[1])
    outputs = []
    for gates in input_gates:
        gates = gates + hidden @ weights[f"{name}.weight_hh_{end}"].t()
        enter, forget, value, leave = (gates + weights[f"{name}.bias_hh_{end}"]).chunk(4, dim=1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs)


def skip_lstm(x, weights, name):
    x = x.permute(2, 0, 1)  # [L, B, C]
    y = x
    for layer in count():
        if f"{name}.weight_ih_l{layer}" not in weights:
            break
        directions = [lstm_direction(y, weights, name, f"l{layer}")]
        if f"{name}.weight_ih_l{layer}_reverse" in weights:
            backward = lstm_direction(y.flip(0), weights, name, f"l{layer}_reverse")
            directions.append(backward.flip(0))
        y = torch.cat(directions, dim=-1)
    return (y + x.repeat(1, 1, y.shape[-1] // x.shape[-1])).permute(1, 2, 0)


def run_official(part, x, weights, config):
    """All layers of the encoder or decoder in turn; what a layer is, its tensors tell."""
    strides = iter(config["strides"] if part == "decoder" else config["strides"][::-1])
    last = max(int(n.split(".")[2]) for n in weights if n.startswith(f"{part}.model."))
    num_units = 0
    for number in range(last + 1):
        name = f"{part}.model.{number}"
        if f"{name}.shortcut.conv.conv.bias" in weights:
            x = residual_unit(x, weights, name, config["dilation_base"] ** num_units)
            num_units += 1
            continue
        num_units = 0
        if f"{name}.lstm.weight_ih_l0" in weights:
            x = skip_lstm(x, weights, f"{name}.lstm")
        elif f"{name}.convtr.convtr.bias" in weights:
            x = upsample(x, weights, f"{name}.convtr", next(strides))
        elif f"{name}.conv.conv.bias" in weights:
            is_end = number in (0, last)
            x = convolve(x, weights, f"{name}.conv", 1 if is_end else next(strides))
        else:
            x = activate(x, weights, name)
    return x


def official_codes(latents, weights, config):
    """Codes [K, B, L] and each book's vectors [K, B, D, L]."""
    residual = latents.transpose(1, 2)  # [B, L, D]
    codes, vectors = [], []
    for book in range(config["n_q"]):
        entries = weights[f"quantizer.vq.layers.{book}._codebook.embed"]
        index = (residual[:, :, None] - entries).square().sum(dim=-1).argmin(dim=-1)
        codes.append(index)
        vectors.append(entries[index].transpose(1, 2))
        residual = residual - entries[index]
    return torch.stack(codes), torch.stack(vectors)


def write_files(folder, config, weights, name="SpeechTokenizer.pt"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return folder / "config.json", path


def make_waveforms(lengths, batch_size=2):
    generator = torch.Generator().manual_seed(5)
    return [2 * torch.randn(batch_size, 1, length, generator=generator) for length in lengths]


def assert_near(ours, theirs):
    """Equal to 2e-5; with Snake signals grow to 20, and rounding errors with them."""
    atol = 2e-5 * max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.fixture
def weights():
    return random_weights(TINY)


@pytest.fixture
def expected(weights, tmp_path):
    """The codec of the plainest layout."""
    return load_published(*write_files(tmp_path / "flat", TINY, weights))


def fold(weights):
    """The same weights without normalization."""
    folded = {n: v for n, v in weights.items() if not n.endswith(("weight_g", "weight_v"))}
    for name in weights:
        if name.endswith("weight_v"):
            module = name.removesuffix(".weight_v")
            folded[f"{module}.weight"] = normalized_weight(weights, module)
    return folded


def test_layout_written_here_is_the_official_one():
    assert official_shapes(LAYOUT["config"]) == LAYOUT["shapes"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_codec_gives_what_the_official_network_gives(variant, tmp_path):
    config = TINY | VARIANTS[variant]
    weights = random_weights(config)
    hop_length = torch.tensor(config["strides"]).prod()

    codec = load_published(*write_files(tmp_path, config, weights))

    assert codec.config.hop_length == hop_length
    for waveform in make_waveforms([1, 2, 9, hop_length, hop_length + 1, 3 * hop_length - 7]):
        latents = run_official("encoder", waveform, weights, config)
        codes, vectors = official_codes(latents, weights, config)
        decoded = run_official("decoder", vectors.sum(dim=0), weights, config)
        num_samples = waveform.shape[-1]

        encoded = codec.encode(waveform)
        with torch.no_grad():
            output = codec(waveform)
            ours = codec.encoder(waveform)

        assert torch.equal(encoded.codes, codes.transpose(0, 1))
        assert_near(ours, latents)
        assert_near(codec.decode(encoded), decoded[:, 0, :num_samples])
        assert_near(torch.stack(output.quantizer.book_outputs), vectors)
        if codec.feature_map is not None:
            features = vectors[0].transpose(1, 2) @ weights["transform.weight"].t()
            student = codec.feature_map(output.quantizer.book_outputs[0].transpose(1, 2))
            assert_near(student, features + weights["transform.bias"])
    assert (codec.feature_map is None) == (variant == "no map")


def test_quantizer_and_feature_map_give_the_official_results(tmp_path):
    golden = load_file(GOLDEN / "official_quantizer.safetensors")
    weights = random_weights(LAYOUT["config"])
    for book, entries in enumerate(golden["codebooks"]):
        weights[f"quantizer.vq.layers.{book}._codebook.embed"] = entries.clone()
    for name in ("transform.weight", "transform.bias"):
        weights[name] = golden[name]
    codec = load_published(*write_files(tmp_path, LAYOUT["config"], weights))

    codes = codec.quantizer.encode(golden["latents"])
    with torch.no_grad():
        output = codec.quantizer(golden["latents"])
        features = codec.feature_map(output.book_outputs[0].transpose(1, 2))

    assert torch.equal(codes, golden["codes"].long())
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(
        codec.quantizer.decode(codes), golden["quantized"], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(features, golden["features"], rtol=0, atol=1e-5)


def test_all_layouts_of_one_checkpoint_give_one_codec(weights, expected, tmp_path):
    optimizer = torch.optim.Adam([weights["transform.bias"].clone().requires_grad_()])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in weights.items()
    }
    trainer = {
        "generator": wrapped,
        "discriminators": {"mpd": {"conv.weight": torch.zeros(2)}},
        "optim_g": optimizer.state_dict(),
        "best_dev_mel_loss": 0.5,
    }

    files = {
        "wrapped.pt": wrapped,
        "SpeechTokenizerTrainer_00025000": trainer,
        "renamed.pt": renamed,
        "flat.safetensors": weights,
        "wrapped.safetensors": wrapped,
    }
    for name, content in files.items():
        codec = load_published(*write_files(tmp_path / "other", TINY, content, name))
        assert codec.fingerprint() == expected.fingerprint(), name
        assert codec.model_id == Path(name).stem
        assert torch.equal(codec.feature_map.weight, expected.feature_map.weight)


def test_plain_weights_are_taken_as_they_are(weights, expected, tmp_path):
    codec = load_published(*write_files(tmp_path / "other", TINY, fold(weights)))

    for name, value in expected.state_dict().items():
        torch.testing.assert_close(codec.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_half_precision_checkpoint_becomes_float32(weights, tmp_path):
    half = {name: value.half() for name, value in weights.items()}
    same = {name: value.float() for name, value in half.items()}

    codec = load_published(*write_files(tmp_path / "half", TINY, half))

    other = load_published(*write_files(tmp_path / "same", TINY, same))
    assert codec.fingerprint() == other.fingerprint()
    assert {value.dtype for value in codec.parameters()} == {torch.float32}


def test_training_goes_on_from_the_books_that_were_read(weights, expected):
    before = expected.quantizer.codebooks.clone()
    sizes = [weights[f"quantizer.vq.layers.{k}._codebook.cluster_size"] for k in range(3)]
    assert torch.equal(expected.quantizer.cluster_sizes, torch.stack(sizes))

    expected(make_waveforms([6400])[0], update=True)

    # A start by k-means would have replaced every entry.
    is_unchanged = (expected.quantizer.codebooks == before).all(dim=-1)
    assert 0.2 < float(is_unchanged.float().mean()) < 0.95


def test_loaded_codec_is_an_ordinary_one(expected, tmp_path):
    expected.save_pretrained(tmp_path / "saved")

    again = type(expected).from_pretrained(tmp_path / "saved")

    assert not expected.training
    assert again.fingerprint() == expected.fingerprint()
    assert torch.equal(again.feature_map.weight, expected.feature_map.weight)


class Payload:
    """Runs code when unpickled: makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_file_that_would_run_code_is_refused(weights, tmp_path, is_zip):
    config, path = write_files(tmp_path, TINY, weights)
    trap = tmp_path / "trap"
    content = {"generator": weights, "extra": Payload(str(trap))}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)

    with pytest.raises(WeightsError, match=r"SpeechTokenizer\.pt is refused.*could run code"):
        load_published(config, path)

    assert not trap.exists()


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("size", [0, 5, 1000])
def test_damaged_file_is_refused(weights, tmp_path, name, size):
    config, path = write_files(tmp_path, TINY, weights, name)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match="damaged"):
        load_published(config, path)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"a": 1}, {"generator": torch.ones(1)}]
)
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    files = write_files(tmp_path, TINY, content)
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_published(*files)


def test_missing_files_are_named(weights, tmp_path):
    config, path = write_files(tmp_path, TINY, weights)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_published(tmp_path / "none.json", path)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_published(str(config), str(tmp_path / "none.pt"))


def remove(name):
    return lambda weights: weights.pop(name)


def replace(name, *shape):
    return lambda weights: weights.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("transform.bias"), r"1 missing \(transform.bias\)$"),
        (
            remove("encoder.model.13.lstm.bias_hh_l1_reverse"),
            r"1 missing \(encoder.model.13.lstm.bias_hh_l1_reverse\)$",
        ),
        (
            remove("quantizer.vq.layers.2._codebook.embed"),
            r"1 missing \(quantizer.vq.layers.2._codebook.embed\)$",
        ),
        (
            lambda weights: [weights.pop(n) for n in list(weights) if n.startswith("decoder")],
            r"\d+ missing \(decoder.model.0.conv.conv.bias; .*; .*; \.\.\.\)$",
        ),
        (
            replace("encoder.model.2.alpha", 1, 2, 1),
            r"1 unexpected \(encoder.model.2.alpha\)$",
        ),
        (replace("transform.bias", 7), r"1 of another shape \(transform.bias \[7\], not \[5\]\)$"),
        (
            replace("decoder.model.0.conv.conv.weight_v", 32, 6, 5),
            r"decoder.model.0.conv.conv.weight \[32, 6, 5\], not \[32, 6, 7\]",
        ),
        (
            replace("decoder.model.0.conv.conv.weight_g", 1, 1, 1),
            r"decoder.model.0.conv.conv.weight \[1, 1, 1\], not \[32, 1, 1\]",
        ),
        (
            remove("decoder.model.0.conv.conv.weight_g"),
            r"decoder.model.0.conv.conv.weight has only one of direction and size",
        ),
        (
            remove("decoder.model.0.conv.conv.weight_v"),
            r"decoder.model.0.conv.conv.weight has only one of direction and size",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(weights, tmp_path, change, message):
    change(weights)
    files = write_files(tmp_path, TINY, weights)
    with pytest.raises(WeightsError, match=message):
        load_published(*files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strides": [8, 5, 4, 3]},
            r"2 of another shape \(encoder.model.3.conv.conv.weight \[4, 2, 4\], not \[4, 2, 6\]",
        ),
        ({"strides": [8, 5, 4]}, r"18 missing .*, 34 unexpected .*, 39 of another shape"),
        ({"strides": [5, 8, 4, 2]}, r"4 of another shape \(encoder.model.9.conv"),
        ({"n_q": 4}, r"4 missing \(quantizer.vq.layers.3._codebook.cluster_size;"),
        ({"n_q": 2}, r"4 unexpected \(quantizer.vq.layers.2._codebook.cluster_size;"),
        ({"activation": "Snake"}, r"26 missing \(decoder.model.10.block.0.alpha;"),
        ({"bidirectional": False}, r"8 unexpected \(encoder.model.13.lstm.bias_hh_l0_reverse"),
        ({"semantic_dimension": 6}, r"2 unexpected \(transform.bias; transform.weight\)$"),
    ],
)
def test_config_of_another_network_is_told_by_its_tensors(weights, tmp_path, changes, message):
    files = write_files(tmp_path, TINY | changes, weights)
    with pytest.raises(WeightsError, match=message):
        load_published(*files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lstm_layers": 0}, "lstm_layers: Input should be greater than 0"),
        ({"lstm_layers": None}, "lstm_layers: Input should be a valid integer"),
        ({"activation": "ReLU"}, "activation: Input should be 'ELU' or 'Snake'"),
        ({"strides": [8, 5, 0]}, r"strides\.2: Input should be greater than 0"),
        ({"strides": []}, r"strides: Tuple should have at least 1 item"),
        ({"n_filters": 3}, "num_filters: Input should be a multiple of 2"),
        ({"dimension": "wide"}, "dimension: Input should be a valid integer"),
    ],
)
def test_network_that_ours_cannot_be_is_an_error(weights, tmp_path, changes, message):
    files = write_files(tmp_path, TINY | changes, weights)
    with pytest.raises(ConfigError, match=r"config\.json: .*" + message):
        load_published(*files)


@pytest.mark.parametrize("key", ["n_q", "sample_rate", "bidirectional"])
def test_missing_setting_is_named(weights, tmp_path, key):
    files = write_files(tmp_path, {k: v for k, v in TINY.items() if k != key}, weights)
    with pytest.raises(ConfigError, match=f"{key}: Field required"):
        load_published(*files)


def test_settings_of_training_are_ignored(weights, expected, tmp_path):
    codec = load_published(*write_files(tmp_path / "other", TINY | {"my_own": [1]}, weights))
    assert codec.config == expected.config


# The official outputs themselves, where they are at hand.

FIXTURES = os.environ.get("DMCODEC_OFFICIAL_FIXTURES")


@pytest.fixture(scope="module")
def official():
    """Codec, weights, configuration and the official inputs and outputs."""
    folder = Path(str(FIXTURES))
    names = ("filled_state_dict", "inputs", "eval_io", "edge_lengths")
    files = {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in names}  # noqa: TID251
    files["codec"] = load_published(folder / "config.json", folder / "filled_state_dict.pt")
    files["config"] = json.loads((folder / "config.json").read_text())
    return files


with_fixtures = pytest.mark.skipif(
    FIXTURES is None,
    reason="DMCODEC_OFFICIAL_FIXTURES does not name a folder of official outputs",
)


@pytest.mark.slow
@with_fixtures
@pytest.mark.parametrize("key", ["x1", "x2"])
def test_codec_gives_the_official_outputs(official, key):
    codec, waveform = official["codec"], official["inputs"][key]
    outputs = {n.removeprefix(f"{key}."): v for n, v in official["eval_io"].items()}
    num_samples = waveform.shape[-1]

    encoded = codec.encode(waveform)
    with torch.no_grad():
        latents = codec.encoder(waveform)
        output = codec(waveform)
        features = codec.feature_map(output.quantizer.book_outputs[0].transpose(1, 2))
    residual, losses = outputs["encoder_out"], []
    for vectors in outputs["forward_feature"]:
        losses.append((residual - vectors).square().mean())
        residual = residual - vectors

    assert torch.equal(encoded.codes, outputs["codes"].transpose(0, 1))
    first3 = codec.encode(waveform, num_codebooks=3)
    assert torch.equal(first3.codes, outputs["codes_nq3"].transpose(0, 1))
    pairs = {
        "encoder_out": latents,
        "quantizer_decode": codec.quantizer.decode(encoded.codes),
        "decode": codec.decode(encoded)[:, None],
        "decode_first3": codec.decode(first3)[:, None],
        "decode_2to5_st2": codec.decode(encoded.select_codebooks(2, 5))[:, None],
        "forward.o": output.waveform,
        "forward.feature": features,
        "forward_feature": torch.stack(output.quantizer.book_outputs),
    }
    for name, ours in pairs.items():
        theirs = outputs[name]
        if name.startswith("decode") or name == "forward.o":
            theirs = theirs[..., :num_samples]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5, msg=name)
    torch.testing.assert_close(output.quantizer.commitment_loss, torch.stack(losses).mean())


@pytest.mark.slow
@with_fixtures
def test_codec_gives_the_official_outputs_at_edge_lengths_alone_and_together(official):
    codec, edges = official["codec"], official["edge_lengths"]
    together = codec.encode([edge["x"] for edge in edges.values()])
    decoded = codec.decode(together)

    for row, (num_samples, edge) in enumerate(edges.items()):
        alone = codec.encode(edge["x"])
        assert torch.equal(alone.codes, edge["codes"].transpose(0, 1))
        assert torch.equal(together.item(row), alone.codes[0])
        theirs = edge["o"][:, 0, : int(num_samples)]
        torch.testing.assert_close(codec.decode(alone), theirs, rtol=0, atol=2e-5)
        ours = decoded[row : row + 1, : int(num_samples)]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.slow
@with_fixtures
def test_reference_written_here_gives_the_official_outputs(official):
    weights, config = official["filled_state_dict"], official["config"]
    for key, waveform in official["inputs"].items():
        outputs = official["eval_io"]
        latents = run_official("encoder", waveform, weights, config)
        codes, vectors = official_codes(latents, weights, config)
        decoded = run_official("decoder", vectors.sum(dim=0), weights, config)

        torch.testing.assert_close(latents, outputs[f"{key}.encoder_out"], rtol=0, atol=2e-5)
        assert torch.equal(codes, outputs[f"{key}.codes"])
        torch.testing.assert_close(decoded, outputs[f"{key}.decode"], rtol=0, atol=2e-5)
    for edge in official["edge_lengths"].values():
        latents = run_official("encoder", edge["x"], weights, config)
        codes, vectors = official_codes(latents, weights, config)
        decoded = run_official("decoder", vectors.sum(dim=0), weights, config)
        assert torch.equal(codes, edge["codes"])
        torch.testing.assert_close(decoded, edge["o"], rtol=0, atol=2e-5)
