"""Which sound files a file consists of, and headers that do not know how long their sound is.

Files that were joined end to end are several sound files; libraries read the first one and say
nothing. Programs that write to a pipe cannot go back and state a size.
"""

import math
import re
import struct
from typing import BinaryIO

from dmcodec.sound import AudioError, mpeg, ogg
from dmcodec.sound.parts import Part

_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
# Sizes from here on are "unknown" where 32 bits hold them.
_UNKNOWN_32 = 0x7FFF0000
_MAX_CHUNKS = 1000
_WAV_START = re.compile(rb"RIFF.{4}WAVEfmt ", re.DOTALL)
_NIST_MAGIC = b"NIST_1A\n"
_NIST_HEADER_BYTES = 1024
_NIST_FIELD = re.compile(rb"^(\w+) -\w+ (\d+)\s*$", re.MULTILINE)
# Bytes 4 to 12 of an HTK waveform: a period of 1 to 1000 us in 100 ns, samples of 2 bytes.
_HTK = re.compile(rb".{4}\0\0[\0-\x27].\0\x02\0\0", re.DOTALL)
_HTK_HEADER_BYTES = 12
# How files of other kinds begin; too long to be met by chance in sound. Their end is not stated
# (PAF, PVF, IRCAM, XI: where such a file was cut cannot be known), or libraries do not look at it.
_STARTS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rb"2BIT.{8}(?:\0\0|\xff\xff)\0[\x08\x10]",  # AVR
        rb"Creative Voice File\x1a",  # VOC
        rb"Extended Instrument: ",  # XI
        rb"ALawSoundFile\*\*\0",  # WVE
        rb"MATLAB 5\.0 MAT-file",
        # MATLAB 4, of either order of bytes
        rb"\0\0[\0\x03][\0\xe8]\x01\0{3}\x01\0{3}\0{4}\x0b\0{3}samplerate\0",
        rb"\0\0[\0\x03][\0\xe8]\0{3}\x01\0{3}\x01\0{4}\0{3}\x0bsamplerate\0",
        rb"\x01\x04[ -~\0]{17}..[\0\x01]",  # MPC 2000
        rb"\xf0\x7e[\0-\x7f]\x01[\0-\x7f]{2}[\x08-\x1c]",  # SDS: sound has other high bits
        rb" paf\0{7}[\0\x01]|fap \0{4}[\0\x01]\0{3}",
        rb"PVF1\n\d{1,3} \d{1,7} \d{1,2}\n",
        # IRCAM: rate, channels and coding, of either order of bytes
        rb"(?:\x64\xa3[\x01\x03]\0|\0[\x02\x04]\xa3\x64).{4}[^\0]\0{3}[\1\2\4]\0[\0\1\2\4]\0",
        rb"(?:\x64\xa3[\x02\x04]\0|\0[\x01\x03]\xa3\x64).{4}\0{3}[^\0]\0[\0\1\2\4]\0[\1\2\4]",
    )
]
_MAX_START = 64  # bytes of the longest
_FLAC_STARTS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")


def find_parts(file: BinaryIO, size: int, name: str) -> list[Part]:
    """The sound files in an open file of `size` bytes, in order; at least one.

    Raises AudioError for Ogg and MPEG files that are damaged or cut, and for cut SPHERE, HTK and
    CAF files.
    """
    file.seek(0)
    head = file.read(16)
    if head[:4] == ogg.MAGIC:
        return ogg.find_parts(file, size, name)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return mpeg.find_parts(file, 0, size, name) or [Part(0, size)]
    parts, start = [], 0
    while start < size:
        end = _end_of_file(file, start, size)
        parts.append(_mend(file, start, end, name))
        start = end
    return parts


def find_data_chunk(file: BinaryIO, start: int, end: int) -> tuple[int, int] | None:
    """Where the data of a WAV file lie; None when it has no such chunk."""
    for name, position, length in _chunks(file, start + 12, end, "<"):
        if name == b"data":
            return position, min(end, position + length)
    return None


def has_second_flac(file: BinaryIO) -> bool:
    """Whether another FLAC stream begins somewhere behind the first."""
    file.seek(0)
    count, tail = 0, b""
    while block := file.read(1 << 20):
        window = tail + block
        count += sum(window.count(start) for start in _FLAC_STARTS)
        tail = window[1 - len(_FLAC_STARTS[0]) :]
    return count > 1


