"""The folder of one evaluation: where sounds, codes and results lie, and the cache of scores.

    sounds/SYSTEM/ID.flac  16 kHz, 16 bit, as long as the original; beside it ID.json and, of
                           codecs, ID.npy (codes [K, L])
    systems/SYSTEM.json    facts, first-packet time and peak memory of the last run
    cache/*.jsonl          one line for each group of measures of one pair, by content
    rows.jsonl             one line for each system and clip
    summary.json           all figures, with protocol, hash of the clips, versions, machine
    table.md, table.csv, report.html

Files appear whole (temporary name, then rename), results all together when the last is complete,
except the cache, which is appended to line by line; a line cut by a crash is skipped.
"""

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dmcodec.audio import Waveform, dump_pcm_16
from dmcodec.config import Record
from dmcodec.storage import open_whole, write_whole


class SoundRecord(Record):
    """What is known of one finished sound file.

    `key` says from what it was made, `sound_hash` names its content. `length_difference_samples`
    is how much longer the system's waveform was before it was cut or filled with zeros.
    """

    key: str
    sound_hash: str
    num_samples: int
    num_bits: int | None = None
    encode_s: float | None = None
    decode_s: float | None = None
    length_difference_samples: int = 0
    has_codes: bool = False
    is_silent: bool = False


Sounds = Mapping[tuple[str, str], SoundRecord]
"""(system, clip) to the record of each finished sound, the originals included."""


class CachedScores(Record):
    """Scores of one group of measures for one pair, or a transcript; by content key.

    `counts` are hits, substitutions, deletions and insertions where the score is an error rate.
    """

    key: str
    values: dict[str, float]
    missing: dict[str, str]
    text: str | None = None
    counts: tuple[int, int, int, int] | None = None


class Workspace:
    """Paths and files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sound_path(self, system: str, utterance_id: str) -> Path:
        """The FLAC file of one clip of one system."""
        return self._sounds(system) / f"{utterance_id}.flac"

    def read_sound_record(self, system: str, utterance_id: str) -> SoundRecord | None:
        """The record beside a sound file; None when either is missing or unreadable."""
        path = self._sounds(system) / f"{utterance_id}.json"
        if not path.is_file() or not self.sound_path(system, utterance_id).is_file():
            return None
        try:
            return SoundRecord.model_validate_json(path.read_bytes())
        except ValidationError:
            return None

    def write_sound_record(self, system: str, utterance_id: str, record: SoundRecord) -> None:
        """Writes the record: the mark that the sound (and its codes) are finished."""
        write_whole(self._sounds(system) / f"{utterance_id}.json", record.model_dump_json())

    def drop_sound_record(self, system: str, utterance_id: str) -> None:
        """Takes the mark away before the sound is made anew.

        Otherwise a job that is killed on the way leaves a new sound under an old record.
        """
        (self._sounds(system) / f"{utterance_id}.json").unlink(missing_ok=True)

    def read_codes(self, system: str, utterance_id: str) -> NDArray[np.int64]:
        """The codes [K, L] of one clip; ValueError for a damaged file."""
        path = self._sounds(system) / f"{utterance_id}.npy"
        try:
            # Mapped, so that no more is allocated than the file holds, whatever its header says.
            codes = np.load(path, mmap_mode="r", allow_pickle=False)
            if codes.ndim != 2 or codes.dtype.kind not in "iu" or codes.size == 0:
                raise ValueError(f"{codes.dtype} of shape {list(codes.shape)}")
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path}: damaged, no codes ({error}): delete {path.with_suffix('.json')} and give "
                "the same command again"
            ) from error
        return np.array(codes, dtype=np.int64)

    def write_codes(self, system: str, utterance_id: str, codes: NDArray[np.int64]) -> None:
        """Keeps the codes [K, L] of one clip."""
        path = self._sounds(system) / f"{utterance_id}.npy"
        with open_whole(path) as file:
            np.save(file, codes.astype(np.int32), allow_pickle=False)

    def system_path(self, system: str) -> Path:
        """The JSON file of what is known of a system as a whole."""
        return self.root / "systems" / f"{system}.json"

    def read_cache(self) -> dict[str, CachedScores]:
        """All scores computed so far, by key; of one key the last line counts."""
        found: dict[str, CachedScores] = {}
        for path in sorted((self.root / "cache").glob("*.jsonl")):
            # Lines as bytes: a crash may cut within a character, and transcripts may hold line
            # separators of other kinds.
            for line in path.read_bytes().split(b"\n"):
                try:
                    scores = CachedScores.model_validate_json(line)
                except ValidationError:
                    continue
                found[scores.key] = scores
        return found

    def append_to_cache(self, scores: CachedScores) -> None:
        """Adds one line to this process's own file."""
        path = self.root / "cache" / f"{os.getpid()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = f"{scores.model_dump_json()}\n".encode()
        # A link that somebody laid at a name that can be guessed is not followed.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, flags, 0o666), "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A process of this number, long ago, may have been killed within a line.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def _sounds(self, system: str) -> Path:
        return self.root / "sounds" / system


def write_json_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line."""
    write_whole(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries))


def hash_text(*parts: str) -> str:
    """16 hexadecimal digits for a list of texts."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def hash_waveform(waveform: Waveform) -> str:
    """16 hexadecimal digits for the samples [T] that a 16-bit file of the waveform holds."""
    return blake2b(dump_pcm_16(waveform), digest_size=8).hexdigest()


def hash_file(path: Path) -> str:
    """16 hexadecimal digits for a file's bytes."""
    return blake2b(path.read_bytes(), digest_size=8).hexdigest()
