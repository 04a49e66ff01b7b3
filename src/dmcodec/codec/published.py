"""Official DM-Codec and SpeechTokenizer weights, read into our codec.

Both projects publish one network in one layout; what is known here is that layout: the keys of its
config.json and the names of its tensors. Nothing is written in it.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor

from dmcodec.codec.checkpoint import (
    WeightsError,
    check_tensors,
    check_values,
    fill_codec,
    read_json,
    read_safetensors,
    unfilled_codec,
)
from dmcodec.codec.model import Codec
from dmcodec.codec.network import CodecConfig
from dmcodec.config import Record, build_record

_BOOK = "quantizer.vq.layers.{}._codebook."
_UNIT_PARTS = {
    "activation_in.": "block.0.",
    "conv_in.": "block.1.",
    "activation_out.": "block.2.",
    "conv_out.": "block.3.",
}


class PublishedConfig(Record):
    """The keys of an official config.json that define the network; those for training are ignored.

    `strides` are in decoder order, `semantic_dimension` is the width of the teachers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    sample_rate: PositiveInt
    n_filters: PositiveInt
    strides: tuple[PositiveInt, ...]
    dimension: PositiveInt
    semantic_dimension: PositiveInt
    bidirectional: bool
    dilation_base: PositiveInt
    residual_kernel_size: PositiveInt
    n_residual_layers: NonNegativeInt
    lstm_layers: PositiveInt
    activation: Literal["ELU", "Snake"]
    codebook_size: PositiveInt
    n_q: PositiveInt


def load_published(config: str | Path, checkpoint: str | Path) -> Codec:
    """A codec with official DM-Codec or SpeechTokenizer weights, in evaluation mode on the CPU.

    It gives the codes and waveforms of the official network, except that a waveform is as long as
    the one that was encoded. Moving averages of the codebooks' sums are not kept: training goes on
    from the codebooks themselves.

    Args:
        config: the project's config.json.
        checkpoint: a safetensors file, or a torch file of tensors, of the network or of the whole
            trainer. Files that would run code when loaded are refused.

    Raises FileNotFoundError for missing files, ConfigError for a network that this codec cannot be,
    and WeightsError for files that are damaged, refused or do not fit together.
    """
    config, checkpoint = Path(config), Path(checkpoint)
    for path in (config, checkpoint):
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
    codec = unfilled_codec(Codec, read_published_config(config))
    tensors, sizes = split_weight_norm(read_state_dict(checkpoint), checkpoint)
    names = layer_names(codec)
    shapes = {official: codec.get_parameter(ours).shape for official, ours in names.items()}
    check_tensors(tensors, shapes | codebook_shapes(codec), checkpoint)
    shapes = {n: torch.Size([len(tensors[n])] + [1] * (tensors[n].ndim - 1)) for n in sizes}
    check_tensors(sizes, shapes, checkpoint)
    for name, size in sizes.items():
        tensors[name] = fold_weight_norm(tensors[name], size)
    weights = {ours: tensors[official] for official, ours in names.items()}
    weights |= join_codebooks(tensors, codec.config.quantizer.num_codebooks)
    check_values(weights, codec.state_dict(), str(checkpoint))
    fill_codec(codec, weights)
    codec.model_id = checkpoint.stem
    return codec


