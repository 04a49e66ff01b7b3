"""`NAME=KIND:ARG[@BOOKS]`, as systems are asked for, to their specifications."""

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from dmcodec.evaluation.systems.system import ORIGINAL, Kind, SystemSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_BOOKS = re.compile(r"([1-9]\d*)(?::([1-9]\d*))?")
_KINDS_WITH_BOOKS = ("dmcodec", "published", "transformers")
_KINDS_OF_OURS = ("dmcodec", "published")


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
