"""MPEG audio frames: how many there are, whatever a header promises or a decoder guesses.

An MP3 file has no length of its own. A Xing or Info frame may state one; without it libraries guess
from the size of the file. Here every frame is counted, and files that were joined are told apart.
Reference: ISO/IEC 11172-3, sec. 2.4.1.3 (header), and 13818-3 for the lower rates.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from dmcodec.sound import AudioError
from dmcodec.sound.parts import Part

_RATES_HZ = (44_100, 48_000, 32_000)
# kbit/s by (is MPEG 1, layer), from index 1.
_LAYER_3_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_BITRATES_KBPS = {
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): _LAYER_3_LOW,
    (False, 3): _LAYER_3_LOW,
}
_MAX_JUNK = 1 << 16  # bytes before the first frame
_HEAD_BYTES = 64  # a header and all that may precede a tag behind it
_NUM_FRAMES_FLAG = 1


class _Frame(NamedTuple):
    """A header. `kind` is what all frames of a stream have in common: version, layer, rate."""

    header: int
    kind: int
    size: int
    num_samples: int
    tag_offset: int


class _Stream(NamedTuple):
    """Frames that follow one another, and what their Xing or Info frame promises (or None)."""

    start: int
    end: int
    first: _Frame
    num_frames: int
    info_start: int
    promised: int | None


def find_parts(file: BinaryIO, start: int, end: int, name: str) -> list[Part]:
    """Every MPEG stream between two bytes as a part, with its length where no true tag states it.

    Empty when there are no MPEG frames.

    Raises AudioError where the last frame, or frames that were promised, are not there, and for
    what is neither frame nor tag between frames.
    """
    parts = []
    for stream in _streams(file, start, end, name):
        if stream.promised is not None and stream.num_frames < stream.promised:
            raise AudioError(
                f"{name}: cut short: its header promises {stream.promised} MPEG frames, "
                f"{stream.num_frames} are there"
            )
        if stream.promised == stream.num_frames:
            parts.append(Part(stream.info_start, stream.end))
        else:  # without the wrong tag
            num_samples = stream.num_frames * stream.first.num_samples
            parts.append(Part(stream.start, stream.end, num_samples=num_samples))
    return parts


def _streams(file: BinaryIO, start: int, end: int, name: str) -> Iterator[_Stream]:
    """Runs of frames of one kind without gaps; a Xing, Info or VBRI frame begins a new one."""
    stream: _Stream | None = None
    for position, frame, tag in _frames(file, start, end, name):
        after = position + frame.size
        if (
            stream is None
            or tag is not None
            or position != stream.end
            or stream.num_frames == stream.promised
            or frame.kind != stream.first.kind
        ):
            if stream is not None and stream.num_frames:
                yield stream
            first = position if tag is None else after
            promised = None if tag is None else _promise(tag)
            stream = _Stream(first, first, frame, 0, position, promised)
        if tag is None:
            stream = stream._replace(end=after, num_frames=stream.num_frames + 1)
    if stream is not None and stream.num_frames:
        yield stream


def _frames(
    file: BinaryIO, start: int, end: int, name: str
) -> Iterator[tuple[int, _Frame, bytes | None]]:
    """Where each frame begins, its header, and its bytes from the tag on when it is no sound."""
    position, kind = start, None
    while position < end:
        file.seek(position)
        head = file.read(min(_HEAD_BYTES, end - position))
        frame = _parse(head)
        if frame is None or (frame.kind != kind and not _is_followed(file, position, frame, end)):
            found = _skip_tag(head, position) or _find_frame(file, position, end, kind is None)
            if found is None:  # nothing but padding and tags is left
                return
            if kind is not None and not _skip_tag(head, position):
                raise AudioError(
                    f"{name}: damaged at byte {position}: neither an MPEG frame nor a tag"
                )
            position = found
            continue
        if position + frame.size > end:
            raise AudioError(f"{name}: cut short in its last MPEG frame, at byte {position}")
        kind = frame.kind
        yield position, frame, _find_tag(head, frame)
        position += frame.size


def _parse(head: bytes) -> _Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    (header,) = struct.unpack(">I", head[:4])
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bitrate, rate = header >> 12 & 15, header >> 10 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    rate_hz = _RATES_HZ[rate] >> (0 if is_first else 1 if version == 2 else 2)
    bits = 1000 * _BITRATES_KBPS[is_first, layer][bitrate - 1]
    padding = header >> 9 & 1
    if layer == 1:
        num_samples, size = 384, 4 * (12 * bits // rate_hz + padding)
    else:
        num_samples = 576 if layer == 3 and not is_first else 1152
        size = num_samples // 8 * bits // rate_hz + padding
    is_mono, has_checksum = header >> 6 & 3 == 3, not header >> 16 & 1
    side_bytes = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    side_start = 6 if has_checksum else 4
    return _Frame(header, header & 0xFFFE0C00, size, num_samples, side_start + side_bytes)


def _is_followed(file: BinaryIO, position: int, frame: _Frame, end: int) -> bool:
    """Whether a second frame of the kind, or the end, comes where the header says."""
    file.seek(position + frame.size)
    following = file.read(4)
    second = _parse(following)
    return position + frame.size == end or (second is not None and second.kind == frame.kind)


def _skip_tag(head: bytes, position: int) -> int | None:
    """Where a tag that begins here ends; None when none begins."""
    if head[:3] == b"ID3" and len(head) >= 10:
        size = sum(
            (byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
        )
        return position + 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:3] == b"TAG":
        return position + 128
    if head[:8] == b"APETAGEX" and len(head) >= 16:
        (size,) = struct.unpack("<I", head[12:16])
        is_header = len(head) >= 24 and bool(head[23] & 0x20)
        return position + 32 + (size if is_header else 0)
    return None


def _find_frame(file: BinaryIO, position: int, end: int, is_first: bool) -> int | None:
    """The next place where two frames follow one another; None when there is none."""
    limit = min(end, position + _MAX_JUNK) if is_first else end
    while position < limit:
        file.seek(position)
        block = file.read(min(_MAX_JUNK, limit - position) + 3)
        offset = block.find(b"\xff", 1 if position else 0)
        while 0 <= offset < len(block) - 3:
            frame = _parse(block[offset : offset + 4])
            if frame is not None and _is_followed(file, position + offset, frame, end):
                return position + offset
            offset = block.find(b"\xff", offset + 1)
        position += max(1, len(block) - 3)
    return None


def _find_tag(head: bytes, frame: _Frame) -> bytes | None:
    """The bytes from the Xing, Info or VBRI mark on, for a frame that holds such a tag."""
    if frame.kind >> 17 & 3 != 1:  # of layer 3 alone
        return None
    tag = head[frame.tag_offset :]
    if tag[:4] in (b"Xing", b"Info"):
        return tag
    return head[36:] if head[36:40] == b"VBRI" else None


def _promise(tag: bytes) -> int | None:
    """The number of frames that a Xing or Info tag states; VBRI tags are left unread."""
    if tag[:4] == b"VBRI" or len(tag) < 12:
        return None
    flags, num_frames = struct.unpack(">II", tag[4:12])
    return int(num_frames) if flags & _NUM_FRAMES_FLAG and num_frames else None