def _end_of_file(file: BinaryIO, start: int, size: int) -> int:
    """Where the sound file that begins at `start` ends because another one of its kind begins."""
    file.seek(start)
    head = file.read(_MAX_START)
    if head[:4] == b"RIFF" and _is_unknown_wav(file, start, size):
        return _find_next(file, start, size, _WAV_START)
    for pattern in _STARTS:
        if pattern.match(head):
            return _find_next(file, start, size, pattern)
    if head[:8] == _NIST_MAGIC:
        return min(size, start + _nist_size(file, start))
    if _HTK.match(head):
        end = start + _htk_size(head)
        file.seek(end)
        return end if _HTK.match(file.read(_HTK_HEADER_BYTES)) else size
    return _stated_end(file, start, size, head)


def _stated_end(file: BinaryIO, start: int, size: int, head: bytes) -> int:
    """As `_end_of_file`, of kinds whose headers state the size of the whole."""
    magic, stated = head[:4], 0
    if magic in (b"RIFF", b"RIFX", b"FORM") and len(head) >= 8:
        order = "<" if magic == b"RIFF" else ">"
        stated = 8 + struct.unpack(f"{order}I", head[4:8])[0]
        stated += stated % 2
    elif magic == b".snd" and len(head) >= 12:
        stated = sum(struct.unpack(">II", head[4:12]))
    elif head[:16] == _W64_RIFF and len(head) >= 24:
        (stated,) = struct.unpack("<Q", head[16:24])
        magic = _W64_RIFF
    elif magic == b"RF64":
        file.seek(start + 20)
        riff_size = file.read(8)
        stated = 8 + int.from_bytes(riff_size, "little")
        stated += stated % 2
    elif magic == b"caff":
        ends = [position + length for _, position, length in _long_chunks(file, start, size)]
        places = [end + padding for end in ends for padding in (0, 1)]
        stated = next((p - start for p in places if p < size and _begins(file, p, magic)), 0)
    if stated >= len(magic) and start + stated < size and _begins(file, start + stated, magic):
        return start + stated
    return size


def _begins(file: BinaryIO, position: int, magic: bytes) -> bool:
    file.seek(position)
    return file.read(len(magic)) == magic


def _mend(file: BinaryIO, start: int, end: int, name: str) -> Part:
    """The part of one sound file, with the size of its data in its header where it was unknown."""
    _check_size(file, start, end, name)
    file.seek(start)
    magic = file.read(4)
    if magic == b"RIFF":
        return _mend_wav(file, start, end)
    if magic == b"RF64":
        return _mend_rf64(file, start, end)
    if magic == b".snd":
        file.seek(start)
        header = file.read(24)
        if len(header) == 24:
            offset, length = struct.unpack(">II", header[4:12])
            is_beyond = length >= _UNKNOWN_32 and start + offset + length > end
            is_unknown = length == 0 or is_beyond
            if is_unknown and start + offset < end:
                mended = header[:8] + b"\xff\xff\xff\xff" + header[12:]
                return Part(start + 24, end, mended)
    if magic == b"caff":
        for kind, position, length in _long_chunks(file, start, end):
            if kind == b"data" and length == 2**64 - 1:
                return _with_size(file, start, end, position, struct.pack(">Q", end - position))
    return Part(start, end)


def _check_size(file: BinaryIO, start: int, end: int, name: str) -> None:
    """Raises AudioError for files cut short that libsndfile would take, or not know."""
    file.seek(start)
    head, promised = file.read(_HTK_HEADER_BYTES), 0
    if head[:8] == _NIST_MAGIC:
        promised = _nist_size(file, start)
    elif _HTK.match(head):
        promised = _htk_size(head)
    elif head[:4] == b"caff":
        data = [(p, n) for kind, p, n in _long_chunks(file, start, end) if kind == b"data"]
        promised = sum(data[0]) - start if data else 0
    if end - start < promised < 2**63:
        raise AudioError(
            f"{name}: cut short: its header promises {promised} bytes, {end - start} are there"
        )


def _nist_size(file: BinaryIO, start: int) -> int:
    """Bytes of a SPHERE file by its header; without bounds where that does not say them."""
    file.seek(start)
    header = file.read(_NIST_HEADER_BYTES)
    fields = dict(_NIST_FIELD.findall(header))
    sizes = [fields.get(name) for name in (b"sample_count", b"sample_n_bytes", b"channel_count")]
    lines = header.split(b"\n", 2)
    if None in sizes or len(lines) < 3 or not lines[1].strip().isdigit():
        return 2**63
    return int(lines[1]) + math.prod(int(size) for size in sizes if size is not None)


