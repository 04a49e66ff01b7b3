"""Lists of utterances: folders, JSONL, TSV, Kaldi, Lhotse, tables and tars; speaker splits.

Other projects' formats are in manifest_formats.py. Manifests are read here, sound is not: whether
a file exists and is sound shows when it is read.
"""

import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np
from pydantic import Field, ValidationError, field_validator

from dmcodec.audio import find_audio_files, seconds_to_samples
from dmcodec.config import Record
from dmcodec.manifest_formats import (
    list_saved_dataset,
    read_kaldi,
    read_lhotse_cut,
    read_table,
    read_tar,
)

logger = logging.getLogger(__name__)

# Names other manifests use -> ours. NeMo: audio_filepath, duration. Common TSV: path.
_ALIASES = {"audio_filepath": "audio", "path": "audio", "duration": "duration_s"}


class Utterance(Record):
    """One recording and what its manifest says about it.

    `id` is unique in its list and safe as a relative file name. `num_samples` is the manifest's
    word for the length at 16 kHz (durations in seconds are converted, so it may be off by their
    rounding); None when it says nothing. An empty text, speaker or corpus means unknown: None.
    `dmcodec.sources.read_utterance` gives the waveform.

    Attributes:
        start_samples: where a segment begins in its sound file, at 16 kHz; it lasts `num_samples`,
            or to the end. None: the utterance is the whole file.
        entry: where the sound file lies when `audio` is a container: the row of a Parquet or Arrow
            table, the byte offset of a tar's member. None: `audio` is the sound file.
    """

    id: str = Field(min_length=1)
    audio: Path
    num_samples: int | None = Field(default=None, ge=1)
    start_samples: int | None = Field(default=None, ge=0)
    entry: int | None = Field(default=None, ge=0)
    speaker: str | None = None
    corpus: str | None = None
    text: str | None = None
    licence: str | None = None
    source: str | None = None

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str) -> str:
        parts = value.split("/")
        if "" in parts or "." in parts or ".." in parts or not value.isprintable():
            raise ValueError(
                f"an id names output files, so it may not be absolute, hold '.' or '..' as a "
                f"folder, or unprintable characters; got {value!r}"
            )
        return value

    @property
    def sound_file(self) -> Path:
        """The file that holds this utterance and nothing else; ValueError when there is none."""
        if self.start_samples is not None or self.entry is not None:
            raise ValueError(
                f"utterance {self.id!r} is a part of {self.audio}; here only whole sound files "
                "can be used"
            )
        return self.audio

    @field_validator("speaker", "corpus", "text", "licence", "source")
    @classmethod
    def _empty_is_unknown(cls, value: str | None) -> str | None:
        return value or None


def read_manifest(path: Path | str) -> list[Utterance]:
    """The utterances of a folder or file, in its order.

    * A folder: every sound file below it, sorted; without any, its Parquet files or tars; or a
      data set that Hugging Face `datasets` saved.
    * JSONL (`.jsonl`, `.json`, also `.gz`): one object a line with `audio` (or NeMo's
      `audio_filepath`), and optionally the fields of `Utterance`, `duration_s` (or `duration`)
      and `offset`, where a segment begins, in seconds. Other keys are ignored and logged.
      Lines may be Lhotse cuts.
    * Kaldi `wav.scp`, with `segments`, `text` and `utt2spk` from the same folder.
    * TSV with a header line, columns named as the JSONL keys (or `path`).
    * Parquet or Arrow files with sound files in a column, WebDataset tars.

    Relative sound paths start at the manifest's folder. An utterance without an id gets its sound
    path less the last suffix, so `a/x.1.wav` and `b/x.1.wav` stay apart.

    Raises:
        FileNotFoundError: there is no such manifest.
        ValueError: another suffix, no utterances, a malformed line or an id used twice; the
            message names the file and the line.
    """
    return read_manifests([Path(path)])


def read_manifests(paths: Sequence[Path | str]) -> list[Utterance]:
    """Several manifests as one list, in order; ids must be unique over all of them."""
    utterances: list[Utterance] = []
    places: dict[str, str] = {}
    for path in map(Path, paths):
        num_before = len(utterances)
        for place, utterance in _read_entries(path):
            if utterance.id in places:
                raise ValueError(
                    f"{place}: the id {utterance.id!r} is already used by "
                    f"{places[utterance.id]}; ids must be unique"
                )
            places[utterance.id] = place
            utterances.append(utterance)
        if len(utterances) == num_before:
            raise ValueError(f"{path}: holds no utterances")
    return utterances


