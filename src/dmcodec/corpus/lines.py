"""Lines of lists and what their columns are called: bounded, and every error with its place.

An entry is a dictionary with our keys, as a line of our JSONL has them; manifest.py checks it.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

Entry = dict[str, Any]

MAX_LINE = 1 << 24
"""Characters in a line of a list; a longer one is no list."""
MAX_EXPANSION = 200
"""Times that a compressed list may grow; texts shrink to a twentieth."""
_MIN_BOUND = 1 << 20  # bytes that any compressed file may grow to
_MAX_BLANK_LINES = 10_000  # one after another

# What lists of published corpora call our keys; the first that has a value counts.
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "utt_id", "uttid", "utterance_id", "key"),
    "audio": (
        "audio",
        "audio_filepath",
        "path",
        "file_name",
        "audio_path",
        "audio_file",
        "wav_filename",
        "wav_path",
        "wav",
        "filename",
        "file",
    ),
    "text": (
        "text",
        "transcript",
        "transcription",
        "sentence",
        "normalized_text",
        "raw_transcription",
    ),
    "speaker": ("speaker", "speaker_id", "spk_id", "client_id", "speaker_name", "spk"),
    "duration_s": ("duration_s", "duration"),
    "offset": ("offset",),
    "corpus": ("corpus",),
    "licence": ("licence",),
    "source": ("source",),
    "num_samples": ("num_samples",),
    "start_samples": ("start_samples",),
    "entry": ("entry",),
}
_TEXT_KEYS = ("id", "text", "speaker", "corpus", "licence", "source")
_SECONDS = ("duration_s", "offset")
COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Columns:
    """Which columns of a list are our keys, and which were there and are none.

    Args:
        given: our key -> its name in the list, before the names that are known.
    """

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        given = given or {}
        unknown = sorted(set(given) - set(COLUMNS))
        if unknown:
            raise ValueError(
                f"there is no key {', '.join(unknown)} to give a column to; there are "
                f"{', '.join(COLUMNS)}"
            )
        self._names = {
            key: (given[key], *names) if key in given else names for key, names in COLUMNS.items()
        }
        self._missing = set(given.values())
        self._seen: dict[str, None] = {}
        self._used: set[str] = set()

    def choose(self, row: Mapping[str, Any], keys: Iterable[str] = COLUMNS) -> Entry:
        """Our keys of a row; empty cells are left out, numbers in text columns become text."""
        self._seen.update(dict.fromkeys(row))
        entry: Entry = {}
        for key in keys:
            for name in self._names[key]:
                value = row.get(name)
                if value is None or value == "":
                    continue
                entry[key] = to_text(value) if key in _TEXT_KEYS else value
                self._used.add(name)
                break
        return entry

    def is_audio(self, name: str) -> bool:
        """Whether a column of this name holds sound files."""
        return name in self._names["audio"]

    def use(self, name: str) -> None:
        """Says that a column is read otherwise."""
        self._seen[name] = None
        self._used.add(name)

    @property
    def ignored(self) -> list[str]:
        """Columns that were there and gave nothing, sorted."""
        return sorted(set(self._seen) - self._used)

    @property
    def missing(self) -> str | None:
        """Why the columns given are wrong: one was nowhere."""
        missing = sorted(self._missing - set(self._seen))
        if not missing:
            return None
        return f"has no column {', '.join(missing)}; there are {', '.join(self._seen) or 'none'}"


def to_text(value: Any) -> Any:
    """Numbers as text: tables number their speakers, pandas makes floats of them; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def parse_object(text: str | bytes, place: str) -> dict[str, Any]:
    """A JSON object; ValueError with the place for anything else, however it is nested."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{place}: its JSON is nested too deeply to be read") from error
    except ValueError as error:  # also of numbers with thousands of digits
        raise ValueError(f"{place}: not one JSON object a line: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(value).__name__}")
    return value


@contextmanager
def open_list(path: Path) -> Iterator[Iterator[tuple[int, str]]]:
    """The numbered lines of a text file, compressed or not, without their ends.

    ValueError, with the line where that is known, for a line that is too long, a file that grows
    too much, is not UTF-8 or no whole compressed file.
    """
    opener = COMPRESSIONS.get(path.suffix.lower())
    limit = max(_MIN_BOUND, MAX_EXPANSION * path.stat().st_size)
    try:
        with cast(BinaryIO, path.open("rb") if opener is None else opener(path, "rb")) as raw:
            yield _lines(path, raw, limit)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text: {error.reason}") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path}: is no whole compressed file: {error}") from error


def _lines(path: Path, raw: BinaryIO, limit: int) -> Iterator[tuple[int, str]]:
    text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    number = total = num_blank = 0
    while line := text.readline(MAX_LINE + 2):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(f"{path}:{number}: a line of more than {MAX_LINE} characters")
        num_blank = num_blank + 1 if line.isspace() else 0
        if num_blank > _MAX_BLANK_LINES:
            raise ValueError(f"{path}:{number}: {num_blank} blank lines: is it a list?")
        total += len(line)
        if total > limit:
            raise ValueError(
                f"{path}:{number}: grows to more than {MAX_EXPANSION} times its size when it is "
                "decompressed: is it a list?"
            )
        yield number, line.rstrip("\r\n")


def split_rows(
    lines: Iterator[tuple[int, str]], delimiter: str, place: str
) -> Iterator[tuple[int, list[str]]]:
    """The cells of a CSV file, which may hold line ends in quotes; TSV has no quotes."""
    if delimiter != ",":
        for number, line in lines:
            if line:
                yield number, line.split(delimiter)
        return
    csv.field_size_limit(MAX_LINE)
    number = 0

    def count() -> Iterator[str]:
        nonlocal number
        for number, line in lines:  # noqa: B007 (the reader may take several lines for a row)
            yield line + "\n"

    reader = csv.reader(count(), strict=True)
    try:
        for cells in reader:
            if cells:
                yield number, cells
    except csv.Error as error:
        raise ValueError(f"{place}:{number}: is no CSV: {error}") from error
