"""Files that hold many sound files: tars (WebDataset) and Parquet or Arrow tables (Hugging Face).

What is in them, and the bytes of one sound file; what the bytes say is known to audio.py alone.
"""

import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from dmcodec.audio import AUDIO_SUFFIXES, AudioError
from dmcodec.packages import import_package

# Rows are decoded a group at a time; a few groups are kept, because neighbours are asked for next.
_KEPT_GROUPS = 6
_SOUND_COLUMNS = ("audio", "wav", "flac", "mp3", "speech")
_SIDECAR_SUFFIXES = (".txt", ".json")
_MAX_SIDECAR_BYTES = 1 << 20
_group_lock = Lock()


class TarSound(NamedTuple):
    """A sound file in a tar: WebDataset key, byte offset, and its text files by suffix."""

    key: str
    offset: int
    sidecars: dict[str, bytes]


class Table(NamedTuple):
    """An open Parquet or Arrow file.

    Attributes:
        column: the name of the column with sound files.
        group_sizes: rows in each group (a row group or a record batch).
        reader: a pyarrow ParquetFile or RecordBatchFileReader or list of record batches.
    """

    column: str
    group_sizes: tuple[int, ...]
    reader: Any


def list_tar(path: Path) -> Iterator[TarSound]:
    """The samples of a WebDataset tar that hold a sound file, in order.

    A sample is a run of files whose names agree up to the first dot of the last part.
    """
    try:
        with tarfile.open(path, mode="r:") as tar:
            key, offset, sidecars = "", -1, dict[str, bytes]()
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                suffix = f"{dot}{suffix}".lower()
                this_key = f"{folder}/{stem}" if folder else stem
                if this_key != key:
                    if offset >= 0:
                        yield TarSound(key, offset, sidecars)
                    key, offset, sidecars = this_key, -1, {}
                if suffix.endswith(AUDIO_SUFFIXES):
                    if offset >= 0:
                        raise ValueError(f"{path}: sample {key!r} holds two sound files")
                    offset = member.offset
                elif suffix in _SIDECAR_SUFFIXES and member.size <= _MAX_SIDECAR_BYTES:
                    content = tar.extractfile(member)
                    sidecars[suffix] = content.read() if content is not None else b""
            if offset >= 0:
                yield TarSound(key, offset, sidecars)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: is no uncompressed tar: {error}") from error


def read_tar_sound(path: Path, offset: int) -> bytes:
    """The sound file whose member begins at a byte of a tar."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                member = tar.next()
                content = tar.extractfile(member) if member is not None else None
                if member is None or content is None:
                    raise AudioError(f"{path}: no file begins at byte {offset}")
                data = content.read()
    except tarfile.TarError as error:
        raise AudioError(f"{path}: damaged at byte {offset}: {error}") from error
    if len(data) != member.size:
        raise AudioError(f"{path}: cut short in {member.name}")
    return data


def list_table(path: Path) -> Iterator[dict[str, Any]]:
    """Every row without its sound, and `path`, the name that the sound column gives it or None.

    Only columns of text and numbers are read.
    """
    import pyarrow as pa

    table = _open_table(path)
    schema = _schema(table)
    sound_type = schema.field(table.column).type
    has_path = pa.types.is_struct(sound_type) and sound_type.get_field_index("path") >= 0
    columns = [
        field.name
        for field in schema
        if pa.types.is_string(field.type)
        or pa.types.is_large_string(field.type)
        or pa.types.is_integer(field.type)
        or pa.types.is_floating(field.type)
    ]
    for group in range(len(table.group_sizes)):
        rows = _read_columns(table, group, columns)
        if has_path:
            names = _read_columns(table, group, [f"{table.column}.path"])[table.column]
            paths = [cell["path"] if cell is not None else None for cell in names]
        else:
            paths = [None] * table.group_sizes[group]
        for row, name in enumerate(paths):
            yield {column: values[row] for column, values in rows.items()} | {"path": name}


def read_table_sound(path: Path, row: int) -> bytes:
    """The sound file in a row of a Parquet or Arrow table."""
    group, number = 0, row
    with _group_lock:  # one thread decodes a group, the others then find it decoded
        sizes = _open_table(path).group_sizes
        while group < len(sizes) and number >= sizes[group]:
            number -= sizes[group]
            group += 1
        if group == len(sizes):
            raise AudioError(f"{path}: has no row {row}")
        cell = _read_sounds(path, group)[number].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise AudioError(f"{path}: row {row} holds no sound file")
    return data


@lru_cache(maxsize=16)
def _open_table(path: Path) -> Table:
    pa = import_package("pyarrow", f"reading {path}")
    pq = import_package("pyarrow.parquet", f"reading {path}")
    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path)
            groups = range(file.num_row_groups)
            sizes = tuple(file.metadata.row_group(group).num_rows for group in groups)
            return Table(_sound_column(path, file.schema_arrow), sizes, file)
        source = pa.memory_map(str(path))
        try:
            batches = [*pa.ipc.open_stream(source)]
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        if not batches:
            raise ValueError(f"{path}: holds no rows")
        sizes = tuple(batch.num_rows for batch in batches)
        return Table(_sound_column(path, batches[0].schema), sizes, batches)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a table: {error}") from error


@lru_cache(maxsize=_KEPT_GROUPS)
def _read_sounds(path: Path, group: int) -> Any:
    """The sound column of a group, a pyarrow array."""
    import pyarrow as pa

    table = _open_table(path)
    if isinstance(table.reader, list):
        return table.reader[group].column(table.column)
    try:
        return table.reader.read_row_group(group, columns=[table.column]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise AudioError(f"{path}: damaged in row group {group}: {error}") from error


def _read_columns(table: Table, group: int, columns: list[str]) -> dict[str, list[Any]]:
    if isinstance(table.reader, list):
        batch = table.reader[group]
        names = {column.partition(".")[0] for column in columns}
        return {name: batch.column(name).to_pylist() for name in names if name != table.column} | (
            {table.column: [{"path": p} for p in _paths(batch.column(table.column))]}
            if table.column in names
            else {}
        )
    rows = table.reader.read_row_group(group, columns=columns)
    return {name: rows.column(name).to_pylist() for name in rows.column_names}


def _paths(sounds: Any) -> list[str | None]:
    return sounds.field("path").to_pylist()


def _schema(table: Table) -> Any:
    return table.reader[0].schema if isinstance(table.reader, list) else table.reader.schema_arrow


def _sound_column(path: Path, schema: Any) -> str:
    """The column with sound files: binary, or a struct with `bytes`, under a known name."""
    import pyarrow as pa

    def is_sound(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            return index >= 0 and is_sound(kind.field(index).type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    for name in _SOUND_COLUMNS:
        if name in schema.names and is_sound(schema.field(name).type):
            return name
    raise ValueError(
        f"{path}: has no column of sound files; needs one named {' or '.join(_SOUND_COLUMNS)} "
        f"that holds bytes, got {', '.join(schema.names)}"
    )
