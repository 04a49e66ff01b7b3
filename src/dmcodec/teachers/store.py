"""Teacher features on disk: float16, in shards, read in time slices through memory maps. No torch.

    store.json         what the features are of: settings, hashes of the models, their size
    shard_000000.feat  magic, version, index with checksum; then which row each frame has (int32),
                       then the rows (float16). Features that last are stored once.

Shards appear whole (written under a temporary name, then renamed): a killed job leaves nothing
half written. docs/formats.md has the bytes.
"""

import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, ValidationError

from dmcodec.config import Record, parse_json
from dmcodec.storage import delete_leftovers, open_whole, write_whole
from dmcodec.teachers.alignment import FeatureTrack, Mask, Word

_INFO_NAME = "store.json"
_FORMAT = "dmcodec teacher features"
_VERSION = 1
_MAGIC = b"DMCFEAT\0"
_HEAD = struct.Struct("<8sIIQ")  # magic, version, CRC-32 of the index, bytes of the index
_ALIGNMENT = 64
_SHARD_NAME = re.compile(r"shard_(\d{6})\.feat")
_MAX_INDEX_BYTES = 1 << 28


class StoreError(ValueError):
    """A feature store that is damaged, of other teachers or settings, or lacks what is needed."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store's features are of.

    settings: everything that decides the features, as JSON values.
    models: name in the settings -> hash of the model's files.
    feature_dim: H.
    """

    settings: Mapping[str, Any]
    models: Mapping[str, str]
    feature_dim: int

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any of it."""
        text = json.dumps([self.settings, self.models, self.feature_dim], sort_keys=True)
        return blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredUtterance:
    """One utterance's features, and the words that were found in it."""

    utterance_id: str
    track: FeatureTrack
    words: Sequence[Word] = ()


class _About(Record):
    """What store.json says besides its format."""

    settings: dict[str, Any]
    models: dict[str, str]
    feature_dim: int = Field(ge=1, le=1 << 20)


class _IndexItem(Record):
    """What a shard's index says of an utterance; words with start and end, -1 where unknown."""

    id: str
    first_frame: int = Field(ge=0)
    num_frames: int = Field(ge=0)
    first_row: int = Field(ge=0)
    num_rows: int = Field(ge=0)
    words: tuple[tuple[str, FiniteFloat, FiniteFloat], ...]


