"""Which reader a list or a folder needs, by its name and by what is in it."""

import logging
from os.path import isdir
from pathlib import Path, PurePosixPath

from dmcodec.audio import find_audio_files
from dmcodec.corpus.containers import TAR_SUFFIXES
from dmcodec.corpus.lhotse import list_shar
from dmcodec.corpus.lines import COMPRESSIONS, Columns, Entry
from dmcodec.corpus.packed_lists import list_saved_dataset, list_splits, read_table, read_tar
from dmcodec.corpus.tables import TABLE_SUFFIXES
from dmcodec.corpus.text_lists import (
    Entries,
    has_audio_column,
    read_jsonl,
    read_kaldi,
    read_table_of_lines,
)
from dmcodec.sound.folders import walk

logger = logging.getLogger(__name__)

_READERS = {
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".scp": read_kaldi,
    ".tsv": read_table_of_lines,
    ".csv": read_table_of_lines,
    ".txt": read_table_of_lines,
}
MANIFEST_SUFFIXES = (*_READERS, *TABLE_SUFFIXES, *TAR_SUFFIXES)
"""Of the files that are lists of utterances; text lists may be compressed."""


def is_manifest(path: Path) -> bool:
    """Whether a file is a list of utterances or a container of many, by its name."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.endswith(MANIFEST_SUFFIXES) and not isdir(path)


def read_entries(path: Path, columns: Columns) -> Entries:
    """Each entry, or what is wrong with it, with its place ("file:line")."""
    if path.is_dir():
        yield from _read_folder(path, columns)
        return
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such manifest")
    name = path.name.lower()
    if name.endswith(TAR_SUFFIXES):
        yield from read_tar(path, columns)
        return
    if name.endswith(TABLE_SUFFIXES):
        yield from read_table(path, columns)
        return
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = PurePosixPath(name).suffix
    if suffix not in _READERS:
        raise ValueError(
            f"{path}: a manifest is a folder or a file {', '.join(sorted(MANIFEST_SUFFIXES))}"
        )
    yield from _READERS[suffix](path, columns)


def _read_folder(folder: Path, columns: Columns) -> Entries:
    splits = list_splits(folder)
    if splits:
        names = ", ".join(str(folder / split) for split in splits)
        raise ValueError(f"{folder}: is a saved DatasetDict; name its splits: {names}")
    lists = list_saved_dataset(folder) or list_shar(folder) or _find_lists(folder)
    sounds = [] if lists else find_audio_files(folder)
    if not lists and not sounds:
        files = [path for path, problem in walk(folder) if problem is None and path.name[0] != "."]
        for suffixes in (TABLE_SUFFIXES, TAR_SUFFIXES):
            lists = lists or sorted(p for p in files if p.name.lower().endswith(suffixes))
    listed: set[Path] = set()
    for path in lists:
        for place, entry in read_entries(path, columns):
            if isinstance(entry, dict):  # paths start at the list's folder, not at this one
                inside = path.parent.relative_to(folder).as_posix()
                entry = _move(entry, inside)
                listed.add(folder / str(entry.get("audio")))
            yield place, entry
    if lists and lists[0].name.startswith("metadata."):
        unlisted = [path for path in find_audio_files(folder) if path not in listed]
        if unlisted:
            logger.warning(
                "%s: %d sound files are in no metadata list and left out: %s%s",
                folder,
                len(unlisted),
                ", ".join(str(path.relative_to(folder)) for path in unlisted[:5]),
                ", ..." if len(unlisted) > 5 else "",
            )
    for audio in sounds:
        yield str(audio), {"audio": audio.relative_to(folder).as_posix()}


def _find_lists(folder: Path) -> list[Path]:
    """Lists that say what the sound files of a folder are: Hugging Face, LJSpeech, Kaldi."""
    if (folder / "wav.scp").is_file():
        return [folder / "wav.scp"]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    names = ("metadata.jsonl", "metadata.csv")
    found = [here / name for here in (folder, *inside) for name in names]
    return [path for path in found if path.is_file() and has_audio_column(path)]


def _move(entry: Entry, inside: str) -> Entry:
    """An entry of a list in a folder `inside` the one that paths now start at."""
    audio = entry.get("audio")
    if inside == "." or not isinstance(audio, str):
        return entry
    return {"name": entry.get("name", audio), **entry, "audio": f"{inside}/{audio}"}
