"""What can be evaluated: `NAME=KIND:ARG[@BOOKS]` to a system that takes speech and gives it back.

The kinds themselves are in neural.py (codecs that run in torch) and baselines.py (programs and
folders).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

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

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_BOOKS = re.compile(r"([1-9]\d*)(?::([1-9]\d*))?")
_KINDS_WITH_BOOKS = ("dmcodec", "published", "transformers")
_KINDS_OF_OURS = ("dmcodec", "published")


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
class Reconstruction:
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

    def reconstruct(
        self, waveform: Waveform, sample_rate: int, utterance_id: str
    ) -> Reconstruction:
        """Sends one waveform [T] through; ValueError, OSError or RuntimeError when that fails."""
        ...


@runtime_checkable
class CodedSystem(System, Protocol):
    """A system with codebooks."""

    def code_vectors(self, waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
        """What its decoder gets for the codes of a waveform [T]: vectors [L, D]."""
        ...


def parse_system(text: str) -> SystemSpec:
    """Reads `NAME=KIND:ARG[@FIRST[:LAST]]`; books count from 1 and only codecs have them."""
    name, has_name, rest = text.partition("=")
    kind, has_kind, argument = rest.partition(":")
    if not has_name or not has_kind or not argument:
        raise ValueError(
            f"--system {text!r}: write NAME=KIND:ARG, for example ours=dmcodec:bundled@1:4 or "
            "opus8=opus:8"
        )
    if not _NAME.fullmatch(name) or name == ORIGINAL:
        raise ValueError(
            f"--system {text!r}: a name is letters, digits and . _ + -, and not {ORIGINAL!r}"
        )
    if kind not in get_args(Kind):
        raise ValueError(f"--system {text!r}: kind {kind!r} is none of {', '.join(get_args(Kind))}")
    fields: dict[str, object] = {"name": name, "kind": kind, "argument": argument}
    if kind in _KINDS_WITH_BOOKS and "@" in argument:
        argument, _, books = argument.rpartition("@")
        match = _BOOKS.fullmatch(books)
        if not match or not argument or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(
                f"--system {text!r}: books {books!r} are not N or FIRST:LAST, counted from 1"
            )
        fields |= {
            "argument": argument,
            "first_book": int(match[1]),
            "last_book": int(match[2] or match[1]),
        }
    return SystemSpec.model_validate(fields)


def parse_systems(
    texts: Sequence[str],
    kbps: Mapping[str, float],
    delays: Mapping[str, int],
    search_width: int = 1,
    search_widths: Mapping[str, int] | None = None,
) -> list[SystemSpec]:
    """All systems of one evaluation, names unique, with what is given of them by name.

    `search_width` is of all codecs of ours that `search_widths` does not name.
    """
    specs = [parse_system(text) for text in texts]
    names = [spec.name for spec in specs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"several systems are named {repeated[0]!r}; names must differ")
    widths = search_widths or {}
    unknown = sorted((kbps.keys() | delays.keys() | widths.keys()) - set(names))
    if unknown:
        raise ValueError(
            f"a bitrate, delay or search width is given for {unknown[0]!r}, which is no system"
        )
    others = sorted(s.name for s in specs if s.name in widths and s.kind not in _KINDS_OF_OURS)
    if others:
        raise ValueError(f"a search width is given for {others[0]!r}, which is no codec of ours")
    return [
        SystemSpec.model_validate(
            spec.model_dump()
            | {
                "kbps": kbps.get(spec.name),
                "delay_samples": delays.get(spec.name),
                "search_width": widths.get(spec.name, search_width)
                if spec.kind in _KINDS_OF_OURS
                else 1,
            }
        )
        for spec in specs
    ]


def open_system(spec: SystemSpec, device: str = "cpu") -> System:
    """The system of a specification, loaded and ready.

    Raises FileNotFoundError, ValueError or MissingPackage with what to do when a file, program or
    package is not there or not whole.
    """
    match spec.kind:
        case "dmcodec" | "published" | "transformers":
            from dmcodec.evaluation.neural import open_codec

            return open_codec(spec, device)
        case _:
            from dmcodec.evaluation.baselines import open_baseline

            return open_baseline(spec)
