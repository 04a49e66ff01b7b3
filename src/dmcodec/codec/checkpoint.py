"""Codec folders: config.json, model.safetensors and a card, on disk or on the Hugging Face Hub.

Weights may be stored in half precision; in memory they are float32. Weights in other projects'
layouts are read by published.py.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dmcodec.audio import write_audio
from dmcodec.codec.network import CodecConfig, CodecNetwork
from dmcodec.codec.tensor_files import (
    TensorFileError,
    are_there,
    load_tensors,
    remove_other_files,
    save_tensors,
)
from dmcodec.config import build_record, parse_json
from dmcodec.storage import replace_together, write_whole

CONFIG_NAME, WEIGHTS_NAME, CARD_NAME = "config.json", "model.safetensors", "README.md"
_WEIGHTS = "model"  # the name in tensor_files.py: WEIGHTS_NAME, or shards with an index
BUNDLED_ID = "dmcodec-small"
_FORMAT = "dmcodec-codec/1"
_CONFIG_HASH = "config_hash"
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FLOAT_NAMES = "float32, float16, bfloat16 or float64"

AnyCodec = TypeVar("AnyCodec", bound=CodecNetwork)


class WeightsError(ValueError):
    """Weights or their config.json are damaged, or in a layout that this version cannot read."""


def save_pretrained(
    codec: CodecNetwork,
    folder: Path,
    *,
    dtype: torch.dtype,
    card: str | None,
    sounds: Mapping[str, Tensor] | None = None,
    max_file_bytes: int | None = None,
) -> None:
    """Writes the codec's folder; weights and config appear together, and know each other.

    Args:
        codec: with plain weights (see `remove_weight_norm`).
        folder: made if missing; files of the same names are replaced.
        dtype: of floating-point weights on disk; float16 halves the size.
        card: text of README.md; None leaves what is there.
        sounds: name of a file -> waveform [T]: what the card plays.
        max_file_bytes: of a file of weights; more of them lie in several, None: in one.

    Raises ValueError for a dtype that is not floating, and for weights that are NaN or infinite,
    be it that they do not fit the dtype.
    """
    if any("parametrizations" in name for name, _ in codec.named_parameters()):
        raise ValueError("the codec is in training form: call remove_weight_norm(codec) first")
    check_dtype(dtype)
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in codec.state_dict().items()
    }
    check_values(tensors, codec.state_dict(), f"codec {codec.model_id!r} as {dtype}")
    config = {"format": _FORMAT, **codec.config.model_dump(mode="json")}
    known = {_CONFIG_HASH: _hash_config(config)}
    with replace_together(folder) as aside:
        write_whole(aside / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
        save_tensors(tensors, aside, _WEIGHTS, max_bytes=max_file_bytes, metadata=known)
        if card is not None:
            write_whole(aside / CARD_NAME, card)
        for name, waveform in (sounds or {}).items():
            write_audio(aside / name, waveform.numpy(), codec.config.sample_rate)
        written = [path.name for path in aside.iterdir()]
    remove_other_files(folder, _WEIGHTS, written)


def load_pretrained(
    kind: type[AnyCodec], folder_or_id: str | Path, *, revision: str | None = None
) -> AnyCodec:
    """Reads a codec from a folder, or from the Hub when no such folder exists.

    Raises FileNotFoundError where nothing is found, WeightsError for damaged files and
    ConfigError for settings that this version does not know.
    """
    folder = Path(folder_or_id)
    if not folder.is_dir():
        folder = _download(str(folder_or_id), revision)
    config = load_codec_config(folder)
    path = folder / WEIGHTS_NAME
    if not are_there(folder, _WEIGHTS):
        raise FileNotFoundError(f"{folder} is not a codec folder: {WEIGHTS_NAME} is missing")
    try:
        tensors, known = load_tensors(folder, _WEIGHTS)
    except TensorFileError as error:
        raise WeightsError(str(error)) from error
    codec = unfilled_codec(kind, config)
    expected = codec.state_dict()
    check_tensors(tensors, {name: value.shape for name, value in expected.items()}, path)
    check_values(tensors, expected, str(path))
    _check_same_codec(known.get(_CONFIG_HASH), path, folder / CONFIG_NAME)
    fill_codec(codec, tensors)
    codec.model_id = (
        Path(folder_or_id).resolve().name if Path(folder_or_id).is_dir() else str(folder_or_id)
    )
    return codec


def load_bundled(kind: type[AnyCodec]) -> AnyCodec:
    """Reads the bundled model; FileNotFoundError where there is none."""
    folder = Path(__file__).parent / "bundled"
    if not (folder / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"this build of dmcodec carries no model: {folder} is empty")
    codec = load_pretrained(kind, folder)
    codec.model_id = BUNDLED_ID
    return codec


def load_codec_config(folder: Path) -> CodecConfig:
    """Reads the config.json of a codec folder."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a codec folder: {CONFIG_NAME} is missing")
    table = read_json(path)
    written = table.pop("format", None)
    if written != _FORMAT:
        raise WeightsError(
            f"{path} has format {written!r}, not {_FORMAT!r}; official DM-Codec and"
            " SpeechTokenizer weights are read by dmcodec.load_published(config, checkpoint)"
        )
    return build_record(CodecConfig, table, source=str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file; raises WeightsError where there is none."""
    try:
        table = parse_json(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise WeightsError(f"{path} holds no table of settings")
    return table


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises WeightsError for a damaged one."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error


def unfilled_codec(kind: type[AnyCodec], config: CodecConfig) -> AnyCodec:
    """A codec whose weights have shapes and no values: nothing is allocated, nothing drawn."""
    with torch.device("meta"):
        return kind(config)


def fill_codec(codec: CodecNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Gives an unfilled codec its tensors, in float32, and sets it to evaluation mode."""
    dtypes = {name: value.dtype for name, value in codec.state_dict().items()}
    codec.load_state_dict(
        {name: value.to(dtypes[name]) for name, value in tensors.items()}, assign=True
    )
    codec.eval()


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], path: Path
) -> None:
    """Raises WeightsError, naming the first few, unless names and shapes are as expected."""
    shapes = {name: value.shape for name, value in tensors.items()}
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(shapes[name])}, not {list(shape)}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    found = [
        f"{len(names)} {problem} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise WeightsError(f"the tensors in {path} do not fit its config: " + ", ".join(found))


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ValueError for a dtype that weights cannot be stored in without ruin."""
    if dtype not in _FLOAT_DTYPES:
        raise ValueError(f"weights can be saved as {_FLOAT_NAMES}, not as {dtype}")


def check_values(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Raises WeightsError for tensors that would give codes of nothing.

    Those are numbers that are NaN or infinite, and integers in the place of floating-point weights.
    Names and shapes are checked elsewhere.
    """
    for name, value in tensors.items():
        if not expected[name].is_floating_point():
            continue
        if value.dtype not in _FLOAT_DTYPES:
            raise WeightsError(f"{source}: {name} is {value.dtype}; weights must be {_FLOAT_NAMES}")
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{source}: {name} holds NaN or infinite values")


def _hash_config(table: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of what a config.json says, however it is laid out."""
    return blake2b(json.dumps(table, sort_keys=True).encode(), digest_size=8).hexdigest()


def _check_same_codec(saved_with: str | None, weights: Path, config: Path) -> None:
    """Raises WeightsError for weights that were saved with another config.json.

    Shapes do not show all that decides codes (rate, dilation, order of strides). Weights that were
    saved before they knew their config are taken as they are.
    """
    if saved_with is not None and saved_with != _hash_config(read_json(config)):
        raise WeightsError(
            f"{weights} was saved with another {config.name} than {config}: the folder holds parts "
            "of two models, or one was changed; save or copy the whole model again"
        )


def upload_folder(repo_id: str, folder: Path, *, private: bool) -> str:
    """Uploads a codec's folder to the Hub, as the user who is logged in; gives its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(address)


def _download(repo_id: str, revision: str | None) -> Path:
    """The local copy of a Hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=[CONFIG_NAME, CARD_NAME, f"{_WEIGHTS}*.safetensors*"],
            )
        )
    except (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    ) as error:
        raise FileNotFoundError(
            f"no codec {repo_id!r}: there is no such folder, and the Hugging Face Hub could not"
            f" give it either ({type(error).__name__}). Check the name, log in for private ones,"
            f" or offline fetch {CONFIG_NAME} and {WEIGHTS_NAME} into a folder and name that"
        ) from error