def read_published_config(path: Path) -> CodecConfig:
    """The network of an official config.json, as our configuration."""
    official = build_record(PublishedConfig, read_json(path), source=str(path))
    has_map = official.dimension != official.semantic_dimension
    table = {
        "sample_rate": official.sample_rate,
        "seanet": {
            "num_filters": official.n_filters,
            "strides": official.strides[::-1],
            "latent_dim": official.dimension,
            "residual_kernel_size": official.residual_kernel_size,
            "num_residual_layers": official.n_residual_layers,
            "dilation_base": official.dilation_base,
            "num_lstm_layers": official.lstm_layers,
            "is_encoder_bidirectional": official.bidirectional,
            "activation": official.activation.lower(),
        },
        "quantizer": {
            "num_codebooks": official.n_q,
            "codebook_size": official.codebook_size,
        },
        "feature_dim": official.semantic_dimension if has_map else None,
    }
    return build_record(CodecConfig, table, source=str(path))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The network's tensors by their official names, from any of the files they come in."""
    loaded: Any
    if path.suffix == ".safetensors":
        loaded = read_safetensors(path)
    else:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or hostile file makes the reader raise anything
            raise WeightsError(
                f"{path} is refused: it is damaged, or holds more than tensors and loading it could"
                f" run code ({type(error).__name__})"
            ) from error
    if isinstance(loaded, dict) and "generator" in loaded:
        loaded = loaded["generator"]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"{path} holds no state dict, neither at its top nor as 'generator'")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def split_weight_norm(
    tensors: dict[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All tensors by plain names, and apart from them the sizes of the normalized weights.

    A normalized weight is stored as direction and size: `weight_v` and `weight_g`, or in newer
    PyTorch `parametrizations.weight.original1` and `original0`. Its plain name holds the direction
    here, until `fold_weight_norm`.
    """
    plain: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    directions = set()
    for name, value in tensors.items():
        module, _, kind = name.replace(".parametrizations.weight.", ".").rpartition(".")
        if kind in ("weight_g", "original0"):
            sizes[f"{module}.weight"] = value
        elif kind in ("weight_v", "original1"):
            plain[f"{module}.weight"] = value
            directions.add(f"{module}.weight")
        else:
            plain[name] = value
    if directions != sizes.keys():
        name = min(directions ^ sizes.keys())
        raise WeightsError(f"{path}: {name} has only one of direction and size (weight_v, _g)")
    return plain, sizes


def fold_weight_norm(direction: Tensor, size: Tensor) -> Tensor:
    """Plain weight from direction [C, ...] and size [C, 1, ...]; C are the first channels."""
    direction, size = direction.float(), size.float()
    norm = direction.flatten(1).norm(dim=1)  # [C]
    return direction * (size / norm.reshape(size.shape))


def layer_names(codec: Codec) -> dict[str, str]:
    """Our names of all parameters, by their official names.

    An official encoder or decoder is one row of layers, numbered, with activations between.
    """
    seanet = codec.config.seanet
    units = [f"residual.units.{unit}" for unit in range(seanet.num_residual_layers)]
    encoder, decoder = ["conv_in"], ["conv_in", "lstm"]
    for block in range(len(seanet.strides)):
        encoder += [f"blocks.{block}.{layer}" for layer in (*units, "activation", "downsample")]
        decoder += [f"blocks.{block}.{layer}" for layer in ("activation", "upsample", *units)]
    encoder += ["lstm", "activation", "conv_out"]
    decoder += ["activation", "conv_out"]
    rows = {"encoder": encoder, "decoder": decoder}
    numbers = {
        f"{part}.{layer}.": f"{part}.model.{number}."
        for part, row in rows.items()
        for number, layer in enumerate(row)
    }
    names = {}
    for ours, _ in codec.named_parameters():
        layer = next((layer for layer in numbers if ours.startswith(layer)), "feature_map.")
        rest = ours.removeprefix(layer)
        for part, number in _UNIT_PARTS.items():
            rest = rest.replace(part, number)
        convolution = "convtr.convtr." if layer.endswith(".upsample.") else "conv.conv."
        official = numbers.get(layer, "transform.") + rest.replace("conv.", convolution)
        names[official] = ours
    return names


def codebook_shapes(codec: Codec) -> dict[str, torch.Size]:
    """The shapes of the official quantizer's tensors, by their names."""
    books, entries, latent_dim = codec.quantizer.codebooks.shape
    shapes = {
        "inited": torch.Size([1]),
        "cluster_size": torch.Size([entries]),
        "embed": torch.Size([entries, latent_dim]),
        "embed_avg": torch.Size([entries, latent_dim]),
    }
    return {
        _BOOK.format(book) + name: shape for book in range(books) for name, shape in shapes.items()
    }


def join_codebooks(tensors: dict[str, Tensor], num_codebooks: int) -> dict[str, Tensor]:
    """The buffers of our quantizer from those of the official one."""

    def stack(name: str) -> Tensor:
        return torch.stack([tensors[_BOOK.format(book) + name] for book in range(num_codebooks)])

    return {
        "quantizer.codebooks": stack("embed"),
        "quantizer.cluster_sizes": stack("cluster_size"),
        "quantizer.is_started": stack("inited").bool().all(),
        "quantizer.num_updates": torch.zeros(()),
    }
