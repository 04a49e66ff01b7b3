"""Named tensors on disk: one safetensors file, or several of bounded size and their index.

Several are named as Hugging Face names them:

    codec-00001-of-00003.safetensors ...    what fits into `max_bytes`
    codec.safetensors.index.json            which of them holds a tensor, and the hash of each

A tensor that is too large for a file is cut into flat pieces, which the index puts together again;
without such tensors other programs read these files too. What the tensors are for is not known
here.
"""

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from math import prod
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor

from dmcodec.config import Record, build_record, parse_json
from dmcodec.storage import write_whole

LEAST_BYTES = 1 << 16
"""The least `max_bytes`: room for a name, its entry in a header and some numbers."""

_SUFFIX, _INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
_SHARD_NAME = re.compile(r"[\w.-]+-\d{5}-of-\d{5}\.safetensors")
_ENTRY_BYTES = 256  # of a header for one tensor, its name aside; more than it takes


class TensorFileError(ValueError):
    """Files of tensors that are missing, damaged or do not belong together."""


class _Cut(Record):
    """A tensor in flat pieces: its shape, and the names of the pieces in order."""

    shape: tuple[int, ...] = Field(max_length=8)
    pieces: tuple[str, ...] = Field(min_length=1)


class _Metadata(Record):
    total_size: int
    blake2b: dict[str, str]
    cut: dict[str, _Cut]
    metadata: dict[str, str]


class _Index(BaseModel):
    """NAME.safetensors.index.json."""

    metadata: _Metadata
    weight_map: dict[str, str]


def save_tensors(
    tensors: Mapping[str, Tensor],
    folder: Path,
    name: str,
    *,
    max_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes NAME.safetensors, or shards of at most `max_bytes` each and their index.

    Tensors that fit into one file become one file. Files are on the disk when this returns. Those
    of an earlier save stay (`remove_other_files`): give an empty folder.

    Args:
        tensors: on any device.
        folder: made if missing.
        name: of the file, without its ending.
        max_bytes: of a file, at least `LEAST_BYTES`; None: any size.
        metadata: small texts to keep with them.

    Raises ValueError for a bound that is too small, OSError that names the file.
    """
    if max_bytes is not None and max_bytes < LEAST_BYTES:
        raise ValueError(f"files of tensors take at least {LEAST_BYTES} bytes, not {max_bytes}")
    texts = {"format": "pt", **(metadata or {})}
    room = None
    if max_bytes is not None:
        room = max_bytes - sum(len(key) + len(text) for key, text in texts.items()) - _ENTRY_BYTES
    pieces: dict[str, Tensor] = {}
    cut: dict[str, _Cut] = {}
    for key, tensor in tensors.items():
        if room is None or _cost(key, tensor.nbytes) <= room:
            pieces[key] = tensor.detach()
            continue
        parts = _cut(key, tensor.detach().flatten(), room)
        cut[key] = _Cut(shape=tuple(tensor.shape), pieces=tuple(parts))
        pieces |= parts
    shards = _fill_shards(pieces, room)
    if len(shards) == 1 and not cut:
        write_whole(folder / f"{name}{_SUFFIX}", _dump(shards[0], texts), is_durable=True)
        return
    hashes: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"{name}-{number:05d}-of-{len(shards):05d}{_SUFFIX}"
        content = _dump(shard, texts)
        write_whole(folder / file_name, content, is_durable=True)
        hashes[file_name] = _hash(content)
        weight_map |= dict.fromkeys(shard, file_name)
    index = _Index(
        metadata=_Metadata(
            total_size=sum(piece.nbytes for piece in pieces.values()),
            blake2b=hashes,
            cut=cut,
            metadata=texts,
        ),
        weight_map=weight_map,
    )
    path = folder / f"{name}{_INDEX_SUFFIX}"
    write_whole(path, index.model_dump_json(indent=2), is_durable=True)


def load_tensors(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that `save_tensors` wrote, in one file or several, and their metadata.

    Where both are, the one file counts: another save that was killed left the shards.

    Raises TensorFileError, naming the file, for what is missing, damaged or from another save.
    """
    path, index_path = folder / f"{name}{_SUFFIX}", folder / f"{name}{_INDEX_SUFFIX}"
    if index_path.is_file() and not path.is_file():
        return _load_shards(folder, index_path)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
        return load_file(path), metadata
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error}") from error
    except SafetensorError as error:
        raise TensorFileError(f"{path} is damaged: {error}") from error


