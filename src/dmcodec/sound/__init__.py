"""Sound files as streams of samples: what their bytes promise, and that they keep it.

files.py opens them, layout.py finds the sound files that a file consists of (ogg.py, mpeg.py), and
media.py reads what needs FFmpeg. audio.py makes waveforms of them; nothing else looks in here.
"""

from dataclasses import dataclass


class AudioError(ValueError):
    """A sound file is damaged, empty, or no sound file; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class SoundBytes:
    """A whole sound file in memory; errors call it by `name`."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name
