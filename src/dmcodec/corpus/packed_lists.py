"""Tars and tables of sounds as entries with our keys; see text_lists.py."""

from pathlib import Path, PurePosixPath

from dmcodec.corpus.containers import list_tar
from dmcodec.corpus.lines import Columns, Entry, parse_object
from dmcodec.corpus.tables import list_table
from dmcodec.corpus.text_lists import Entries

_ABOUT = ("id", "text", "speaker")


def read_table(path: Path, columns: Columns) -> Entries:
    """A Parquet or Arrow file with sounds in a column, as Hugging Face `datasets` writes.

    A row without an id gets the name of its sound file, or FILE/ROW.
    """
    for number, row in enumerate(list_table(path)):
        place = f"{path}: row {number}"
        name = row.pop("path")
        entry = columns.choose(row, _ABOUT)
        if "audio" in row:  # a path of its own
            columns.use("audio")
            yield place, {**entry, "audio": name}
            continue
        if name:
            name = PurePosixPath(str(name))
            entry["name"] = name.name if name.is_absolute() else name.as_posix()
        elif "id" not in entry:
            entry["name"] = f"{path.stem}/{number}"
        yield place, {**entry, "audio": path.name, "entry": number}


def read_tar(path: Path, columns: Columns) -> Entries:
    """A WebDataset tar; text and speaker come from the .txt and .json of a sample."""
    for sound in list_tar(path):
        if isinstance(sound, ValueError):
            yield str(path), sound
            continue
        place = f"{path}: {sound.key}"
        entry: Entry = {}
        try:
            if ".json" in sound.sidecars:
                entry = columns.choose(parse_object(sound.sidecars[".json"], place), _ABOUT)
            text = sound.sidecars.get(".txt", b"").decode().strip()
        except ValueError as error:
            problem = f"{place}: its .json or .txt cannot be read: {error}"
            yield place, ValueError(problem)
            continue
        entry = {**entry, "id": sound.key.removeprefix("./"), "audio": path.name}
        yield place, {**entry, "entry": sound.offset} | ({"text": text} if text else {})


def list_saved_dataset(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote; none for other folders."""
    state = folder / "state.json"
    if not state.is_file():
        return []
    try:
        said = parse_object(state.read_bytes(), str(state))
        return [folder / file["filename"] for file in said["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return []


def list_splits(folder: Path) -> list[str]:
    """The splits of a folder that `DatasetDict.save_to_disk` wrote; none for other folders."""
    state = folder / "dataset_dict.json"
    if not state.is_file():
        return []
    splits = parse_object(state.read_bytes(), str(state)).get("splits")
    return [str(split) for split in splits] if isinstance(splits, list) else []
