"""Text lists of utterances as entries with our keys: JSONL, CSV, TSV, fairseq, LJSpeech, Kaldi.

Entries are dictionaries as a line of our JSONL has them; manifest.py checks them. Each comes with
its place for error messages; a line that is wrong comes as a ValueError instead. Lhotse's lists are
in lhotse.py.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from os.path import exists
from pathlib import Path

from dmcodec.audio import AUDIO_SUFFIXES, seconds_to_samples
from dmcodec.corpus.containers import find_member
from dmcodec.corpus.lhotse import is_lhotse, read_lhotse_line
from dmcodec.corpus.lines import Columns, Entry, open_list, parse_object, split_rows

Entries = Iterator[tuple[str, Entry | ValueError]]

_DELIMITERS = ("\t", ",", "|", ";")
# Where Common Voice and LJSpeech keep what their lists name without a folder.
_CLIP_FOLDERS = ("clips", "wavs")


def read_jsonl(path: Path, columns: Columns) -> Entries:
    """A JSON object a line, with our keys or NeMo's; lines may be Lhotse cuts or recordings."""
    with open_list(path) as lines:
        for number, line in lines:
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = parse_object(line, place)
                if is_lhotse(row):
                    yield place, read_lhotse_line(row, path, place)
                    continue
                entry = columns.choose(row)
                if "shard_id" in row:
                    columns.use("shard_id")
                    entry |= _find_in_nemo_tar(path, entry, row["shard_id"], place)
                yield place, entry
            except ValueError as error:
                yield place, error


def read_table_of_lines(path: Path, columns: Columns) -> Entries:
    """CSV or TSV, with a header or without: fairseq's TSV and LJSpeech's `|` lists have none."""
    with open_list(path) as lines:
        first = next(lines, None)
        if first is None:
            return
        number, line = first
        delimiter, header = _find_header(line, columns)
        lines = chain([first], lines)
        if header is not None:
            yield from _read_with_header(path, lines, delimiter, columns)
        elif line and not any(mark in line for mark in _DELIMITERS) and Path(line).suffix == "":
            next(lines)
            yield from _read_fairseq(path, Path(line), lines)
        elif "|" in line:
            yield from _read_ljspeech(path, lines)
        else:
            raise ValueError(
                f"{path}:{number}: no header line names a column of sound files (audio, path, "
                "file_name, ...); name it: --column audio=COLUMN"
            )


def has_audio_column(path: Path) -> bool:
    """Whether a list inside a folder is one of its sounds: `metadata.csv` may be anything."""
    columns = Columns()
    with open_list(path) as lines:
        _, line = next(lines, (0, ""))
    if path.suffix.lower() == ".jsonl":
        try:
            return any(columns.is_audio(key) for key in parse_object(line, str(path)))
        except ValueError:
            return False
    return _find_header(line, columns)[1] is not None or line.count("|") in (1, 2)


def _find_header(line: str, columns: Columns) -> tuple[str, list[str] | None]:
    """The delimiter and the names of a header line with a column of sound files, or None."""
    for delimiter in _DELIMITERS:
        names = [name.strip().strip('"') for name in line.split(delimiter)]
        if any(columns.is_audio(name) for name in names):
            return delimiter, names
    return "", None


def _read_with_header(
    path: Path, lines: Iterator[tuple[int, str]], delimiter: str, columns: Columns
) -> Entries:
    rows = split_rows(lines, delimiter, str(path))
    names = [name.strip() for name in next(rows)[1]]
    place_of = _ClipFolders(path.parent)
    for number, cells in rows:
        place = f"{path}:{number}"
        if len(cells) != len(names):
            yield (
                place,
                ValueError(
                    f"{place}: has another number of columns than the header line, {len(cells)} "
                    f"instead of {len(names)}"
                ),
            )
            continue
        entry = columns.choose(dict(zip(names, cells, strict=True)))
        if "audio" in entry:
            entry = place_of(entry)
        yield place, entry


def _read_fairseq(path: Path, root: Path, lines: Iterator[tuple[int, str]]) -> Entries:
    """A first line with the folder, then 'path samples'; texts from a `.wrd` of the same name.

    The numbers of samples are left out: they are at each file's rate, which the list does not say.
    """
    rows = [(number, line) for number, line in lines if line]
    texts = _read_fairseq_texts(path.with_suffix(".wrd"), len(rows))
    for row, (number, line) in enumerate(rows):
        name, _, length = line.partition("\t")
        place = f"{path}:{number}"
        if not length.strip().isdigit():
            yield place, ValueError(f"{place}: expected 'path<tab>samples', got {line[:100]!r}")
            continue
        text = {"text": texts[row]} if texts else {}
        yield place, {"audio": str(root / name), "name": name, **text}


def _read_fairseq_texts(path: Path, num_sounds: int) -> list[str]:
    """A line for each sound; none when there is no such file."""
    if not path.is_file():
        return []
    with open_list(path) as lines:
        texts = [line for _, line in lines]
    while texts and not texts[-1]:
        texts.pop()
    if texts and len(texts) != num_sounds:
        raise ValueError(
            f"{path}: has {len(texts)} lines for {num_sounds} sounds: texts would be of others"
        )
    return texts


