"""The files of visitors: a folder for each visit, emptied with each new recording, gone at the end.

Names of folders cannot be guessed from one another, and nothing that a visitor sends names a path.
"""

import secrets
import shutil
import time
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from dmcodec.audio import Waveform, write_audio
from dmcodec.storage import write_whole

VISIT_S = 3600.0
"""What belongs to visitors who said no farewell goes after this time."""


@dataclass(frozen=True)
class Visits:
    """Folders below `root`, which holds files of visitors alone: what they upload lies there too.

    Whoever runs the page removes it at the end.
    """

    root: Path
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    def folder(self, session: str, room: str) -> Path:
        """The folder of one visit for one purpose; it may not be there yet."""
        return self._visit(session) / room

    def clear(self, session: str, room: str) -> None:
        """Removes what a visit has for one purpose."""
        shutil.rmtree(self.folder(session, room), ignore_errors=True)

    def end(self, session: str) -> None:
        """Removes all that a visit has."""
        shutil.rmtree(self._visit(session), ignore_errors=True)

    def sweep(self, age_s: float = VISIT_S) -> None:
        """Removes what nobody has changed for `age_s` seconds."""
        for path in self.root.iterdir():
            if time.time() - path.stat().st_mtime > age_s:
                shutil.rmtree(path, ignore_errors=True)

    def _visit(self, session: str) -> Path:
        name = blake2b(session.encode(), key=self._secret, digest_size=16).hexdigest()
        return self.root / name


def write_sound(folder: Path, name: str, waveform: Waveform, sample_rate: int) -> Path:
    """A 16-bit WAV file for players and downloads; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.wav"
    write_audio(path, waveform, sample_rate)
    return path


def write_codes(folder: Path, name: str, data: bytes) -> Path:
    """A `.dmc` file for downloads; gives its path."""
    path = folder / f"{name}.dmc"
    write_whole(path, data)
    return path
