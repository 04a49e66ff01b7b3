"""Results that appear whole or not at all, and folders that one job writes at a time.

Whatever the package writes is written here first under a temporary name in the folder where it
belongs (a rename is atomic within one file system only). The name cannot be guessed and is opened
exclusively, so no link that somebody laid there is followed; it is short whatever the result is
called; permissions are those that the umask gives. Knows nothing of what it writes.
"""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# And those of earlier versions, which killed jobs left.
_TEMPORARY_NAME = re.compile(r"\..+\.part|\.(writing|deleting)_.+")


class FolderInUse(ValueError):
    """Another job is writing to the folder."""


class FolderLost(ValueError):
    """The folder that a job writes to was deleted or replaced by somebody else."""


@contextmanager
def open_whole(path: Path, *, is_durable: bool = False) -> Iterator[BinaryIO]:
    """A new file, open for writing and reading, that takes the place of `path` at the end.

    When the block raises, no trace is left and an older file stays as it is. A link at `path` is
    replaced, not followed.

    Args:
        path: of the result; its folder exists.
        is_durable: the content is on the disk before the name is, also when the machine stops.

    Raises OSError that names `path`.
    """
    temporary = path.with_name(_temporary_name())
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with _errors_named(temporary, path):
        descriptor = os.open(temporary, flags, 0o666)
    try:
        with _errors_named(temporary, path):
            with open(descriptor, "w+b") as file:
                yield file
                file.flush()
                if is_durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str, *, is_durable: bool = False) -> None:
    """Writes a file (text as UTF-8) as `open_whole` does; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path, is_durable=is_durable) as file:
        file.write(content if isinstance(content, bytes) else content.encode())


@contextmanager
def make_folder_whole(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block ends well.

    Raises OSError that names `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(_temporary_name())
    try:
        with _errors_named(temporary, target):
            temporary.mkdir()
            yield temporary
            old = move_aside(target) if target.exists() else None
            temporary.rename(target)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replace_together(folder: Path) -> Iterator[Path]:
    """A folder aside whose files take their places in `folder` when the block ends well.

    All are complete before the first one moves: a full disk, an error or a kill before that leaves
    the older files whole. Between two moves there are files of both kinds for an instant; what
    must not be mixed has to say so itself, by hashes.
    """
    make_folder(folder)
    aside = folder / _temporary_name()
    try:
        with _errors_named(aside, folder):
            aside.mkdir()
            yield aside
            for path in sorted(aside.iterdir()):
                path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes a folder for results if missing; NotADirectoryError when it is a file."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder for the results")
    folder.mkdir(parents=True, exist_ok=True)


def move_aside(path: Path) -> Path:
    """Renames a file or folder, so that killed on the way nothing of it looks complete."""
    return path.rename(path.with_name(_temporary_name()))


def delete_folder(folder: Path) -> None:
    """Deletes a folder; killed on the way, it leaves nothing that looks complete."""
    shutil.rmtree(move_aside(folder))


def delete_leftovers(folder: Path) -> None:
    """Removes what jobs that were killed left half written or half deleted below a folder.

    Only where no other job can be at work: see `lock_folder`.
    """
    for path in list(folder.rglob(".*")):
        if not _TEMPORARY_NAME.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have gone with the folder that it was in


_held: set[int] = set()


def _close_held() -> None:
    """In a process that was forked: locks are its parent's alone, and end with it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_held)


@dataclass(frozen=True)
class FolderLock:
    """A folder that this process alone writes to."""

    folder: Path
    descriptor: int

    def check(self) -> None:
        """Raises FolderLost when the folder was deleted, or replaced, since it was locked.

        What a job wrote there is lost then, and what it would write appears in no folder, or in
        another one.
        """
        try:
            found = (self.folder / LOCK_NAME).stat()
        except FileNotFoundError:
            found = None
        held = os.fstat(self.descriptor)
        if found is None or (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            raise FolderLost(
                f"{self.folder} was deleted or replaced while the job was writing to it: what it "
                "had done there is lost; start again"
            )


@contextmanager
def lock_folder(folder: Path) -> Iterator[FolderLock]:
    """Makes the folder if missing and holds it for this process, on machines that can.

    The system lets go of it when the process ends, however it ends. The lock file stays, but in a
    folder that was made for it and in which nothing was done: that goes.

    Raises FolderInUse when another process holds it.
    """
    is_new = not folder.exists()
    make_folder(folder)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(folder / LOCK_NAME, flags, 0o666)
    _held.add(descriptor)
    try:
        _lock(descriptor, folder)
        lock = FolderLock(folder, descriptor)
        lock.check()
        yield lock
    finally:
        if descriptor in _held:  # else this is a forked process, see `_close_held`
            if is_new and folder.is_dir() and is_unused(folder):
                shutil.rmtree(folder)
            _held.discard(descriptor)
            os.close(descriptor)


def is_unused(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but the file of its lock."""
    return not folder.exists() or all(path.name == LOCK_NAME for path in folder.iterdir())


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderInUse(f"another job is writing to {folder}: wait for it or stop it") from error
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): run one job at a time here", folder, error)


def _temporary_name() -> str:
    return f".dmcodec-{secrets.token_hex(8)}.part"


@contextmanager
def _errors_named(temporary: Path, path: Path) -> Iterator[None]:
    """Errors that name the temporary file or folder, or none, name the result instead."""
    try:
        yield
    except OSError as error:
        text, name = str(error), str(error.filename or temporary)
        if error.errno is None and str(temporary) in text:
            raise OSError(text.replace(str(temporary), str(path))) from error
        if error.errno is None or not name.startswith(str(temporary)):
            raise
        name = name.replace(str(temporary), str(path), 1)
        raise OSError(error.errno, error.strerror, name) from error