def split_by_speaker(
    utterances: Sequence[Utterance], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Utterance]]:
    """Utterances dealt to named splits so that no speaker is in two of them.

    Speakers in random order go to the split that lacks most of its share. Shares are of samples
    when every length is known, else of utterances. The result depends on the set of utterances
    and the seed, not on their order; inside a split the given order is kept.

    Args:
        utterances: each with a speaker.
        fractions: split name -> share, positive, adding up to 1.
        seed: of the random order.

    Raises:
        ValueError: an utterance without a speaker, wrong shares, or a split left empty.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions must be positive and add up to 1, got {dict(fractions)}")
    use_samples = all(utterance.num_samples is not None for utterance in utterances)
    amounts: dict[str, int] = {}
    for utterance in utterances:
        if utterance.speaker is None:
            raise ValueError(f"utterance {utterance.id!r} has no speaker; cannot split by speaker")
        amount = (utterance.num_samples or 0) if use_samples else 1
        amounts[utterance.speaker] = amounts.get(utterance.speaker, 0) + amount

    lacking = {name: share * sum(amounts.values()) for name, share in fractions.items()}
    split_of: dict[str, str] = {}
    speakers = sorted(amounts)
    for index in np.random.default_rng(seed).permutation(len(speakers)):
        speaker = speakers[index]
        name = max(lacking, key=lambda key: lacking[key])
        split_of[speaker] = name
        lacking[name] -= amounts[speaker]

    splits: dict[str, list[Utterance]] = {name: [] for name in fractions}
    for utterance in utterances:
        splits[split_of[str(utterance.speaker)]].append(utterance)
    empty = [name for name, members in splits.items() if not members]
    if empty:
        raise ValueError(
            f"no speaker fell to {', '.join(empty)}: {len(amounts)} speakers are too few for "
            f"{dict(fractions)}; give it a larger share or more speakers"
        )
    return splits


def _read_entries(path: Path) -> Iterator[tuple[str, Utterance]]:
    """Each utterance with its place ("file:line") for error messages."""
    if path.is_dir():
        yield from _read_folder(path)
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest")
    is_compressed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if is_compressed else path).suffix.lower()
    containers = {".parquet": read_table, ".arrow": read_table, ".tar": read_tar}
    if suffix in containers and not is_compressed:
        yield from _check_entries(containers[suffix](path), path)
        return
    readers = {".jsonl": _read_jsonl, ".json": _read_jsonl, ".scp": _read_scp, ".tsv": _read_tsv}
    if suffix not in readers:
        raise ValueError(
            f"{path}: a manifest is a folder, .jsonl, .json, .scp, .tsv, .parquet, .arrow or .tar "
            "file"
        )
    try:
        with path.open("rb") as raw:
            data = gzip.GzipFile(fileobj=raw) if is_compressed else raw
            text = io.TextIOWrapper(data, encoding="utf-8-sig", newline="")
            yield from readers[suffix](path, text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text: {error.reason}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: is no whole gzip file: {error}") from error


def _read_folder(folder: Path) -> Iterator[tuple[str, Utterance]]:
    saved = list_saved_dataset(folder)
    sounds = [] if saved is not None else find_audio_files(folder)
    if saved is None and not sounds:
        saved = sorted(folder.rglob("*.parquet")) or sorted(folder.rglob("*.tar"))
    for path in saved or []:
        yield from _read_entries(path)
    for audio in sounds:
        name = audio.relative_to(folder).as_posix()
        yield str(audio), _to_utterance({"audio": name}, folder, str(audio))


def _read_scp(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Utterance]]:
    yield from _check_entries(read_kaldi(path, lines), path)


def _check_entries(
    entries: Iterable[tuple[str, dict[str, Any]]], path: Path
) -> Iterator[tuple[str, Utterance]]:
    for place, entry in entries:
        yield place, _to_utterance(entry, path.parent, place)


def _read_jsonl(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Utterance]]:
    ignored: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not one JSON object a line: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{place}: expected a JSON object, got {type(entry).__name__}")
        if "recording" in entry or str(entry.get("type", "")).endswith("Cut"):
            known = _read_cut(entry, place)
        else:
            known = _known_keys(entry, ignored)
        yield place, _to_utterance(known, path.parent, place)
    _log_ignored(path, ignored)


def _read_cut(cut: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        return read_lhotse_cut(cut, place)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: is not a Lhotse cut: {error!r}") from error


def _read_tsv(path: Path, file: TextIO) -> Iterator[tuple[str, Utterance]]:
    reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    ignored: set[str] = set()
    for entry in reader:
        place = f"{path}:{reader.line_num}"
        if None in entry or None in entry.values():
            raise ValueError(f"{place}: has another number of columns than the header line")
        filled = {key: value for key, value in entry.items() if value}
        yield place, _to_utterance(_known_keys(filled, ignored), path.parent, place)
    _log_ignored(path, ignored)


def _known_keys(entry: dict[str, Any], ignored: set[str]) -> dict[str, Any]:
    """The entry under our names, without keys we do not know; those are added to `ignored`."""
    known: dict[str, Any] = {}
    for key, value in entry.items():
        name = _ALIASES.get(key, key)
        if name in Utterance.model_fields or name in ("duration_s", "offset"):
            known[name] = value
        else:
            ignored.add(key)
    return known


def _log_ignored(path: Path, ignored: set[str]) -> None:
    if ignored:
        logger.info("%s: ignored keys: %s", path, ", ".join(sorted(ignored)))


def _to_utterance(entry: dict[str, Any], folder: Path, place: str) -> Utterance:
    """One checked utterance; `folder` is where relative sound paths start."""
    fields = dict(entry)
    audio = fields.get("audio")
    if not isinstance(audio, str) or not audio:
        raise ValueError(f"{place}: needs 'audio' (or 'audio_filepath'), the path of a sound file")
    fields["audio"] = folder / audio
    fields.setdefault("id", _id_from_path(audio))
    for key, name in (("duration_s", "num_samples"), ("offset", "start_samples")):
        seconds = fields.pop(key, None)
        if seconds is None or fields.get(name) is not None:
            continue
        try:
            fields[name] = seconds_to_samples(float(seconds))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: {key.removesuffix('_s')}: {error}") from error
    try:
        return Utterance.model_validate(fields)
    except ValidationError as error:
        reasons = "; ".join(f"{part['loc'][0]}: {part['msg']}" for part in error.errors())
        raise ValueError(f"{place}: {reasons}") from error


def _id_from_path(audio: str) -> str:
    """`a/b.1.wav` -> `a/b.1`; a leading `/` and `..` folders are dropped."""
    path = PurePosixPath(audio)
    parts = [*path.parts[:-1], path.stem]
    return "/".join(part for part in parts if part not in ("/", ".."))
