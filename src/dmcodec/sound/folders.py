"""Which files of a folder are sound, and a line about those that are left out."""

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dmcodec.sound.files import AUDIO_SUFFIXES
from dmcodec.sound.media import MEDIA_SUFFIXES

logger = logging.getLogger(__name__)

_OTHER = "another suffix"
_NAMED = 5  # files of each kind that the line about them names


def find_audio_files(folder: Path | str) -> list[Path]:
    """Every sound file below `folder`, by its suffix, sorted by path; as `find_files` finds them.

    The suffixes are `AUDIO_SUFFIXES`, and those of media files where PyAV is there. Returns an
    empty list when there is none.
    """
    has_media = importlib.util.find_spec("av") is not None
    suffixes = AUDIO_SUFFIXES + (MEDIA_SUFFIXES if has_media else ())
    needs = {} if has_media else dict.fromkeys(MEDIA_SUFFIXES, "need pip install 'dmcodec[media]'")
    return find_files(folder, suffixes, needs)


def find_files(
    folder: Path | str, suffixes: Sequence[str], needs: Mapping[str, str] | None = None
) -> list[Path]:
    """Every file below `folder` with one of the suffixes, sorted by path; links are followed once.

    Hidden files (names beginning with a dot) are left out: other systems leave such files with
    sound-file suffixes and no sound. One warning counts and names what is left out: links that lead
    nowhere, folders that cannot be read or were there before, files of other suffixes (`needs` has
    the reasons of some).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for path, problem in walk(folder):
        suffix = path.suffix.lower()
        if problem is None and path.name[0] == ".":
            problem = "hidden"
        if problem is None and suffix in suffixes:
            found.append(path)
        else:
            reason = problem or (needs or {}).get(suffix, _OTHER)
            left_out.setdefault(reason, []).append(str(path.relative_to(folder)))
    # Of a folder with other files alone the caller says that it is empty.
    if left_out and (found or set(left_out) != {_OTHER}):
        logger.warning("%s: %d files; left out: %s", folder, len(found), _say(left_out))
    return sorted(found)


def walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Every file below a folder, and what cannot be read with the reason; links are followed.

    A folder that several links lead to is entered once.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in entered:
                yield here, "a folder that was read already"
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            yield here, error.strerror or "cannot be read"
            continue
        for entry in entries:
            path = here / entry.name
            try:
                if entry.is_dir():
                    waiting.append(path)
                elif entry.is_file():
                    yield path, None
                else:
                    reason = "a link that leads nowhere" if entry.is_symlink() else "no file"
                    yield path, reason
            except OSError as error:
                yield path, error.strerror or "cannot be read"


def _say(left_out: dict[str, list[str]]) -> str:
    """'2 a link that leads nowhere (a.wav, b.wav); ...', sorted, with a few names of each."""
    said = []
    for reason, names in sorted(left_out.items()):
        some = ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        said.append(f"{len(names)} ({reason}: {some})")
    return "; ".join(said)
