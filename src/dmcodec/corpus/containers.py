"""Files that hold many sound files: tars, compressed or not, and Kaldi archives.

What is in them, and the sound in one place; what the bytes say is known to audio.py alone.
"""

import atexit
import bz2
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, cast

from dmcodec.audio import AUDIO_SUFFIXES, AudioError
from dmcodec.sound.layout import read_wav_bytes
from dmcodec.sound.media import MEDIA_SUFFIXES

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SIDECAR_SUFFIXES = (".txt", ".json")
_MAX_SIDECAR_BYTES = 1 << 20
_MAX_EXPANSION = 100  # of a compressed tar: sound hardly shrinks
_KEPT_TARS = 4
_tar_lock = Lock()


class TarSound(NamedTuple):
    """A sound file in a tar: WebDataset key, byte offset, and its text files by suffix."""

    key: str
    offset: int
    sidecars: dict[str, bytes]


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
                if member.issparse():  # its holes could be of any size
                    raise AudioError(f"{path}: {member.name} is stored with holes: pack it anew")
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
        try:
            return read_wav_bytes(file)
        except AudioError as error:
            raise AudioError(f"{path}: {error} at byte {offset}") from error