def _read_ljspeech(path: Path, lines: Iterator[tuple[int, str]]) -> Entries:
    """'id|text|normalized text', 'path|text' or 'path|speaker|text' (VITS), without a header."""
    place_of = _ClipFolders(path.parent)
    for number, line in lines:
        if not line.strip():
            continue
        place, cells = f"{path}:{number}", line.split("|")
        if not 2 <= len(cells) <= 3:
            yield (
                place,
                ValueError(f"{place}: expected 2 or 3 cells between '|', got {line!r:.100}"),
            )
            continue
        name, *rest = (cell.strip() for cell in cells)
        if name.lower().endswith(AUDIO_SUFFIXES):
            entry = {"audio": name, "text": rest[-1]}
            if len(rest) == 2:
                entry["speaker"] = rest[0]
        else:
            entry = {"id": name, "audio": f"{name}.wav", "text": rest[-1] or rest[0]}
        yield place, place_of(entry)


class _ClipFolders:
    """Finds sound files that a list names without the folder beside it that they are in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inside = [name for name in _CLIP_FOLDERS if (folder / name).is_dir()]

    def __call__(self, entry: Entry) -> Entry:
        """The entry, with the folder; its id stays as if it had none."""
        audio = entry["audio"]
        # Of a name that no file can have, os.path says that there is none, where Path raises.
        if not self._inside or not isinstance(audio, str) or exists(self._folder / audio):
            return entry
        for name in self._inside:
            if exists(self._folder / name / audio):
                return {"name": audio, **entry, "audio": f"{name}/{audio}"}
        return entry


def _find_in_nemo_tar(path: Path, entry: Entry, shard: object, place: str) -> Entry:
    """NeMo's tarred sets: the sound is in `audio_SHARD.tar` beside the list."""
    name = entry.get("audio")
    if not isinstance(name, str) or not str(shard).isdigit():
        raise ValueError(
            f"{place}: a line with a shard_id needs it as a number, and a sound's name"
        )
    tar = path.parent / f"audio_{shard}.tar"
    offset = find_member(tar, name)
    if offset is None:
        raise ValueError(f"{place}: {tar} does not hold {name!r}")
    return {"audio": tar.name, "entry": offset, "name": name}


def read_kaldi(path: Path, columns: Columns) -> Entries:
    """A `wav.scp` with `segments`, `text` and `utt2spk` from the same folder when they are there.

    With segments, these are the utterances; recordings without any are left out. 'FILE.ark:OFFSET'
    is a WAV file in an archive, as wav-copy writes them.
    """
    texts = _read_kaldi_table(path.parent / "text")
    speakers = _read_kaldi_table(path.parent / "utt2spk")
    for key in ("id", "audio", "text", "speaker"):
        columns.use(key)
    problems: list[tuple[str, ValueError]] = []
    recordings = _read_recordings(path, problems)
    segments = path.parent / "segments"
    found = _cut_segments(segments, recordings, problems) if segments.is_file() else recordings
    yield from problems
    for identifier, (place, entry) in found.items():
        about = {"text": texts.get(identifier), "speaker": speakers.get(identifier)}
        yield place, {"id": identifier, **entry, **about}


Problems = list[tuple[str, ValueError]]


def _read_recordings(path: Path, problems: Problems) -> dict[str, tuple[str, Entry]]:
    recordings: dict[str, tuple[str, Entry]] = {}

    def read(line: str, place: str) -> None:
        identifier, audio = _split_kaldi_line(line)
        if not audio:
            raise ValueError(f"{place}: expected 'id path', got {line.strip()!r}")
        if audio.endswith("|") or audio.startswith("|"):
            raise ValueError(f"{place}: {identifier!r} is a command pipe; write it to a file first")
        if identifier in recordings:
            raise ValueError(f"{place}: the id {identifier!r} is already used")
        archive, _, offset = audio.rpartition(":")
        entry: Entry = {"audio": audio}
        if archive.lower().endswith(".ark") and offset.isdigit():
            entry = {"audio": archive, "entry": int(offset)}
        recordings[identifier] = (place, entry)

    _for_each_line(path, read, problems)
    return recordings


def _cut_segments(
    path: Path, recordings: dict[str, tuple[str, Entry]], problems: Problems
) -> dict[str, tuple[str, Entry]]:
    """The lines 'id recording start_s end_s'; an end of -1 is that of the recording."""
    segments: dict[str, tuple[str, Entry]] = {}

    def read(line: str, place: str) -> None:
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

    _for_each_line(path, read, problems)
    return segments


def _for_each_line(path: Path, read: Callable[[str, str], None], problems: Problems) -> None:
    """Calls `read(line, place)` for every line that is not blank; what it raises is kept."""
    with open_list(path) as lines:
        for number, line in lines:
            if line.strip():
                place = f"{path}:{number}"
                try:
                    read(line, place)
                except ValueError as error:
                    problems.append((place, error))


def _read_kaldi_table(path: Path) -> dict[str, str]:
    """Lines 'id value...' as a dictionary; empty when the file is not there."""
    if not path.is_file():
        return {}
    with open_list(path) as lines:
        return dict(_split_kaldi_line(line) for _, line in lines if line.strip())


def _split_kaldi_line(line: str) -> tuple[str, str]:
    """The id and the rest of the line, which may be empty."""
    identifier, *rest = line.split(maxsplit=1)
    return identifier, rest[0].strip() if rest else ""
