"""Other projects' lists of utterances as entries with our keys: Kaldi, Lhotse, tables, tars.

Entries are dictionaries as a line of our JSONL has them; manifest.py checks them. Each comes with
its place for error messages.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dmcodec.audio import seconds_to_samples
from dmcodec.containers import list_table, list_tar

Entry = dict[str, Any]

# Names that published data sets use, the first that is there counts.
_ID_KEYS = ("id", "utt_id", "uttid", "key")
_TEXT_KEYS = ("text", "transcript", "transcription", "sentence", "normalized_text")
_SPEAKER_KEYS = ("speaker", "speaker_id", "spk_id", "client_id")
# A cut that has this much of its recording is the whole of it: seconds are rounded.
_WHOLE_TOLERANCE_S = 1e-3


def read_kaldi(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Entry]]:
    """A `wav.scp` with `segments`, `text` and `utt2spk` from the same folder when they are there.

    With segments, these are the utterances; recordings without any are left out.
    """
    texts = _read_kaldi_table(path.parent / "text")
    speakers = _read_kaldi_table(path.parent / "utt2spk")
    recordings = _read_recordings(path, lines)
    segments = path.parent / "segments"
    found = _cut_segments(segments, recordings) if segments.is_file() else recordings
    for identifier, (place, entry) in found.items():
        about = {"text": texts.get(identifier), "speaker": speakers.get(identifier)}
        yield place, {"id": identifier, **entry, **about}


def read_lhotse_cut(cut: Entry, place: str) -> Entry:
    """A Lhotse cut; refuses cuts of several recordings, of one channel of many, and altered ones.

    A cut that is its whole recording becomes a whole file. Texts of several supervisions are
    joined; a speaker is one that they agree on.
    """
    recording = cut.get("recording")
    kind = cut.get("type", "MonoCut")
    if kind != "MonoCut" or not isinstance(recording, dict):
        raise ValueError(f"{place}: cut {cut.get('id')!r} is a {kind}; only MonoCuts are read")
    sources = recording.get("sources") or [{}]
    channels = recording.get("channel_ids") or sources[0].get("channels") or [0]
    if len(sources) != 1 or sources[0].get("type") != "file" or len(channels) != 1:
        raise ValueError(
            f"{place}: cut {cut.get('id')!r} is not of one mono sound file; save it as one first"
        )
    if recording.get("transforms"):
        raise ValueError(f"{place}: cut {cut.get('id')!r} is transformed; save its sound first")
    start_s, duration_s = float(cut["start"]), float(cut["duration"])
    supervisions = cut.get("supervisions") or []
    speakers = {each.get("speaker") for each in supervisions}
    entry: Entry = {
        "id": cut.get("id"),
        "audio": sources[0].get("source"),
        "num_samples": seconds_to_samples(duration_s),
        "text": " ".join(each["text"] for each in supervisions if each.get("text")),
        "speaker": speakers.pop() if len(speakers) == 1 else None,
    }
    total_s = recording.get("duration")
    if start_s > 0 or total_s is None or abs(duration_s - total_s) > _WHOLE_TOLERANCE_S:
        entry["start_samples"] = seconds_to_samples(start_s)
    return entry


def read_table(path: Path) -> Iterator[tuple[str, Entry]]:
    """A Parquet or Arrow file with sound files in a column, as Hugging Face `datasets` writes.

    A row without an id gets the name of its sound file, or FILE/ROW.
    """
    for number, row in enumerate(list_table(path)):
        identifier = _first(row, _ID_KEYS)
        if identifier is None and row["path"]:
            name = PurePosixPath(str(row["path"]))
            identifier = name.stem if name.is_absolute() else name.with_suffix("").as_posix()
        yield (
            f"{path}: row {number}",
            {
                "id": f"{path.stem}/{number}" if identifier is None else identifier,
                "audio": path.name,
                "entry": number,
                "text": _first(row, _TEXT_KEYS),
                "speaker": _first(row, _SPEAKER_KEYS),
            },
        )


def read_tar(path: Path) -> Iterator[tuple[str, Entry]]:
    """A WebDataset tar; text and speaker come from the .txt and .json of a sample."""
    for sound in list_tar(path):
        place = f"{path}: {sound.key}"
        about: Any = {}
        try:
            if ".json" in sound.sidecars:
                about = json.loads(sound.sidecars[".json"])
            text = sound.sidecars.get(".txt", b"").decode().strip()
        except ValueError as error:
            raise ValueError(f"{place}: its .json or .txt cannot be read: {error}") from error
        about = about if isinstance(about, dict) else {}
        yield (
            place,
            {
                "id": sound.key.removeprefix("./"),
                "audio": path.name,
                "entry": sound.offset,
                "text": text or _first(about, _TEXT_KEYS),
                "speaker": _first(about, _SPEAKER_KEYS),
            },
        )


def list_saved_dataset(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote; None for other folders."""
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        said = json.loads(state.read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in said["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return None


def _first(values: Entry, keys: tuple[str, ...]) -> str | None:
    """The first of these that has a value, as text: published tables number their speakers."""
    found = next((values[key] for key in keys if values.get(key) is not None), None)
    return None if found is None else str(found)


def _read_recordings(path: Path, lines: Iterable[str]) -> dict[str, tuple[str, Entry]]:
    recordings: dict[str, tuple[str, Entry]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        identifier, audio = _split_kaldi_line(line)
        if not audio:
            raise ValueError(f"{place}: expected 'id path', got {line.strip()!r}")
        if audio.endswith("|") or audio.startswith("|"):
            raise ValueError(f"{place}: {identifier!r} is a command pipe; write it to a file first")
        if identifier in recordings:
            raise ValueError(f"{place}: the id {identifier!r} is already used")
        recordings[identifier] = (place, {"audio": audio})
    return recordings


def _cut_segments(
    path: Path, recordings: dict[str, tuple[str, Entry]]
) -> dict[str, tuple[str, Entry]]:
    """The lines 'id recording start_s end_s'; an end of -1 is that of the recording."""
    segments: dict[str, tuple[str, Entry]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            identifier, recording, start_s, end_s = line.split()
            start = seconds_to_samples(float(start_s))
            end = None if float(end_s) == -1 else seconds_to_samples(float(end_s))
        except ValueError as error:
            raise ValueError(f"{place}: expected 'id recording start end': {error}") from error
        if recording not in recordings:
            raise ValueError(f"{place}: there is no recording {recording!r}")
        if identifier in segments:
            raise ValueError(f"{place}: the id {identifier!r} is already used")
        entry = {**recordings[recording][1], "start_samples": start}
        if end is not None:
            entry["num_samples"] = end - start
        segments[identifier] = (place, entry)
    return segments


def _read_kaldi_table(path: Path) -> dict[str, str]:
    """Lines 'id value...' as a dictionary; empty when the file is not there."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        return dict(_split_kaldi_line(line) for line in file if line.strip())


def _split_kaldi_line(line: str) -> tuple[str, str]:
    """The id and the rest of the line, which may be empty."""
    identifier, *rest = line.split(maxsplit=1)
    return identifier, rest[0].strip() if rest else ""
