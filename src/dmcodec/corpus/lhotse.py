"""Lhotse's lists as entries with our keys: cuts, recordings with supervisions, Shar folders."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from dmcodec.audio import seconds_to_samples
from dmcodec.corpus.containers import find_member_by_stem
from dmcodec.corpus.lines import Entry, open_list, parse_object

# A cut that has this much of its recording is the whole of it: seconds are rounded.
_WHOLE_TOLERANCE_S = 1e-3
_SHAR_CUTS = re.compile(r"^cuts\.(\d+)\.jsonl(?:\.gz)?$")


def is_lhotse(row: dict[str, Any]) -> bool:
    """Whether a JSON object is a cut or a recording of Lhotse's."""
    is_recording = isinstance(row.get("sources"), list) and "sampling_rate" in row
    return "recording" in row or str(row.get("type", "")).endswith("Cut") or is_recording


def read_lhotse_line(row: dict[str, Any], path: Path, place: str) -> Entry:
    """The utterance of a cut or a recording in the list `path`."""
    try:
        return (
            _read_recording(row, path, place) if "sources" in row else _read_cut(row, path, place)
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{place}: is not a Lhotse cut or recording: {error!r}") from error


def list_shar(folder: Path) -> list[Path]:
    """The lists of cuts of a folder in Lhotse's Shar format; empty for other folders."""
    return sorted(path for path in folder.iterdir() if _shar_tar(path) is not None)


def _read_cut(cut: Entry, path: Path, place: str) -> Entry:
    """A cut; refuses cuts of several recordings, of one channel of many, and altered ones.

    A cut that is its whole recording becomes a whole file. Texts of several supervisions are
    joined; a speaker is one that they agree on.
    """
    recording = cut.get("recording")
    kind = cut.get("type", "MonoCut")
    if kind != "MonoCut" or not isinstance(recording, dict):
        raise ValueError(f"{place}: cut {cut.get('id')!r} is a {kind}; only MonoCuts are read")
    start_s, duration_s = _seconds(cut, "start", place), _seconds(cut, "duration", place)
    entry: Entry = {
        "id": cut.get("id"),
        "num_samples": seconds_to_samples(duration_s),
        **_about(cut.get("supervisions") or []),
    }
    tar = _shar_tar(path)
    if tar is not None and _source_type(recording) in ("shar", "memory", None):
        # A Shar stores what the cut is: the whole of the sound file.
        offset = find_member_by_stem(tar, str(cut.get("id")))
        if offset is None:
            raise ValueError(f"{place}: {tar} does not hold the cut {cut.get('id')!r}")
        return {**entry, "audio": tar.name, "entry": offset}
    entry["audio"] = _sound_file(recording, place)
    total_s = recording.get("duration")
    # NaN is no length: what begins at 0 is then a segment too.
    is_whole = total_s is not None and abs(duration_s - total_s) <= _WHOLE_TOLERANCE_S
    if start_s > 0 or not is_whole:
        entry["start_samples"] = seconds_to_samples(start_s)
    return entry


def _read_recording(recording: Entry, path: Path, place: str) -> Entry:
    """A whole recording; text and speaker from the supervisions in the list beside it."""
    entry: Entry = {"id": recording.get("id"), "audio": _sound_file(recording, place)}
    if recording.get("duration") is not None:
        entry["num_samples"] = seconds_to_samples(_seconds(recording, "duration", place))
    beside = path.with_name(path.name.replace("recordings", "supervisions"))
    if beside != path and beside.is_file():
        entry |= _about(_supervisions(beside).get(str(recording.get("id")), []))
    return entry


def _sound_file(recording: Entry, place: str) -> str:
    sources = recording.get("sources") or [{}]
    channels = recording.get("channel_ids") or sources[0].get("channels") or [0]
    name = recording.get("id")
    if len(sources) != 1 or sources[0].get("type") != "file" or len(channels) != 1:
        raise ValueError(f"{place}: {name!r} is not of one mono sound file; save it as one first")
    if recording.get("transforms"):
        raise ValueError(f"{place}: {name!r} is transformed; save its sound first")
    return sources[0]["source"]


def _source_type(recording: Entry) -> str | None:
    sources = recording.get("sources") or [{}]
    return sources[0].get("type")


def _about(supervisions: list[dict[str, Any]]) -> Entry:
    speakers = {each.get("speaker") for each in supervisions}
    return {
        "text": " ".join(str(each["text"]) for each in supervisions if each.get("text")),
        "speaker": speakers.pop() if len(speakers) == 1 else None,
    }


def _seconds(row: Entry, key: str, place: str) -> float:
    try:
        value = float(row[key])
        seconds_to_samples(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: is not a Lhotse cut or recording: {key}: {error}") from error
    return value


@lru_cache(maxsize=4)
def _supervisions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """All supervisions of a list by their recording, in order of their start."""
    found: dict[str, list[dict[str, Any]]] = {}
    with open_list(path) as lines:
        for number, line in lines:
            if line.strip():
                each = parse_object(line, f"{path}:{number}")
                found.setdefault(str(each.get("recording_id")), []).append(each)
    for several in found.values():
        several.sort(key=lambda each: float(each.get("start") or 0.0))
    return found


def _shar_tar(path: Path) -> Path | None:
    """The tar with the sounds of a Shar's list of cuts."""
    match = _SHAR_CUTS.match(path.name)
    if match is None:
        return None
    tar = path.with_name(f"recording.{match[1]}.tar")
    return tar if tar.is_file() else None
