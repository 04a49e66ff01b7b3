"""Ogg pages: where each chained stream of a file begins, and whether all of them are whole.

Reference: RFC 3533, sec. 6 (pages) and sec. 4 (chaining: streams one after another).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from dmcodec.sound import AudioError
from dmcodec.sound.parts import Part

MAGIC = b"OggS"
_FIRST, _LAST = 2, 4  # flags of a stream's first and last page
_HEADER = struct.Struct("<4sBBqIIIB")
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Page(NamedTuple):
    start: int
    flags: int
    serial: int
    number: int


def find_parts(file: BinaryIO, size: int, name: str) -> list[Part]:
    """The streams of an Ogg file that follow one another; streams side by side are one part.

    Raises AudioError for a page that is damaged or missing, and for a stream without its last page:
    the end of the sound is gone then.
    """
    starts: list[int] = []
    open_streams: dict[int, int] = {}  # serial number -> number of the next page
    was_first = False
    for page in _pages(file, size, name):
        is_first = bool(page.flags & _FIRST)
        if is_first and not was_first:
            _check_ended(open_streams, name)
            starts.append(page.start)
        if not is_first and open_streams.get(page.serial) != page.number:
            raise AudioError(f"{name}: damaged: a page is missing before byte {page.start}")
        open_streams[page.serial] = page.number + 1
        if page.flags & _LAST:
            del open_streams[page.serial]
        was_first = is_first
    _check_ended(open_streams, name)
    ends = [*starts[1:], size]
    return [Part(start, end) for start, end in zip(starts, ends, strict=True)]


def _check_ended(open_streams: dict[int, int], name: str) -> None:
    if open_streams:
        raise AudioError(
            f"{name}: cut short: an Ogg stream in it has no last page; if it is whole all the "
            "same, convert it once with ffmpeg"
        )


def _pages(file: BinaryIO, size: int, name: str) -> Iterator[_Page]:
    """All pages, checked; what is no page is allowed behind the last one only (tags)."""
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(_HEADER.size)
        if header[:4] != MAGIC:
            if MAGIC in header + file.read():
                raise AudioError(f"{name}: damaged at byte {position}: no Ogg page begins there")
            return
        if len(header) < _HEADER.size:
            raise AudioError(f"{name}: cut short in an Ogg page at byte {position}")
        _, _, flags, _, serial, number, checksum, num_segments = _HEADER.unpack(header)
        table = file.read(num_segments)
        body = file.read(sum(table))
        if len(table) < num_segments or len(body) < sum(table):
            raise AudioError(f"{name}: cut short in an Ogg page at byte {position}")
        if _crc(header[:22] + bytes(4) + header[26:] + table + body) != checksum:
            raise AudioError(f"{name}: damaged in the Ogg page at byte {position}")
        yield _Page(position, flags, serial, number)
        position = file.tell()


def _crc(data: bytes) -> int:
    """CRC-32 of a page: zlib's polynomial with the bits the other way round, from 0."""
    mirrored = ~zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) & 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
