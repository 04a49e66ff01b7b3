"""Parquet shards of tokens and the record that describes them: written and read without torch.

docs/tokens.md describes the columns. How shards are made is in tokenize/.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from dmcodec.config import Record, parse_json
from dmcodec.packages import import_package
from dmcodec.storage import write_whole
from dmcodec.tokens.bitstream import count_frames

INFO_NAME = "codec_info.json"
_METADATA_KEY = b"dmcodec"
_REFUSED_SUFFIX_MARKS = str.maketrans({"%": "%25", ".": "%2E"})


class ShardError(ValueError):
    """A shard or its description is damaged, or of a layout that this version cannot read."""


class CorpusInfo(Record):
    """What all shards of a folder have in common; codec_info.json.

    Attributes:
        model_id, model_hash: the codec, for people and exactly (`Codec.fingerprint`).
        num_codebooks: books kept of each recording, from book 1 on.
        shard_size: utterances of the manifest in each shard (the last has the rest).
        max_samples: longer utterances are listed as failures; at `sample_rate`. None: no limit.
        manifest_hash: of everything that the manifest says, but for the folders of sound files.
        precision: of the network, see `Codec.precision`: it changes codes.
        search_width: see `Codec.encode`: it changes codes.
        has_webdataset, has_dmc: whether tars and .dmc files are written as well.
    """

    format: Literal["dmcodec-tokens/1"] = "dmcodec-tokens/1"
    model_id: str
    model_hash: str
    sample_rate: int = Field(ge=1)
    hop_length: int = Field(ge=1)
    num_codebooks: int = Field(ge=1)
    codebook_size: int = Field(ge=1, le=1 << 16)
    shard_size: int = Field(ge=1)
    max_samples: int | None = Field(None, ge=1)
    manifest_hash: str
    num_utterances: int = Field(ge=1)
    precision: str = "float32"
    search_width: int = Field(1, ge=1)
    has_webdataset: bool = False
    has_dmc: bool = False

    @property
    def num_shards(self) -> int:
        """Shards of the whole corpus."""
        return -(-self.num_utterances // self.shard_size)

    def settings_hash(self) -> str:
        """16 hexadecimal digits that change with any value here."""
        # Shards made before these were choices are of float32 and greedy.
        left_out = {"precision"} if self.precision == "float32" else set()
        left_out |= {"search_width"} if self.search_width == 1 else set()
        settings = self.model_dump_json(exclude=left_out)
        return blake2b(settings.encode(), digest_size=8).hexdigest()

    def shard_name(self, index: int) -> str:
        """File name of a shard without suffix; names sort as shards do."""
        return f"shard-{index:06d}"


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One utterance in tokens.

    codes: uint16 [K, L], book 1 in row 0.
    num_samples: of the waveform that was encoded.
    source_hash: 32 hexadecimal digits: BLAKE2b of that waveform, float32 little-endian.
    """

    id: str
    codes: NDArray[np.uint16]
    num_samples: int
    speaker: str | None
    text: str | None
    source_hash: str
    model_hash: str


@dataclass(frozen=True)
class ShardSummary:
    """What a finished shard says about itself, without its rows."""

    num_rows: int
    num_samples: int
    failures: list[dict[str, Any]]


def dump_shard(
    rows: Sequence[TokenRow],
    failures: Sequence[dict[str, Any]],
    settings_hash: str,
    number: int | None = None,
) -> bytes:
    """The Parquet file of a shard; failures and its number are kept in its metadata."""
    pa, pq = _pyarrow()
    summary = {
        "settings": settings_hash,
        "number": number,
        "num_samples": sum(row.num_samples for row in rows),
        "failures": list(failures),
    }
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("codes", pa.list_(pa.list_(pa.uint16()))),
            ("num_frames", pa.int32()),
            ("num_samples", pa.int64()),
            ("speaker", pa.string()),
            ("text", pa.string()),
            ("source_hash", pa.string()),
            ("model_hash", pa.string()),
        ],
        metadata={_METADATA_KEY: json.dumps(summary)},
    )
    columns = [
        [row.id for row in rows],
        [list(row.codes) for row in rows],
        [row.codes.shape[1] for row in rows],
        [row.num_samples for row in rows],
        [row.speaker for row in rows],
        [row.text for row in rows],
        [row.source_hash for row in rows],
        [row.model_hash for row in rows],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def load_shard(
    shard: Path | bytes, info: CorpusInfo | None = None, number: int | None = None
) -> Iterator[TokenRow]:
    """The rows of a shard in the order of the manifest.

    Args:
        shard: a file, or its bytes.
        info: of the corpus that it must belong to; None: only its layout is checked.
        number: that it must have there.

    Raises ShardError for damage, and for rows that are not of the corpus.
    """
    pa, pq = _pyarrow()
    try:
        table = pq.read_table(
            io.BytesIO(shard) if isinstance(shard, bytes) else shard,
            page_checksum_verification=True,
        )
        if info is not None:
            said = parse_json((table.schema.metadata or {})[_METADATA_KEY])
            _check_place(said, info.settings_hash(), number)
        column = table["codes"]
        for number, row in enumerate(table.drop_columns(["codes"]).to_pylist()):
            books = column[number].values  # numbers of Python's own would take 17 times the memory
            num_frames = row.pop("num_frames")
            if set(books.value_lengths().to_pylist()) != {num_frames}:
                raise ValueError(f"the books of {row['id']!r} do not have {num_frames} frames each")
            if books.type.value_type != pa.uint16():
                raise ValueError(f"codes are {books.type.value_type}, not uint16")
            codes = books.flatten().to_numpy().reshape(len(books), num_frames).copy()
            found = TokenRow(codes=codes, **row)
            if info is not None:
                _check_row(found, info)
            yield found
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        RecursionError,
    ) as error:
        name = "the shard" if isinstance(shard, bytes) else str(shard)
        raise ShardError(f"{name} cannot be read as a shard of tokens: {error}") from error


