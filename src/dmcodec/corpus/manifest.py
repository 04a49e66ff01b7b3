"""Lists of utterances: folders, text lists of many kinds, tables and tars.

Which formats there are is known to kinds.py. Manifests are read here, sound is not:
whether a file exists and is sound shows when it is read.
"""

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from dmcodec.audio import seconds_to_samples
from dmcodec.config import Record
from dmcodec.corpus.kinds import read_entries
from dmcodec.corpus.lines import Columns, Entry

logger = logging.getLogger(__name__)


class Utterance(Record):
    """One recording and what its manifest says about it.

    `id` is unique in its list and safe as a relative file name. `num_samples` is the manifest's
    word for the length at 16 kHz (durations in seconds are converted, so it may be off by their
    rounding); None when it says nothing. An empty text, speaker or corpus means unknown: None.
    `dmcodec.corpus.sources.read_utterance` gives the waveform.

    Attributes:
        start_samples: where a segment begins in its sound file, at 16 kHz; it lasts `num_samples`,
            or to the end. None: the utterance is the whole file.
        entry: where the sound file lies when `audio` is a container: the row of a Parquet or Arrow
            table, the byte offset in a tar or a Kaldi archive. None: `audio` is the sound file.
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

    @field_validator("id", "speaker", "corpus", "text", "licence", "source")
    @classmethod
    def _check_text(cls, value: str | None) -> str | None:
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds half a character, {value!r:.60}: it is no text") from error
        return value or None

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str) -> str:
        parts = value.split("/")
        has_control = not value.isprintable() and any(
            unicodedata.category(char) == "Cc" for char in value
        )
        if "" in parts or "." in parts or ".." in parts or has_control:
            raise ValueError(
                f"an id names output files, so it may not be absolute, hold '.' or '..' as a "
                f"folder, or control characters; got {value!r}"
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

    def to_line(self) -> dict[str, Any]:
        """What a line of a manifest says of it, the sound file by its absolute path."""
        said = self.model_dump(mode="json", exclude_none=True)
        return {**said, "audio": str(self.audio.absolute())}


def read_manifest(path: Path | str) -> list[Utterance]:
    """The utterances of a folder or file, in its order; `read_manifests` of one."""
    return read_manifests([Path(path)])


def read_manifests(
    paths: Sequence[Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> list[Utterance]:
    """The utterances of folders and lists, in order, with ids that are unique over all of them.

    * A folder: its `metadata.jsonl`, `metadata.csv` or `wav.scp` when there is one, Lhotse's Shar;
      else every sound file below it, sorted; without any, its Parquet files or tars; or a data set
      that Hugging Face `datasets` saved.
    * JSONL (`.jsonl`, `.json`): one object a line with our keys (the fields of `Utterance`,
      `duration_s`, and `offset`, where a segment begins, in seconds) or names that published
      corpora have for them (`lines.COLUMNS`). Lines may be Lhotse cuts or recordings, or
      of NeMo's tarred sets.
    * CSV and TSV with a header line and the same names, fairseq's TSV, LJSpeech's `|` lists.
    * Kaldi `wav.scp`, with `segments`, `text` and `utt2spk` from the same folder.
    * Parquet or Arrow files with sound files, their paths or samples in a column; WebDataset tars.

    Text lists may be compressed (`.gz`, `.bz2`, `.xz`), tars too. Relative sound paths start at the
    list's folder. An utterance without an id gets its sound path less the last suffix, and its
    samples if it is a segment; where that would not be unique, the suffix and folders before it.
    Columns that are not used are named in one warning.

    Args:
        paths: of folders and lists.
        columns: our keys -> names of columns, before the names that are known.
        on_problem: called with one sentence for every line, list or folder that cannot be used, and
            reading goes on; None: the first one raises.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: another suffix, no utterances, a malformed line or an id used twice; the
            message names the file and the line.
    """
    found: list[tuple[str, _Named]] = []
    used = Columns(columns)
    for path in map(Path, paths):
        num_before = len(found)
        folder = path if path.is_dir() else path.parent
        inside = tuple(_printable(part) for part in reversed(folder.absolute().parts[1:]))
        try:
            for place, entry in read_entries(path, used):
                try:
                    if isinstance(entry, ValueError):
                        raise entry
                    found.append((place, _to_utterance(entry, folder, inside, place)))
                except ValueError as error:
                    _report(error, on_problem)
            if len(found) == num_before:
                raise ValueError(f"{path}: holds no utterances")
        except (ValueError, OSError) as error:
            _report(error, on_problem)
    if found and used.missing is not None:
        raise ValueError(f"{', '.join(map(str, paths))}: {used.missing}")
    if used.ignored:
        logger.warning("not used: %s (--column text=NAME reads one)", ", ".join(used.ignored))
    return _with_unique_ids(found, on_problem)


def _report(error: Exception, on_problem: Callable[[str], None] | None) -> None:
    """Hands a problem on, or raises it when nobody listens."""
    if on_problem is None:
        raise error
    on_problem(str(error))


class _Named(NamedTuple):
    """An utterance, and the names that may become its id, the shortest first; () when it has one.

    `inside` are folders, the nearest first, that go before the last name while it is not unique.
    """

    utterance: Utterance
    names: tuple[str, ...]
    inside: tuple[str, ...]

    def id_at(self, level: int) -> str | None:
        """The id of a level of detail; None when there is no further one."""
        if not self.names:
            return None
        if level < len(self.names):
            return self.names[level]
        depth = level - len(self.names) + 1
        if depth > len(self.inside):
            return None
        return "/".join([*reversed(self.inside[:depth]), self.names[-1]])


def _with_unique_ids(
    found: Sequence[tuple[str, _Named]], on_problem: Callable[[str], None] | None
) -> list[Utterance]:
    """Ids made from names are made longer until each is unique; ids that were given stay."""
    ids = [named.utterance.id for _, named in found]
    levels = [0] * len(found)
    while True:
        counts = Counter(ids)
        has_changed = False
        for index, (_, named) in enumerate(found):
            longer = named.id_at(levels[index] + 1) if counts[ids[index]] > 1 else None
            if named.names and longer is not None:
                ids[index], levels[index], has_changed = longer, levels[index] + 1, True
        if not has_changed:
            break
    utterances: list[Utterance] = []
    places: dict[str, str] = {}
    for identifier, (place, named) in zip(ids, found, strict=True):
        if identifier in places:
            sentence = (
                f"{place}: the id {identifier!r} is already used by {places[identifier]}; ids must "
                "be unique"
            )
            _report(ValueError(sentence), on_problem)
            continue
        places[identifier] = place
        is_same = identifier == named.utterance.id
        utterances.append(
            named.utterance if is_same else named.utterance.model_copy(update={"id": identifier})
        )
    return utterances


def _to_utterance(entry: Entry, folder: Path, inside: tuple[str, ...], place: str) -> _Named:
    """One checked utterance; `folder` is where relative sound paths start, as parts in `inside`."""
    fields = dict(entry)
    audio, name = fields.get("audio"), fields.pop("name", None)
    if not isinstance(audio, str) or not audio:
        raise ValueError(
            f"{place}: needs 'audio' (or 'audio_filepath'), the path of a sound file; another "
            "column that has it: --column audio=NAME"
        )
    try:
        if b"\0" in os.fsencode(audio):
            raise ValueError("a name holds no NUL")
    except ValueError as error:
        raise ValueError(f"{place}: {audio!r:.60} cannot be the name of a file") from error
    fields["audio"] = folder / audio
    for key, exact in (("duration_s", "num_samples"), ("offset", "start_samples")):
        seconds = fields.pop(key, None)
        if seconds is None or fields.get(exact) is not None:
            continue
        try:
            fields[exact] = seconds_to_samples(float(seconds))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{place}: {key.removesuffix('_s')}: {error}") from error
    names: tuple[str, ...] = ()
    if fields.get("id") is None:
        names = _names(name or audio, fields)
        fields["id"] = names[0]
    try:
        return _Named(Utterance.model_validate(fields), names, inside)
    except ValidationError as error:
        reasons = "; ".join(f"{part['loc'][0]}: {part['msg']}" for part in error.errors())
        raise ValueError(f"{place}: {reasons}") from error


def _names(audio: str, fields: Entry) -> tuple[str, str]:
    """`a/b.1.wav` -> `a/b.1` and `a/b.1.wav`, each with the samples of a segment.

    A leading `/` and `..` folders are dropped.
    """
    path = PurePosixPath(audio)
    start, length = fields.get("start_samples"), fields.get("num_samples")
    segment = ""
    if isinstance(start, int):
        segment = f"_{start}-{start + length if isinstance(length, int) else 'end'}"
    stem, *whole = (
        _printable("/".join(part for part in (*path.parts[:-1], last) if part not in ("/", "..")))
        for last in (path.stem, path.name)
    )
    return f"{stem}{segment}", f"{whole[0]}{segment}"


def _printable(name: str) -> str:
    """Bytes of a file name that are not UTF-8, and control characters, as %XX."""
    if name.isprintable():
        return name
    name = re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)
    return "".join(
        f"%{ord(char):02X}" if unicodedata.category(char) == "Cc" else char for char in name
    )
