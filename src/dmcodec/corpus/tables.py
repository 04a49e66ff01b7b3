"""Parquet and Arrow files of sounds, as Hugging Face `datasets` writes them: bytes, paths, samples.

What the bytes say is known to audio.py alone.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from dmcodec.audio import AudioError, SoundBytes, dump_wav
from dmcodec.sound.files import MAX_RATE, MIN_RATE

TABLE_SUFFIXES = (".parquet", ".arrow")
# Rows are decoded a group at a time; a few groups are kept, because neighbours are asked for next.
_KEPT_GROUPS = 6
_SOUND_COLUMNS = ("audio", "wav", "flac", "mp3", "speech")
_PATH_COLUMNS = ("audio", "audio_filepath", "path", "file_name", "audio_path", "file", "wav")
_RATE_COLUMNS = ("sampling_rate", "sample_rate")
_group_lock = Lock()


class Table(NamedTuple):
    """An open Parquet or Arrow file.

    Attributes:
        column: the name of the column with sound files, or with their paths.
        kind: what it holds: "bytes" (perhaps with paths), "path" or "array".
        group_sizes: rows in each group (a row group or a record batch).
        reader: a pyarrow ParquetFile or RecordBatchFileReader or list of record batches.
    """

    column: str
    kind: str
    group_sizes: tuple[int, ...]
    reader: Any


def list_table(path: Path) -> Iterator[dict[str, Any]]:
    """Every row without its sound, and `path`, the name that the sound column gives it or None.

    Only columns of text and numbers are read. Where the sound column holds paths alone, the row
    has it under `audio` too.
    """
    import pyarrow as pa

    table = _open_table(path)
    schema = _schema(table)
    sound_type = schema.field(table.column).type
    has_path = pa.types.is_struct(sound_type) and sound_type.get_field_index("path") >= 0
    columns = [
        field.name
        for field in schema
        if _is_text(field.type)
        or pa.types.is_integer(field.type)
        or pa.types.is_floating(field.type)
    ]
    for group in range(len(table.group_sizes)):
        rows = _read_columns(table, group, columns)
        if has_path:
            paths = _read_paths(table, group)
        elif table.kind == "path":
            paths = rows[table.column]
        else:
            paths = [None] * table.group_sizes[group]
        for row, name in enumerate(paths):
            values = {column: cells[row] for column, cells in rows.items()} | {"path": name}
            yield values | ({"audio": name or ""} if table.kind == "path" else {})


def read_table_sound(path: Path, row: int) -> Path | SoundBytes:
    """The sound file in a row of a Parquet or Arrow table, or the one whose path it gives."""
    name = f"{path}: row {row}"
    group, number = 0, row
    with _group_lock:  # one thread decodes a group, the others then find it decoded
        table = _open_table(path)
        sizes = table.group_sizes
        while group < len(sizes) and number >= sizes[group]:
            number -= sizes[group]
            group += 1
        if group == len(sizes):
            raise AudioError(f"{path}: has no row {row}")
        cell = _read_sounds(path, group)[number].as_py()
        rate = _row_rate(path, group, number) if table.kind == "array" else None
    if table.kind == "array" and cell is not None:
        return SoundBytes(name, _dump_array(cell, rate, name))
    data, other = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(data, bytes) and data:
        return SoundBytes(name, data)
    if isinstance(other, str) and other:
        return path.parent / other
    raise AudioError(f"{name} holds no sound file")


def _dump_array(cell: Any, rate: Any, name: str) -> bytes:
    """Samples, alone or in a struct with their rate, as a WAV file."""
    samples = cell
    if isinstance(cell, dict):
        samples = cell.get("array")
        rate = next((cell[key] for key in _RATE_COLUMNS if cell.get(key)), rate)
    if not samples:
        raise AudioError(f"{name} holds no samples")
    if rate is None:
        raise AudioError(f"{name}: does not say its rate; needs a column {_RATE_COLUMNS[0]}")
    if not (isinstance(rate, int | float) and MIN_RATE <= rate <= MAX_RATE and rate == int(rate)):
        raise AudioError(
            f"{name}: says {rate!r} samples a second; {MIN_RATE} to {MAX_RATE} can be read"
        )
    waveform = np.asarray(samples)
    if waveform.ndim != 1 or waveform.dtype.kind not in "fi":
        raise AudioError(f"{name}: its array is not one of mono samples")
    if waveform.dtype.kind == "i":
        if np.abs(waveform).max() > 32768:
            raise AudioError(f"{name}: its whole numbers are no 16-bit samples")
        waveform = waveform / 32768
    return dump_wav(waveform.astype(np.float32), int(rate))


@lru_cache(maxsize=16)
def _open_table(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ModuleNotFoundError(
            f"reading {path} needs pyarrow: pip install 'dmcodec[data]'"
        ) from error
    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path)
            groups = range(file.num_row_groups)
            sizes = tuple(file.metadata.row_group(group).num_rows for group in groups)
            return Table(*_sound_column(path, file.schema_arrow), sizes, file)
        source = pa.memory_map(str(path))
        try:
            batches = [*pa.ipc.open_stream(source)]
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        if not batches:
            raise ValueError(f"{path}: holds no rows")
        sizes = tuple(batch.num_rows for batch in batches)
        return Table(*_sound_column(path, batches[0].schema), sizes, batches)
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


def _row_rate(path: Path, group: int, number: int) -> Any:
    """The rate that a column of its own gives a row, as it is; None when there is none."""
    table = _open_table(path)
    for name in _RATE_COLUMNS:
        if name in _schema(table).names:
            return _read_columns(table, group, [name])[name][number]
    return None


def _read_columns(table: Table, group: int, columns: list[str]) -> dict[str, list[Any]]:
    """Columns of text and numbers of a group, by name."""
    if isinstance(table.reader, list):
        return {name: table.reader[group].column(name).to_pylist() for name in columns}
    rows = table.reader.read_row_group(group, columns=columns)
    return {name: rows.column(name).to_pylist() for name in rows.column_names}


def _read_paths(table: Table, group: int) -> list[str | None]:
    """The paths beside the sounds of a group; the sounds stay unread."""
    if isinstance(table.reader, list):
        return table.reader[group].column(table.column).field("path").to_pylist()
    rows = table.reader.read_row_group(group, columns=[f"{table.column}.path"])
    return [None if cell is None else cell["path"] for cell in rows.column(0).to_pylist()]


def _schema(table: Table) -> Any:
    return table.reader[0].schema if isinstance(table.reader, list) else table.reader.schema_arrow


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _sound_column(path: Path, schema: Any) -> tuple[str, str]:
    """The column with sounds and its kind: bytes, arrays of samples, or paths of sound files."""
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
            has_path = "path" in fields and _is_text(fields["path"]) and "array" not in fields
            return has_path or ("bytes" in fields and is_bytes(fields["bytes"]))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_array(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            index = kind.get_field_index("array")
            return index >= 0 and is_array(kind.field(index).type)
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return is_list and (
            pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
        )

    kinds = (("bytes", is_bytes, _SOUND_COLUMNS), ("array", is_array, _SOUND_COLUMNS))
    for kind, fits, names in (*kinds, ("path", _is_text, _PATH_COLUMNS)):
        for name in names:
            if name in schema.names and fits(schema.field(name).type):
                return name, kind
    raise ValueError(
        f"{path}: has no column of sound files; needs one named {' or '.join(_SOUND_COLUMNS)} "
        f"that holds bytes, samples or paths, got {', '.join(schema.names)}"
    )