def read_rows(folder: Path | str) -> Iterator[TokenRow]:
    """Every row of a folder that `dmcodec tokenize` filled, in the order of the manifest."""
    folder = Path(folder)
    info = read_info(folder)
    for index in range(info.num_shards):
        path = folder / f"{info.shard_name(index)}.parquet"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing, the corpus has {info.num_shards} shards: run the same "
                "dmcodec tokenize command again to finish it"
            )
        yield from load_shard(path, info, index)


def _check_place(said: Mapping[str, Any], settings_hash: str, number: int | None) -> None:
    """Raises ValueError for a shard of other settings, or copied from another place."""
    if said["settings"] != settings_hash:
        raise ValueError(f"was made with other settings than {INFO_NAME} says")
    # Shards that were made before they said their number are taken for what they are called.
    if None not in (number, said.get("number")) and said["number"] != number:
        raise ValueError(f"is a copy of shard {said['number']}: its own rows are missing")


def _check_row(row: TokenRow, info: CorpusInfo) -> None:
    """Raises ValueError for a row that the corpus cannot hold."""
    expected = (info.num_codebooks, count_frames(row.num_samples, info.hop_length))
    if row.num_samples < 1 or row.codes.shape != expected:
        raise ValueError(
            f"{row.id!r} has {row.codes.shape[0]} books of {row.codes.shape[1]} codes for "
            f"{row.num_samples} samples; {expected[0]} of {expected[1]} are due"
        )
    if row.codes.max() >= info.codebook_size:
        raise ValueError(
            f"{row.id!r} holds code {row.codes.max()}; books have 0 to {info.codebook_size - 1}"
        )


def read_summary(path: Path, settings_hash: str, number: int | None = None) -> ShardSummary:
    """What a shard says about itself, from its footer; it must be of these settings and number."""
    pa, pq = _pyarrow()
    try:
        metadata = pq.read_metadata(path)
        summary = parse_json((metadata.metadata or {})[_METADATA_KEY])
        failures = [
            {**each, "id": str(each["id"]), "reason": str(each["reason"])}
            for each in summary["failures"]
        ]
        found = ShardSummary(metadata.num_rows, int(summary["num_samples"]), failures)
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ShardError(
            f"{path} is damaged or no shard of tokens ({error}): remove it and run again"
        ) from error
    try:
        _check_place(summary, settings_hash, number)
    except ValueError as error:
        raise ShardError(f"{path} {error}: remove it") from error
    return found


def read_info(folder: Path | str) -> CorpusInfo:
    """The description of a folder of shards."""
    path = Path(folder) / INFO_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; is {folder} a folder of tokens?")
    try:
        return CorpusInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ShardError(f"{path} cannot be read: {key}: {first['msg']}") from error


def check_same(folder: Path, written: CorpusInfo, wanted: CorpusInfo) -> None:
    """Raises ValueError, naming what differs, unless a job may go on in this folder.

    The name of the model may change: its hash says whether it is the same.
    """
    wanted = wanted.model_copy(update={"model_id": written.model_id})
    pairs = zip(written, wanted, strict=True)
    changes = [
        f"{name} was {old!r} and is {new!r}" for (name, old), (_, new) in pairs if old != new
    ]
    if changes:
        raise ValueError(
            f"{folder} was begun with another model, manifest or setting: {'; '.join(changes)}. "
            "Use the same as before, or another output folder"
        )


def dump_webdataset(rows: Sequence[TokenRow]) -> bytes:
    """A WebDataset tar: for each row KEY.npy (uint16 [K, L]) and KEY.json (the other columns).

    The key is the id with `.` and `%` written as `%2E` and `%25`, because WebDataset ends a key
    at its first dot.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in rows:
            array = io.BytesIO()
            np.save(array, row.codes)
            rest = {name: value for name, value in vars(row).items() if name != "codes"}
            text = json.dumps({**rest, "num_frames": row.codes.shape[1]}, ensure_ascii=False)
            key = row.id.translate(_REFUSED_SUFFIX_MARKS)
            for suffix, data in ((".npy", array.getvalue()), (".json", text.encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file that appears whole, also when the machine stops; its folder is made."""
    write_whole(path, data, is_durable=True)


def _pyarrow() -> tuple[Any, Any]:
    purpose = "a Parquet shard"
    return import_package("pyarrow", purpose), import_package("pyarrow.parquet", purpose)