def are_there(folder: Path, name: str) -> bool:
    """Whether a folder has these tensors, in one file or several."""
    return any((folder / f"{name}{ending}").is_file() for ending in (_SUFFIX, _INDEX_SUFFIX))


def remove_other_files(folder: Path, name: str, kept: Iterable[str]) -> None:
    """Deletes the files of these tensors that an earlier save in other files left."""
    for path in folder.glob(f"{name}*.safetensors*"):
        is_ours = path.name in (f"{name}{_SUFFIX}", f"{name}{_INDEX_SUFFIX}")
        is_ours |= path.name.startswith(f"{name}-") and bool(_SHARD_NAME.fullmatch(path.name))
        if is_ours and path.name not in kept:
            path.unlink()


def _load_shards(folder: Path, index_path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        table = parse_json(index_path.read_bytes())
        index = build_record(_Index, table, source=index_path.name)
    except (OSError, ValueError) as error:
        raise TensorFileError(f"cannot read {index_path}: {error}") from error
    hashes = index.metadata.blake2b
    found: dict[str, Tensor] = {}
    for file_name in sorted(set(index.weight_map.values())):
        shard = _load_shard(folder, file_name, hashes.get(file_name), index_path.name)
        if shard.keys() != {k for k, v in index.weight_map.items() if v == file_name}:
            raise TensorFileError(f"{index_path} names other tensors than {file_name} holds")
        found |= shard
    for key, cut in index.metadata.cut.items():
        parts = [found.pop(name, None) for name in cut.pieces]
        flat = [part for part in parts if part is not None and part.ndim == 1]
        is_whole = min(cut.shape, default=1) >= 0 and len(flat) == len(parts) and key not in found
        if not is_whole or sum(map(len, flat)) != prod(cut.shape):
            raise TensorFileError(f"{index_path} is damaged: the pieces of {key} do not fit")
        found[key] = torch.cat(flat).reshape(cut.shape)
    return found, index.metadata.metadata


def _load_shard(
    folder: Path, file_name: str, expected_hash: str | None, index_name: str
) -> dict[str, Tensor]:
    """One of several files; a name with a path in it is none of ours."""
    if not _SHARD_NAME.fullmatch(file_name) or expected_hash is None:
        raise TensorFileError(f"{folder / index_name} is damaged: it names {file_name!r}")
    path = folder / file_name
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise TensorFileError(
            f"{path} is missing, of the files that {index_name} names: copy all of them"
        ) from error
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error}") from error
    if _hash(content) != expected_hash:
        raise TensorFileError(
            f"{path} is damaged or from another save: its hash is not the one in {index_name}"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise TensorFileError(f"cannot read {path}: {error}") from error


def _cost(key: str, num_bytes: int) -> int:
    """Of a tensor in a file, its entry in the header included; rather too much."""
    return num_bytes + 2 * len(key) + _ENTRY_BYTES


def _cut(key: str, flat: Tensor, room: int) -> dict[str, Tensor]:
    """Pieces of a tensor [N] that fill a file each; the last one may leave room."""
    longest_name = f"{key}.piece-00000-of-00000"
    parts = torch.split(flat, max(1, (room - _cost(longest_name, 0)) // flat.element_size()))
    return {f"{key}.piece-{n:05d}-of-{len(parts):05d}": p for n, p in enumerate(parts, start=1)}


def _fill_shards(pieces: Mapping[str, Tensor], room: int | None) -> list[dict[str, Tensor]]:
    """The pieces in their order, in as many lots as the room of each makes."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, piece in pieces.items():
        cost = _cost(key, piece.nbytes)
        if room is not None and shards[-1] and size + cost > room:
            shards.append({})
            size = 0
        shards[-1][key] = piece
        size += cost
    return shards


def _dump(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    copies = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
    return save(copies, metadata=dict(metadata))


def _hash(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
