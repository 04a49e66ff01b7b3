"""CTranslate2 folders of Whisper models: their files read as hostile, their weights renamed.

No model is built here; see whisper.py. The layout of `model.bin` (little endian): version (u32),
name of the kind (u16 length, bytes, NUL), revision (u32), number of variables (u32); each variable:
name, rank (u8), sizes (u32 each), type (u8), bytes (u32), data; then the number of aliases (u32)
and pairs of names.

Reference: CTranslate2's model specification, version 6, docs at opennmt.net/CTranslate2.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmcodec.config import parse_json

WEIGHTS_NAME = "model.bin"
_KIND = "WhisperSpec"
_VERSIONS = (5, 6)
_TYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}
_MAX_RANK = 4
_MAX_VARIABLES = 10_000

Array = npt.NDArray[Any]


class CTranslate2Error(ValueError):
    """A CTranslate2 folder that is damaged, or of a kind that is not read here."""


@dataclass(frozen=True)
class CTranslate2Model:
    """What a folder holds.

    variables: by name, arrays that are read from the file when they are touched.
    config: of `config.json`.
    """

    variables: Mapping[str, Array]
    config: Mapping[str, Any]


def is_ctranslate2(folder: Path) -> bool:
    """Whether a folder is laid out as CTranslate2 does it; nothing is read."""
    return (folder / WEIGHTS_NAME).is_file() and not any(folder.glob("*.safetensors"))


def read_ctranslate2(folder: Path) -> CTranslate2Model:
    """The variables and the configuration of a folder.

    Raises CTranslate2Error for files that are damaged, cut short or of another kind.
    """
    path = folder / "config.json"
    try:
        config = parse_json(path.read_bytes())
    except ValueError as error:
        raise CTranslate2Error(f"{path}: damaged: {error}") from error
    if not isinstance(config, dict):
        raise CTranslate2Error(f"{path}: damaged: not a table")
    return CTranslate2Model(_read_variables(folder / WEIGHTS_NAME), config)


class _Reader:
    """Numbers and names one after the other, none of them beyond the file's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        self.data: Array = np.zeros(0, dtype=np.uint8)
        if size:  # a mapping cannot be empty
            self.data = np.memmap(path, dtype=np.uint8, mode="r")
        self.position = 0

    def take(self, count: int) -> Array:
        """The next bytes."""
        if count > len(self.data) - self.position:
            raise CTranslate2Error(
                f"{self.path}: cut short or damaged: {count} bytes are due at "
                f"{self.position}, the file has {len(self.data)}"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> int:
        """The next unsigned integer: "B", "H" or "I"."""
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")).tobytes())[0])

    def name(self) -> str:
        """The next name, which ends in NUL."""
        raw = self.take(self.number("H")).tobytes()
        if raw[-1:] != b"\0" or not raw[:-1].isascii():
            raise CTranslate2Error(f"{self.path}: damaged: no name at {self.position}")
        return raw[:-1].decode("ascii")


def _read_variables(path: Path) -> dict[str, Array]:
    reader = _Reader(path)
    version = reader.number("I")
    if version not in _VERSIONS:
        raise CTranslate2Error(
            f"{path}: not a CTranslate2 model, or of version {version}; read here: "
            f"{' and '.join(map(str, _VERSIONS))}"
        )
    kind = reader.name()
    if kind != _KIND:
        raise CTranslate2Error(f"{path}: holds a {kind!r}, a Whisper model is needed ({_KIND!r})")
    reader.number("I")  # revision of the kind: names have not changed
    count = reader.number("I")
    if count > _MAX_VARIABLES:
        raise CTranslate2Error(f"{path}: damaged: {count} variables")
    variables: dict[str, Array] = {}
    for _ in range(count):
        name, values = _read_variable(reader)
        if name in variables:
            raise CTranslate2Error(f"{path}: damaged: {name!r} is there twice")
        variables[name] = values
    for _ in range(reader.number("I")):
        alias, name = reader.name(), reader.name()
        if name not in variables or alias in variables:
            raise CTranslate2Error(f"{path}: damaged: {alias!r} stands for {name!r}")
        variables[alias] = variables[name]
    if reader.position != len(reader.data):
        raise CTranslate2Error(
            f"{path}: damaged: {len(reader.data) - reader.position} bytes too many"
        )
    return variables


def _read_variable(reader: _Reader) -> tuple[str, Array]:
    name = reader.name()
    rank = reader.number("B")
    if rank > _MAX_RANK:
        raise CTranslate2Error(f"{reader.path}: damaged: {name!r} has rank {rank}")
    sizes = [reader.number("I") for _ in range(rank)]
    kind, num_bytes = reader.number("B"), reader.number("I")
    if kind not in _TYPES:
        raise CTranslate2Error(
            f"{reader.path}: {name!r} has the number type {kind}; read here: float16 and float32"
        )
    dtype = _TYPES[kind]
    due = dtype.itemsize
    for size in sizes:
        due *= size
    if due != num_bytes:
        raise CTranslate2Error(
            f"{reader.path}: damaged: {name!r} {sizes} has {num_bytes} bytes, {due} are due"
        )
    return name, reader.take(num_bytes).view(dtype).reshape(sizes)