class _Index(Record):
    """What the index of a shard says."""

    store: str
    num_frames: int = Field(ge=0)
    num_rows: int = Field(ge=0)
    utterances: tuple[_IndexItem, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    shard: int
    first_frame: int
    num_frames: int
    first_row: int
    num_rows: int
    words: tuple[Word, ...]


class FeatureStore:
    """Reads a store; opening reads the shards' indices, slices read what they need.

    Can be sent to worker processes; each maps the files anew.

    Args:
        folder: of the store.
        settings: what the features must be of; None accepts any.
        models: the models they must come from, where they are at hand; None accepts any.

    Raises:
        FileNotFoundError: there is no store.
        StoreError: it is damaged, or of other settings or models.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        models: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.info = read_info(folder)
        _check_same(folder, "settings", settings, self.info.settings)
        _check_same(folder, "models", models, self.info.models)
        self._entries: dict[str, _Entry] = {}
        self._layouts: list[_Layout] = []
        for path in list_shards(folder):
            layout, entries = _read_index(path, self.info)
            for utterance_id, entry in entries.items():
                self._entries[utterance_id] = _Entry(len(self._layouts), *entry)
            self._layouts.append(layout)
        self._maps: dict[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        """Utterances in the store."""
        return len(self._entries)

    def __contains__(self, utterance_id: str) -> bool:
        return utterance_id in self._entries

    @property
    def feature_dim(self) -> int:
        """H."""
        return self.info.feature_dim

    @property
    def utterance_ids(self) -> list[str]:
        """All utterances, in the order in which they were stored."""
        return list(self._entries)

    def num_frames(self, utterance_id: str) -> int:
        """Frames of an utterance, L."""
        return self._entry(utterance_id).num_frames

    def words(self, utterance_id: str) -> tuple[Word, ...]:
        """The words that the teacher found, with their times; empty for speech models."""
        return self._entry(utterance_id).words

    def read(
        self, utterance_id: str, start_frame: int = 0, num_frames: int | None = None
    ) -> tuple[npt.NDArray[np.float16], Mask]:
        """Features [n, H] and mask [n] of a slice of an utterance, zero where masked.

        Raises StoreError for an utterance that is not there or a slice that is not inside it.
        """
        entry = self._entry(utterance_id)
        count = entry.num_frames - start_frame if num_frames is None else num_frames
        if not 0 <= start_frame <= start_frame + count <= entry.num_frames:
            raise StoreError(
                f"{self.folder}: asked for frames {start_frame} to {start_frame + count} of "
                f"{utterance_id!r}, which has {entry.num_frames}"
            )
        frame_rows, rows = self._map(entry.shard)
        first = entry.first_frame + start_frame
        wanted = np.asarray(frame_rows[first : first + count])
        if wanted.size and not -1 <= wanted.min() <= wanted.max() < entry.num_rows:
            raise StoreError(f"{self._layouts[entry.shard].path}: damaged: a row is not there")
        track = FeatureTrack(rows[entry.first_row : entry.first_row + entry.num_rows], wanted)
        values = track.dense()
        if not np.isfinite(values).all():
            raise StoreError(
                f"{self._layouts[entry.shard].path}: damaged: features of {utterance_id!r} are not "
                "finite"
            )
        return values, track.mask

    def _entry(self, utterance_id: str) -> _Entry:
        if utterance_id not in self._entries:
            raise StoreError(
                f"{self.folder}: has no features of {utterance_id!r}; run dmcodec teach again"
            )
        return self._entries[utterance_id]

    def _map(self, shard: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
        if shard not in self._maps:
            self._maps[shard] = self._layouts[shard].map()
        return self._maps[shard]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the arrays of a shard lie."""

    path: Path
    num_frames: int
    num_rows: int
    feature_dim: int
    frames_offset: int

    @property
    def rows_offset(self) -> int:
        return _aligned(self.frames_offset + 4 * self.num_frames)

    @property
    def file_bytes(self) -> int:
        return self.rows_offset + 2 * self.num_rows * self.feature_dim

    def map(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
        """Frame rows [frames] and rows [rows, H], read when they are touched."""
        # A mapping cannot be empty.
        frame_rows = np.zeros(0, dtype=np.int32)
        rows = np.zeros((0, self.feature_dim), dtype=np.float16)
        if self.num_frames:
            frame_rows = np.memmap(
                self.path, dtype="<i4", mode="r", offset=self.frames_offset, shape=self.num_frames
            )
        if self.num_rows:
            rows = np.memmap(
                self.path,
                dtype="<f2",
                mode="r",
                offset=self.rows_offset,
                shape=(self.num_rows, self.feature_dim),
            )
        return frame_rows, rows


def create_store(folder: Path, info: StoreInfo) -> None:
    """Begins a store, or checks that the one that is there has the same settings and models.

    Leftovers of a killed job are removed: one job writes a store at a time.
    """
    if (folder / _INFO_NAME).exists():
        existing = read_info(folder)
        _check_same(folder, "settings", info.settings, existing.settings)
        _check_same(folder, "models", info.models, existing.models)
        _check_same(folder, "features", {"H": info.feature_dim}, {"H": existing.feature_dim})
        delete_leftovers(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "format": _FORMAT,
        "version": _VERSION,
        "feature_dim": info.feature_dim,
        "settings": info.settings,
        "models": info.models,
    }
    text = json.dumps(table, indent=2, ensure_ascii=False)
    write_whole(folder / _INFO_NAME, text, is_durable=True)


def read_info(folder: Path) -> StoreInfo:
    """What a store's features are of."""
    path = folder / _INFO_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no feature store ({_INFO_NAME} is missing): make it with dmcodec teach"
        )
    try:
        table = parse_json(path.read_bytes())
        if (table["format"], table["version"]) != (_FORMAT, _VERSION):
            raise StoreError(
                f"{path}: is {table['format']!r} version {table['version']}; this program reads "
                f"{_FORMAT!r} version {_VERSION}"
            )
        about = _About.model_validate({k: table[k] for k in _About.model_fields})
    except StoreError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{path}: damaged: {_first_line(error)}") from error
    return StoreInfo(about.settings, about.models, about.feature_dim)


def list_shards(folder: Path) -> list[Path]:
    """The complete shards of a store, in order."""
    return sorted(path for path in folder.iterdir() if _SHARD_NAME.fullmatch(path.name))


def next_shard_number(folder: Path) -> int:
    """A number above those of all shards that are there."""
    numbers = [_SHARD_NAME.fullmatch(path.name) for path in list_shards(folder)]
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def write_shard(
    folder: Path, number: int, info: StoreInfo, utterances: Iterable[StoredUtterance]
) -> Path:
    """Writes some utterances as one shard; gives its path.

    Raises ValueError for features of another width, or too large for float16.
    """
    index: list[dict[str, Any]] = []
    all_frame_rows: list[npt.NDArray[np.int32]] = []
    all_rows: list[npt.NDArray[np.float16]] = []
    num_frames = num_rows = 0
    for each in utterances:
        rows = _to_half(each, info.feature_dim)
        index.append(
            {
                "id": each.utterance_id,
                "first_frame": num_frames,
                "num_frames": len(each.track.frame_rows),
                "first_row": num_rows,
                "num_rows": len(rows),
                "words": [[w.text, w.start_samples, w.end_samples] for w in each.words],
            }
        )
        all_frame_rows.append(each.track.frame_rows.astype("<i4"))
        all_rows.append(rows)
        num_frames += len(each.track.frame_rows)
        num_rows += len(rows)
    table = {
        "store": info.digest,
        "num_frames": num_frames,
        "num_rows": num_rows,
        "utterances": index,
    }
    text = json.dumps(table, ensure_ascii=False).encode()
    head = _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(text), len(text))
    path = folder / f"shard_{number:06d}.feat"
    layout = _Layout(path, num_frames, num_rows, info.feature_dim, _aligned(len(head) + len(text)))
    frames = b"".join(array.tobytes() for array in all_frame_rows)
    parts = [
        (head + text).ljust(layout.frames_offset, b"\0"),
        frames.ljust(layout.rows_offset - layout.frames_offset, b"\0"),
        *(array.tobytes() for array in all_rows),
    ]
    with open_whole(path, is_durable=True) as file:
        for part in parts:
            file.write(part)
    return path


