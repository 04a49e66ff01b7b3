"""Files that hold many sound files: tars, Kaldi archives, Parquet and Arrow tables (Hugging Face).

What is in them, and the sound in one place; what the bytes say is known to audio.py alone.
"""

import atexit
import bz2
import gzip
import lzma
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from dmcodec.audio import AUDIO_SUFFIXES, AudioError, SoundBytes, dump_wav
from dmcodec.sound.media import MEDIA_SUFFIXES

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TABLE_SUFFIXES = (".parquet", ".arrow")
# Rows are decoded a group at a time; a few groups are kept, because neighbours are asked for next.
_KEPT_GROUPS = 6
_SOUND_COLUMNS = ("audio", "wav", "flac", "mp3", "speech")
_PATH_COLUMNS = ("audio", "audio_filepath", "path", "file_name", "audio_path", "file", "wav")
_RATE_COLUMNS = ("sampling_rate", "sample_rate")
_SIDECAR_SUFFIXES = (".txt", ".json")
_MAX_SIDECAR_BYTES = 1 << 20
_MAX_EXPANSION = 100  # of a compressed tar: sound hardly shrinks
_KEPT_TARS = 4
_group_lock, _tar_lock = Lock(), Lock()


class TarSound(NamedTuple):
    """A sound file in a tar: WebDataset key, byte offset, and its text files by suffix."""

    key: str
    offset: int
    sidecars: dict[str, bytes]


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


def list_tar(path: Path) -> Iterator[TarSound | ValueError]:
    """The samples of a WebDataset tar that hold a sound file, in order; errors for wrong ones.

    A sample is a run of files whose names agree up to the first dot of the last part.
    """
    for key, members in _samples(path):
        sounds = [m for suffix, m in members if suffix.endswith(AUDIO_SUFFIXES + MEDIA_SUFFIXES)]
        if len(sounds) > 1:
            yield ValueError(f"{path}: sample {key!r} holds two sound files")
        elif sounds:
            yield TarSound(
                key,
                sounds[0].offset,
                {suffix: m.content for suffix, m in members if suffix in _SIDECAR_SUFFIXES},
            )


class _Member(NamedTuple):
    offset: int
    content: bytes  # of small text files


def _samples(path: Path) -> Iterator[tuple[str, list[tuple[str, _Member]]]]:
    """Runs of files with one key, each file by its suffix."""
    key, members = "", list[tuple[str, _Member]]()
    for name, member in _members(path):
        folder, _, last = name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        this_key = f"{folder}/{stem}" if folder else stem
        if this_key != key:
            if members:
                yield key, members
            key, members = this_key, []
        members.append((f"{dot}{suffix}".lower(), member))
    if members:
        yield key, members


def _members(path: Path) -> Iterator[tuple[str, _Member]]:
    """The files of a tar, in order."""
    try:
        with tarfile.open(_plain_tar(path), mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    is_text = member.name.lower().endswith(_SIDECAR_SUFFIXES)
                    content = None
                    if is_text and member.size <= _MAX_SIDECAR_BYTES:
                        content = tar.extractfile(member)
                    data = content.read() if content is not None else b""
                    yield member.name, _Member(member.offset, data)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: is no tar: {error}") from error


def find_member(path: Path, name: str) -> int | None:
    """The byte offset of the file with this name in a tar."""
    return _index_tar(path).get(name.removeprefix("./"))


def find_member_by_stem(path: Path, stem: str) -> int | None:
    """The byte offset of the sound file whose name less its suffix this is."""
    index = _index_tar(path)
    found = (index.get(f"{stem}{suffix}") for suffix in AUDIO_SUFFIXES + MEDIA_SUFFIXES)
    return next((offset for offset in found if offset is not None), None)


@lru_cache(maxsize=_KEPT_TARS)
def _index_tar(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise ValueError(f"{path}: no such tar")
    return {name.removeprefix("./"): member.offset for name, member in _members(path)}


def read_tar_sound(path: Path, offset: int) -> bytes:
    """The sound file whose member begins at a byte of a tar (of the tar in a compressed one)."""
    try:
        with _plain_tar(path).open("rb") as file:
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


def _plain_tar(path: Path) -> Path:
    """The tar itself, or for a compressed one a copy in the temporary folder of this process."""
    if path.suffix.lower() == ".tar":
        return path
    status = path.stat()
    with _tar_lock:
        return _decompress(path, status.st_size, status.st_mtime_ns)


@cache
def _decompress(path: Path, size: int, changed_ns: int) -> Path:
    """Places in a compressed tar cannot be gone to; the size and time tell a changed one apart."""
    del changed_ns
    openers: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".xz": lzma.open}
    limit, total = max(1 << 24, _MAX_EXPANSION * size), 0
    copy = Path(_scratch_folder()) / f"{len(list(Path(_scratch_folder()).iterdir()))}.tar"
    try:
        opened = openers.get(path.suffix.lower(), gzip.open)(path, "rb")
        with cast(BinaryIO, opened) as packed, copy.open("wb") as plain:
            while block := packed.read(1 << 20):
                total += len(block)
                if total > limit:
                    raise ValueError(
                        f"{path}: grows to more than {_MAX_EXPANSION} times its size when it is "
                        "decompressed: is it a tar of sound?"
                    )
                plain.write(block)
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path}: is no whole compressed tar: {error}") from error
    return copy


@lru_cache(maxsize=1)
def _scratch_folder() -> str:
    folder = tempfile.mkdtemp(prefix="dmcodec_tar_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_ark_sound(path: Path, offset: int) -> bytes:
    """The WAV file that begins at a byte of a Kaldi archive."""
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(8)
        if head[:4] != b"RIFF" or len(head) < 8:
            raise AudioError(f"{path}: no WAV file begins at byte {offset}")
        (size,) = struct.unpack("<I", head[4:])
        data = head + file.read(size)
    if len(data) != 8 + size:
        raise AudioError(f"{path}: cut short in the WAV file at byte {offset}")
    return data


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


def _dump_array(cell: Any, rate: int | None, name: str) -> bytes:
    """Samples, alone or in a struct with their rate, as a WAV file."""
    samples = cell
    if isinstance(cell, dict):
        samples = cell.get("array")
        rate = next((int(cell[key]) for key in _RATE_COLUMNS if cell.get(key)), rate)
    if not samples:
        raise AudioError(f"{name} holds no samples")
    if rate is None:
        raise AudioError(f"{name}: does not say its rate; needs a column {_RATE_COLUMNS[0]}")
    waveform = np.asarray(samples)
    if waveform.ndim != 1 or waveform.dtype.kind not in "fi":
        raise AudioError(f"{name}: its array is not one of mono samples")
    if waveform.dtype.kind == "i":
        if np.abs(waveform).max() > 32768:
            raise AudioError(f"{name}: its whole numbers are no 16-bit samples")
        waveform = waveform / 32768
    return dump_wav(waveform.astype(np.float32), rate)


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


def _row_rate(path: Path, group: int, number: int) -> int | None:
    """The rate that a column of its own gives a row."""
    table = _open_table(path)
    for name in _RATE_COLUMNS:
        if name in _schema(table).names:
            value = _read_columns(table, group, [name])[name][number]
            return None if value is None else int(value)
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
