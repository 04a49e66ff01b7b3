"""What can be evaluated: a system takes speech and gives it back.

How one is asked for is in parsing.py; the kinds themselves are in neural.py (codecs that run in
torch) and baselines.py (programs and folders).
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dmcodec.audio import Waveform
from dmcodec.config import Record

Kind = Literal[
    "dmcodec", "published", "transformers", "opus", "codec2", "ffmpeg", "folder", "command"
]
ORIGINAL = "original"
"""Name of the row that every table has: the original against itself."""


class SystemSpec(Record):
    """One `--system`: what is evaluated under which name.

    `first_book` and `last_book` count from 1; None for all books. `kbps` is the user's word for
    the bitrate of a folder or command. `delay_samples` at 16 kHz, constant and known, are cut from
    the start of what the system gives; None leaves it to the kind (0 but for Codec2).
    `search_width` is of our codecs, see `Codec.encode`.
    """

    name: str
    kind: Kind
    argument: str
    first_book: int | None = Field(None, ge=1)
    last_book: int | None = Field(None, ge=1)
    kbps: float | None = Field(None, gt=0)
    delay_samples: int | None = Field(None, ge=0)
    search_width: int = Field(1, ge=1)


class SystemFacts(Record):
    """What a table says of a system besides its scores; None where unknown.

    `identity` changes with whatever may change the sound: weights, books, program version.
    Of codecs with codebooks, `first_codebook` counts from 1.
    `family` is shared by the rows of one codec at several bitrates. `delay_samples` are cut from
    the start of the system's waveform, at 16 kHz.
    """

    identity: str
    family: str
    description: str
    nominal_kbps: float | None = None
    sample_rate: int | None = None
    frame_rate: float | None = None
    num_codebooks: int | None = None
    first_codebook: int = 1
    codebook_size: int | None = None
    num_parameters: int | None = None
    delay_samples: int = 0


@dataclass(frozen=True)
class SystemOutput:
    """One clip that went through a system.

    waveform: [T'] at `sample_rate`, of whatever length the system gives.
    num_bits: what carries the clip, without headers and containers; None when unknown.
    codes: [K, L]; None for systems without codebooks.
    encode_s, decode_s: wall time; None when the two are not apart.
    """

    waveform: Waveform
    sample_rate: int
    num_bits: int | None = None
    codes: NDArray[np.int64] | None = None
    encode_s: float | None = None
    decode_s: float | None = None


class System(Protocol):
    """A codec, a program or a folder of finished sound files."""

    facts: SystemFacts

    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Sends one waveform [T] through; ValueError, OSError or RuntimeError when that fails."""
        ...


@runtime_checkable
class CodedSystem(System, Protocol):
    """A system with codebooks."""

    def code_vectors(self, waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
        """What its decoder gets for the codes of a waveform [T]: vectors [L, D]."""
        ...
