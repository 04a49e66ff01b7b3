"""Codec folders: config.json, model.safetensors and a card, on disk or on the Hugging Face Hub.

Weights may be stored in half precision; in memory they are float32. Weights in other projects'
layouts are read by published.py.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.config import build_record

CONFIG_NAME, WEIGHTS_NAME, CARD_NAME = "config.json", "model.safetensors", "README.md"
BUNDLED_ID = "dmcodec-small"
_FORMAT = "dmcodec-codec/1"

AnyCodec = TypeVar("AnyCodec", bound=Codec)


class CheckpointError(ValueError):
    """A codec folder that is damaged or was written in a layout that this version cannot read."""


def save_pretrained(codec: Codec, folder: Path, *, dtype: torch.dtype, card: str | None) -> None:
    """Writes the codec's folder; each file appears whole.

    Args:
        codec: with plain weights (see `remove_weight_norm`).
        folder: made if missing; files of the same names are replaced.
        dtype: of floating-point weights on disk; float16 halves the size.
        card: text of README.md; None leaves an existing card, or writes a short one.
    """
    if any("parametrizations" in name for name, _ in codec.named_parameters()):
        raise ValueError("the codec is in training form: call remove_weight_norm(codec) first")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in codec.state_dict().items()
    }
    config = {"format": _FORMAT, **codec.config.model_dump(mode="json")}
    _replace(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".writing_")
    os.close(descriptor)
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.chmod(temporary, 0o644)
    os.replace(temporary, folder / WEIGHTS_NAME)
    if card is not None or not (folder / CARD_NAME).exists():
        _replace(folder / CARD_NAME, card if card is not None else _short_card(codec))


def load_pretrained(
    kind: type[AnyCodec], folder_or_id: str | Path, *, revision: str | None = None
) -> AnyCodec:
    """Reads a codec from a folder, or from the Hub when no such folder exists.

    Raises FileNotFoundError where nothing is found and CheckpointError for damaged files.
    """
    folder = Path(folder_or_id)
    if not folder.is_dir():
        folder = _download(str(folder_or_id), revision)
    config = load_codec_config(folder)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a codec folder: {WEIGHTS_NAME} is missing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    codec = kind(config)
    expected = codec.state_dict()
    problems = list(expected.keys() ^ tensors.keys())
    problems += [
        n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit its {CONFIG_NAME}: {len(problems)} tensors are missing, "
            f"unexpected or of another shape, such as {sorted(problems)[0]}"
        )
    codec.load_state_dict({n: v.to(expected[n].dtype) for n, v in tensors.items()})
    codec.model_id = (
        Path(folder_or_id).resolve().name if Path(folder_or_id).is_dir() else str(folder_or_id)
    )
    return codec.eval()


def load(folder_or_id: str | Path | None = None) -> Codec:
    """The bundled model, or the codec in a folder or on the Hub; in evaluation mode on the CPU."""
    if folder_or_id is not None:
        return load_pretrained(Codec, folder_or_id)
    folder = Path(__file__).parent / "bundled"
    if not (folder / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"this build of dmcodec carries no model: {folder} is empty")
    codec = load_pretrained(Codec, folder)
    codec.model_id = BUNDLED_ID
    return codec


def load_codec_config(folder: Path) -> CodecConfig:
    """Reads the config.json of a codec folder."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a codec folder: {CONFIG_NAME} is missing")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    written = table.pop("format", None) if isinstance(table, dict) else None
    if written != _FORMAT:
        raise CheckpointError(
            f"{path} has format {written!r}, not {_FORMAT!r}; official DM-Codec and"
            " SpeechTokenizer weights are read by dmcodec.load_published(config, checkpoint)"
        )
    return build_record(CodecConfig, table, source=str(path))


def push_to_hub(codec: Codec, repo_id: str, *, private: bool, card: str | None) -> str:
    """Uploads the codec's folder to the Hub, as the user who is logged in; gives its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(codec, Path(folder), dtype=torch.float32, card=card)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(address)


def _download(repo_id: str, revision: str | None) -> Path:
    """The local copy of a Hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, CARD_NAME]
            )
        )
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"no codec {repo_id!r}: there is no such folder, and the Hugging Face Hub could not"
            f" give it either ({type(error).__name__}). Check the name, log in for private ones,"
            f" or offline fetch {CONFIG_NAME} and {WEIGHTS_NAME} into a folder and name that"
        ) from error


def _short_card(codec: Codec) -> str:
    config = codec.config
    return (
        "---\nlibrary_name: dmcodec\ntags: [audio-codec, speech]\n---\n\n"
        f"# Speech codec\n\n{config.quantizer.num_codebooks} x {config.quantizer.codebook_size} "
        f"codes, {config.frame_rate:g} frames/s, {config.bitrate_kbps:g} kbps at "
        f"{config.sample_rate} Hz. Load with `dmcodec.Codec.from_pretrained(...)`.\n"
    )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".writing_{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