def _to_half(utterance: StoredUtterance, feature_dim: int) -> npt.NDArray[np.float16]:
    rows = utterance.track.rows
    if rows.ndim != 2 or rows.shape[1] != feature_dim:
        raise ValueError(
            f"{utterance.utterance_id!r}: features are {list(rows.shape)}, the store has H = "
            f"{feature_dim}"
        )
    with np.errstate(over="ignore"):
        half = rows.astype("<f2")
    if not np.isfinite(half).all():
        raise ValueError(
            f"{utterance.utterance_id!r}: features are not finite in float16 (largest: "
            f"{np.abs(rows).max():g})"
        )
    return half


def _read_index(path: Path, info: StoreInfo) -> tuple[_Layout, dict[str, tuple[Any, ...]]]:
    """Layout and entries of a shard, checked against the file's size."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise StoreError(f"{path}: cut short")
        magic, version, checksum, index_bytes = _HEAD.unpack(head)
        if magic != _MAGIC or version != _VERSION:
            raise StoreError(f"{path}: no shard of features, or of another version ({version})")
        if index_bytes > min(_MAX_INDEX_BYTES, path.stat().st_size):
            raise StoreError(f"{path}: damaged: an index of {index_bytes} bytes")
        text = file.read(index_bytes)
    if zlib.crc32(text) != checksum:
        raise StoreError(f"{path}: damaged: the index does not fit its checksum")
    try:
        table = _Index.model_validate(parse_json(text))
    except ValueError as error:
        raise StoreError(f"{path}: damaged: its index: {_first_line(error)}") from error
    if table.store != info.digest:
        raise StoreError(f"{path}: belongs to another store (other teachers or settings)")
    layout = _Layout(
        path,
        table.num_frames,
        table.num_rows,
        info.feature_dim,
        _aligned(_HEAD.size + index_bytes),
    )
    if layout.file_bytes != path.stat().st_size:
        raise StoreError(
            f"{path}: damaged: {path.stat().st_size} bytes, {layout.file_bytes} are due"
        )
    entries = {}
    for item in table.utterances:
        frames, rows = (item.first_frame, item.num_frames), (item.first_row, item.num_rows)
        if sum(frames) > layout.num_frames or sum(rows) > layout.num_rows:
            raise StoreError(f"{path}: damaged: {item.id!r} is not inside the file")
        entries[item.id] = (*frames, *rows, tuple(Word(*word) for word in item.words))
    return layout, entries


def _first_line(error: Exception) -> str:
    """What is wrong, without pydantic's list of all of it."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def _check_same(
    folder: Path, what: str, wanted: Mapping[str, Any] | None, found: Mapping[str, Any]
) -> None:
    if wanted is None or dict(wanted) == dict(found):
        return
    keys = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
    differences = "; ".join(f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} here" for k in keys)
    raise StoreError(
        f"{folder}: features of other {what} ({differences}). Name another folder, or delete this "
        "one and run dmcodec teach again"
    )


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