def _htk_size(head: bytes) -> int:
    """Bytes of an HTK waveform by its header."""
    return _HTK_HEADER_BYTES + 2 * int.from_bytes(head[:4], "big")


def _is_unknown_wav(file: BinaryIO, start: int, end: int) -> bool:
    """Whether neither the data chunk nor the whole of a WAV file states its size."""
    file.seek(start + 4)
    riff_end = start + 8 + int.from_bytes(file.read(4), "little")
    for name, position, length in _chunks(file, start + 12, end, "<"):
        if name == b"data":
            is_open = riff_end <= position or riff_end >= start + _UNKNOWN_32
            is_beyond = length >= _UNKNOWN_32 and position + length > end
            return is_open and (length == 0 or is_beyond) and position < end
    return False


def _find_next(file: BinaryIO, start: int, size: int, pattern: re.Pattern[bytes]) -> int:
    """Where another file of a kind begins behind one of unknown size; the end when none does."""
    position, tail = start + 12, b""
    file.seek(position)
    while block := file.read(1 << 20):
        window = tail + block
        found = pattern.search(window)
        if found:
            return position - len(tail) + found.start()
        position += len(block)
        tail = window[1 - _MAX_START :]
    return size


def _mend_wav(file: BinaryIO, start: int, end: int) -> Part:
    """A data chunk of unknown size goes to the end."""
    if not _is_unknown_wav(file, start, end):
        return Part(start, end)
    for name, position, _ in _chunks(file, start + 12, end, "<"):
        if name == b"data":
            size = struct.pack("<I", min(end - position, 2**32 - 1))
            return _with_size(file, start, end, position, size)
    return Part(start, end)


def _mend_rf64(file: BinaryIO, start: int, end: int) -> Part:
    """The ds64 chunk, which comes first, states the size of the data; 0 or all bits: unknown."""
    file.seek(start)
    header = file.read(36)  # RF64, size, WAVE, ds64, size, riff size, data size
    unknown = (bytes(8), b"\xff" * 8)
    if len(header) < 36 or header[12:16] != b"ds64" or header[28:36] not in unknown:
        return Part(start, end)
    for name, position, length in _chunks(file, start + 12, end, "<"):
        if name == b"data" and (length == 0 or length >= _UNKNOWN_32):
            sizes = struct.pack("<QQ", end - start - 8, end - position)
            file.seek(start + 36)
            between = file.read(position - start - 36 - 4)
            return Part(position, end, header[:20] + sizes + between + b"\xff" * 4)
    return Part(start, end)


def _with_size(file: BinaryIO, start: int, end: int, position: int, size: bytes) -> Part:
    """A part whose chunk that begins its data at `position` says that it has `size` bytes."""
    file.seek(start)
    return Part(position, end, file.read(position - start - len(size)) + size)


def _long_chunks(file: BinaryIO, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """Those of a CAF file."""
    return _chunks(file, start + 8, end, ">", has_long_sizes=True)


def _chunks(
    file: BinaryIO, position: int, end: int, order: str, *, has_long_sizes: bool = False
) -> list[tuple[bytes, int, int]]:
    """Chunks by name, start of their data and stated size; CAF has 64 bits and no padding."""
    chunks: list[tuple[bytes, int, int]] = []
    width, form = (12, f"{order}4sQ") if has_long_sizes else (8, f"{order}4sI")
    while position + width <= end and len(chunks) < _MAX_CHUNKS:
        file.seek(position)
        name, length = struct.unpack(form, file.read(width))
        chunks.append((name, position + width, length))
        position += width + length + (0 if has_long_sizes else length % 2)
    return chunks


def read_wav_bytes(file: BinaryIO) -> bytes:
    """The WAV file that begins where `file` stands, as long as it says; AudioError otherwise."""
    head = file.read(8)
    if head[:4] != b"RIFF" or len(head) < 8:
        raise AudioError("no WAV file begins")
    (size,) = struct.unpack("<I", head[4:])
    data = head + file.read(size)
    if len(data) != 8 + size:
        raise AudioError("cut short in the WAV file")
    return data
