"""The `.dmc` file: the codes of one recording, bit-packed in chunks with a checksum each.

Bytes in, bytes out; docs/formats.md describes every byte. No file is opened here, no model is
known, and numpy with the standard library is enough to read codes anywhere.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x89DMC"
VERSION = 1
STREAM_VERSION = 2  # packets.py
MAX_MODEL_ID_LENGTH = 22  # header + framing of a short last chunk stay under 64 bytes
MAX_HEADER_BYTES = 57

Bytes = bytes | bytearray | memoryview

# The fewest frames whose codes fill this many bytes make a chunk: 50 frames, one second, of
# 8 x 1024 codes. Framing is then 6 / 500 = 1.2 % (1.4 % with padding bits).
MIN_CHUNK_PAYLOAD_BYTES = 500

# Reading around damage allocates the whole of what the header claims, so at least a quarter of
# the file must be there: memory stays in proportion to the bytes at hand.
MAX_CLAIMED_TO_PRESENT_BYTES = 4

# magic, version, num_codebooks, codebook_size - 1, sample_rate, hop_length, num_samples,
# checksum of all codes, model_hash, length of model_id
_FIXED_HEADER = struct.Struct("<4sBBHIHII8sB")
_CHECKSUM = struct.Struct("<I")
_CHUNK_FRAMING = struct.Struct("<HI")  # frames, checksum
_CHUNK_PLACE = struct.Struct("<IH")  # chunk number, frames: in the checksum, not in the file


class BitstreamError(ValueError):
    """A `.dmc` file is damaged, cut, not a `.dmc` file, or of an unknown version.

    Attributes:
        damaged_chunks: Numbers of the damaged chunks, from 0; empty when the fault is elsewhere.
    """

    def __init__(self, message: str, damaged_chunks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.damaged_chunks = damaged_chunks


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a `.dmc` file says about its codes; a `Header` that exists is valid.

    Attributes:
        sample_rate: Samples per second of the waveform, Hz.
        hop_length: Samples per frame, at most 65,535.
        num_codebooks: K, 1 to 255.
        codebook_size: V, 2 to 65,536; need not be a power of two.
        num_samples: Samples of the waveform, 1 to 2**32 - 1 (74 hours at 16 kHz).
        model_id: Name of the model for people, 1 to 22 printable ASCII characters.
        model_hash: Identity of the model's weights, 16 lower-case hexadecimal digits.

    Raises:
        ValueError: A value is of the wrong type or out of the range given above.
    """

    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int
    num_samples: int
    model_id: str
    model_hash: str

    def __post_init__(self) -> None:
        _check_int("sample_rate", self.sample_rate, 1, 2**32 - 1)
        _check_int("hop_length", self.hop_length, 1, 2**16 - 1)
        _check_int("num_codebooks", self.num_codebooks, 1, 2**8 - 1)
        _check_int("codebook_size", self.codebook_size, 2, 2**16)
        _check_int("num_samples", self.num_samples, 1, 2**32 - 1)
        if not _is_text(f"[ -~]{{1,{MAX_MODEL_ID_LENGTH}}}", self.model_id):
            raise ValueError(
                f"model_id must be 1 to {MAX_MODEL_ID_LENGTH} printable ASCII characters, "
                f"got {self.model_id!r}; shorten it: model_hash identifies the model"
            )
        if not _is_text("[0-9a-f]{16}", self.model_hash):
            raise ValueError(f"model_hash must be 16 digits 0-9 a-f, got {self.model_hash!r}")

    @property
    def num_frames(self) -> int:
        """L, the frames that cover all samples: ceil(num_samples / hop_length)."""
        return count_frames(self.num_samples, self.hop_length)

    @property
    def bits_per_code(self) -> int:
        """Bits of one packed code: ceil(log2(codebook_size))."""
        return (self.codebook_size - 1).bit_length()

    @property
    def bitrate_kbps(self) -> float:
        """Kilobits per second of the packed codes alone, without header and framing."""
        bits_per_frame = self.num_codebooks * self.bits_per_code
        return bits_per_frame * self.sample_rate / self.hop_length / 1000

    @property
    def chunk_frames(self) -> int:
        """Frames in every chunk but the last, which holds what is left."""
        return _divide_up(8 * MIN_CHUNK_PAYLOAD_BYTES, self.num_codebooks * self.bits_per_code)

    @property
    def num_chunks(self) -> int:
        """Chunks in the file."""
        return _divide_up(self.num_frames, self.chunk_frames)

    @property
    def header_bytes(self) -> int:
        """Size of the header with its checksum, at most 57 bytes."""
        return _FIXED_HEADER.size + len(self.model_id) + _CHECKSUM.size

    @property
    def file_bytes(self) -> int:
        """Size of the whole file; a file of any other size is damaged."""
        num_full_chunks, rest_frames = divmod(self.num_frames, self.chunk_frames)
        full_bytes = num_full_chunks * self.chunk_bytes(self.chunk_frames)
        rest_bytes = self.chunk_bytes(rest_frames) if rest_frames else 0
        return self.header_bytes + full_bytes + rest_bytes

    def check_model(self, model_id: str, model_hash: str) -> None:
        """Raises ValueError when the codes are another model's, which would decode to noise."""
        if model_hash != self.model_hash:
            raise ValueError(
                f"its codes are of model {self.model_id!r} ({self.model_hash}), not of"
                f" {model_id!r} ({model_hash}): name the right one with --model"
            )

    def check_layout(self, sample_rate: int, hop_length: int, codebook_size: int) -> None:
        """Raises ValueError when a codec of this layout cannot decode the codes."""
        own = (self.sample_rate, self.hop_length, self.codebook_size)
        if own != (sample_rate, hop_length, codebook_size):
            raise ValueError("its sample rate, hop length or book size is not that of the codec")

    def chunk_bytes(self, num_frames: int) -> int:
        """Size of a chunk of `num_frames` frames with its framing."""
        num_bits = num_frames * self.num_codebooks * self.bits_per_code
        return _CHUNK_FRAMING.size + _divide_up(num_bits, 8)

    def chunk_spans(self) -> Iterator[tuple[int, int]]:
        """Gives (first frame, frame after the last) of every chunk in order."""
        for start in range(0, self.num_frames, self.chunk_frames):
            yield start, min(start + self.chunk_frames, self.num_frames)


class Maker(Protocol):
    """Whatever makes codes: what a header says of it. `model_id` may be any name, see below."""

    @property
    def sample_rate(self) -> int: ...  # noqa: D102
    @property
    def hop_length(self) -> int: ...  # noqa: D102
    @property
    def codebook_size(self) -> int: ...  # noqa: D102
    @property
    def model_id(self) -> str: ...  # noqa: D102
    @property
    def model_hash(self) -> str: ...  # noqa: D102


def make_header(maker: Maker, num_samples: int, num_codebooks: int) -> Header:
    """The header of codes that somebody makes of `num_samples` samples.

    Of the model's name stays what fits: its last part, printable ASCII, the first 22 characters.
    """
    name = "".join(c for c in maker.model_id.rpartition("/")[2] if " " <= c <= "~")
    return Header(
        sample_rate=maker.sample_rate,
        hop_length=maker.hop_length,
        num_codebooks=num_codebooks,
        codebook_size=maker.codebook_size,
        num_samples=num_samples,
        model_id=name[:MAX_MODEL_ID_LENGTH] or "untitled",
        model_hash=maker.model_hash,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeFile:
    """What `loads` gives back.

    Attributes:
        header: What the file says about its codes.
        codes: int64 `[K, L]`; 0 in lost frames.
        is_frame_valid: bool `[L]`; False where a frame was in a damaged chunk and is lost.
        damaged_chunks: Numbers of the damaged chunks, from 0; empty for a whole file.
    """

    header: Header
    codes: NDArray[np.int64]
    is_frame_valid: NDArray[np.bool_]
    damaged_chunks: tuple[int, ...]


def dumps(codes: NDArray[np.integer[Any]], header: Header) -> bytes:
    """Gives the `.dmc` file of one recording; equal input gives equal bytes.

    Args:
        codes: Any integer type, `[K, L]`, values 0 to V - 1, with K, V and
            L = ceil(num_samples / hop_length) as `header` says.
        header: Describes the codes.

    Raises:
        ValueError: `codes` has another type, shape or range than `header` says.
    """
    _check_codes(codes, header)
    header_body = _pack_header_body(header, _checksum_codes(codes))
    header_checksum = zlib.crc32(header_body)
    parts = [header_body, _CHECKSUM.pack(header_checksum)]
    for number, (start, stop) in enumerate(header.chunk_spans()):
        payload = pack_bits(codes[:, start:stop].T.ravel(), header.bits_per_code)
        checksum = _checksum_chunk(header_checksum, number, stop - start, payload)
        parts += [_CHUNK_FRAMING.pack(stop - start, checksum), payload]
    return b"".join(parts)


def loads(data: Bytes, *, on_damage: Literal["raise", "skip"] = "raise") -> CodeFile:
    """Reads a `.dmc` file; takes memory in proportion to `data`, whatever its header claims.

    Args:
        data: The whole file, as bytes, bytearray or memoryview.
        on_damage: "raise" accepts nothing but a whole file. "skip" reads around damaged or
            missing chunks; it still needs a good header, a quarter of the file and one good
            chunk, and refuses bytes after the last chunk (another file may begin there).

    Raises:
        BitstreamError: The file cannot be read; says which chunks are damaged.
    """
    if on_damage not in ("raise", "skip"):
        raise ValueError(f"on_damage must be 'raise' or 'skip', got {on_damage!r}")
    data = _as_bytes(data)
    header, codes_checksum, header_checksum = _parse_header(data)
    _check_file_bytes(header, len(data), on_damage)

    codes = np.zeros((header.num_codebooks, header.num_frames), np.int64)  # [K, L]
    is_frame_valid = np.zeros(header.num_frames, np.bool_)  # [L]
    reasons: dict[int, str] = {}
    position = header.header_bytes
    for number, (start, stop) in enumerate(header.chunk_spans()):
        chunk = data[position : position + header.chunk_bytes(stop - start)]
        position += header.chunk_bytes(stop - start)
        try:
            chunk_codes = _parse_chunk(chunk, header, header_checksum, number, stop - start)
        except BitstreamError as error:
            reasons[number] = str(error)
            continue
        codes[:, start:stop] = chunk_codes
        is_frame_valid[start:stop] = True
    if reasons and (on_damage == "raise" or len(reasons) == header.num_chunks):
        raise BitstreamError(_describe_damage(reasons, header), tuple(reasons))
    if not reasons and _checksum_codes(codes) != codes_checksum:
        raise BitstreamError("every chunk is sound, but the checksum of all codes does not match")
    return CodeFile(
        header=header, codes=codes, is_frame_valid=is_frame_valid, damaged_chunks=tuple(reasons)
    )


def silence_lost_frames(
    blocks: Iterable[NDArray[np.float32]], file: CodeFile
) -> Iterator[NDArray[np.float32]]:
    """What was decoded from a file, in blocks [T_i], with zeros where its codes were lost."""
    start = 0
    for block in blocks:
        frames = np.arange(start, start + len(block)) // file.header.hop_length
        yield np.where(file.is_frame_valid[frames], block, np.float32(0))
        start += len(block)


def read_header(data: Bytes) -> Header:
    """Reads the header alone.

    Args:
        data: The file or any beginning of it; `MAX_HEADER_BYTES` bytes are always enough.

    Raises:
        BitstreamError: The header is damaged, cut, unknown or impossible. The chunks are not
            looked at; compare the file's size with `Header.file_bytes` to find a cut file.
    """
    return _parse_header(_as_bytes(data))[0]


def _as_bytes(data: Bytes) -> bytes:
    """The bytes of anything that holds bytes; ValueError for what does not."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(
            f"give the content of a .dmc file as bytes, not {type(data).__name__}: of a path, "
            "Path(path).read_bytes()"
        )
    return bytes(data)


def pack_bits(values: NDArray[np.integer[Any]], bits_per_value: int) -> bytes:
    """Packs whole numbers into bits, most significant bit first, zero bits at the end.

    Args:
        values: `[N]`, each 0 to 2**bits_per_value - 1; not checked.
        bits_per_value: 1 to 16; not checked.
    """
    pairs_of_bytes = values.astype(">u2").view(np.uint8).reshape(-1, 2)  # [N, 2]
    bits = np.unpackbits(pairs_of_bytes, axis=1)[:, 16 - bits_per_value :]  # [N, bits]
    return np.packbits(bits).tobytes()


def unpack_bits(data: bytes, num_values: int, bits_per_value: int) -> NDArray[np.uint16]:
    """Gives back the `[N]` numbers of `pack_bits`; bits after the last number are not looked at.

    Args:
        data: At least ceil(num_values * bits_per_value / 8) bytes; not checked.
        num_values: N.
        bits_per_value: 1 to 16; not checked.
    """
    packed = np.unpackbits(np.frombuffer(data, np.uint8), count=num_values * bits_per_value)
    bits = np.zeros((num_values, 16), np.uint8)  # [N, 16]
    bits[:, 16 - bits_per_value :] = packed.reshape(num_values, bits_per_value)
    return np.packbits(bits).view(">u2").astype(np.uint16)


def _pack_header_body(header: Header, codes_checksum: int) -> bytes:
    fixed = _FIXED_HEADER.pack(
        MAGIC,
        VERSION,
        header.num_codebooks,
        header.codebook_size - 1,
        header.sample_rate,
        header.hop_length,
        header.num_samples,
        codes_checksum,
        bytes.fromhex(header.model_hash),
        len(header.model_id),
    )
    return fixed + header.model_id.encode("ascii")


def _parse_header(data: bytes) -> tuple[Header, int, int]:
    """Gives the header, the checksum of all codes and the header's own checksum."""
    if data[: len(MAGIC)] != MAGIC:
        raise BitstreamError(f"not a .dmc file: it begins with {data[: len(MAGIC)].hex(' ')!r}")
    if len(data) > len(MAGIC) and data[len(MAGIC)] == STREAM_VERSION:
        raise BitstreamError("this is a stream, not a file: dmcodec stream decode reads it")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise BitstreamError(
            f"version {data[len(MAGIC)]} of the .dmc format is unknown here, only {VERSION} is "
            "read; the file is damaged or needs a newer dmcodec"
        )
    if len(data) < _FIXED_HEADER.size:
        raise BitstreamError(f"the file ends inside its header, after {len(data)} bytes")
    fields = _FIXED_HEADER.unpack_from(data)
    _, _, num_codebooks, last_code, sample_rate, hop_length, num_samples = fields[:7]
    codes_checksum, model_hash, model_id_length = fields[7:]
    body_bytes = _FIXED_HEADER.size + model_id_length
    if len(data) < body_bytes + _CHECKSUM.size:
        raise BitstreamError(f"the file ends inside its header, after {len(data)} bytes")
    (checksum,) = _CHECKSUM.unpack_from(data, body_bytes)
    if checksum != zlib.crc32(data[:body_bytes]):
        raise BitstreamError("the header is damaged (checksum mismatch); nothing can be read")
    try:
        header = Header(
            sample_rate=sample_rate,
            hop_length=hop_length,
            num_codebooks=num_codebooks,
            codebook_size=last_code + 1,
            num_samples=num_samples,
            model_id=data[_FIXED_HEADER.size : body_bytes].decode("ascii"),
            model_hash=model_hash.hex(),
        )
    except ValueError as error:
        raise BitstreamError(f"the header holds an impossible value: {error}") from error
    return header, codes_checksum, checksum


def _parse_chunk(
    chunk: bytes, header: Header, header_checksum: int, number: int, num_frames: int
) -> NDArray[np.uint16]:
    """Gives the codes `[K, num_frames]` of one chunk, or a `BitstreamError` with the reason."""
    if len(chunk) < header.chunk_bytes(num_frames):
        raise BitstreamError("the file ends before or inside it")
    stored_frames, stored_checksum = _CHUNK_FRAMING.unpack_from(chunk)
    payload = chunk[_CHUNK_FRAMING.size :]
    if stored_frames != num_frames:
        raise BitstreamError(f"it claims {stored_frames} frames instead of {num_frames}")
    if stored_checksum != _checksum_chunk(header_checksum, number, num_frames, payload):
        raise BitstreamError("checksum mismatch")
    # From here on only a faulty or hostile writer can be the cause.
    num_codes = num_frames * header.num_codebooks
    num_padding_bits = 8 * len(payload) - num_codes * header.bits_per_code
    if payload[-1] & ((1 << num_padding_bits) - 1):
        raise BitstreamError("bits after its last code are not zero")
    codes = unpack_bits(payload, num_codes, header.bits_per_code)
    if codes.max() >= header.codebook_size:
        raise BitstreamError(f"code {codes.max()} in a codebook of {header.codebook_size}")
    return codes.reshape(num_frames, header.num_codebooks).T  # [K, num_frames]


def _checksum_chunk(header_checksum: int, number: int, num_frames: int, payload: bytes) -> int:
    """Ties a chunk to its file and place: one moved or taken from another file does not match."""
    place_checksum = zlib.crc32(_CHUNK_PLACE.pack(number, num_frames), header_checksum)
    return zlib.crc32(payload, place_checksum)


def _checksum_codes(codes: NDArray[np.integer[Any]]) -> int:
    """CRC-32 of all codes `[K, L]` as 16-bit little-endian numbers, frame after frame."""
    return zlib.crc32(codes.T.astype("<u2").tobytes())


def _check_codes(codes: NDArray[np.integer[Any]], header: Header) -> None:
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes must be integers, got {codes.dtype}")
    if codes.shape != (header.num_codebooks, header.num_frames):
        raise ValueError(
            f"codes must be [K, L] = [{header.num_codebooks}, {header.num_frames}] for "
            f"{header.num_codebooks} codebooks and {header.num_samples} samples at hop "
            f"{header.hop_length}, got {list(codes.shape)}"
        )
    if codes.min() < 0 or codes.max() >= header.codebook_size:
        raise ValueError(
            f"codes must be 0 to {header.codebook_size - 1}, got {codes.min()} to {codes.max()}"
        )


def _check_file_bytes(header: Header, present_bytes: int, on_damage: str) -> None:
    """Compares the size with what the header claims, before anything is allocated."""
    claimed_bytes = header.file_bytes
    if present_bytes > claimed_bytes:
        raise BitstreamError(
            f"{present_bytes - claimed_bytes} bytes follow the last chunk: the file has "
            f"{present_bytes} bytes, its header claims {claimed_bytes}"
        )
    is_enough_to_skip = present_bytes * MAX_CLAIMED_TO_PRESENT_BYTES >= claimed_bytes
    if present_bytes < claimed_bytes and not (on_damage == "skip" and is_enough_to_skip):
        full_chunk_bytes = header.chunk_bytes(header.chunk_frames)
        first_missing = (present_bytes - header.header_bytes) // full_chunk_bytes
        raise BitstreamError(
            f"the file is cut: it has {present_bytes} of {claimed_bytes} bytes; chunk "
            f"{first_missing} of {header.num_chunks} (counted from 0) is the first incomplete one"
        )


def _describe_damage(reasons: dict[int, str], header: Header) -> str:
    parts = [f"chunk {number}: {reason}" for number, reason in islice(reasons.items(), 8)]
    if len(reasons) > 8:
        parts.append(f"and {len(reasons) - 8} more")
    if len(reasons) < header.num_chunks:
        parts.append("on_damage='skip' reads the rest")
    counts = f"{len(reasons)} of {header.num_chunks} chunks damaged (counted from 0)"
    return f"{counts}: {'; '.join(parts)}"


def _check_int(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be an int from {least} to {most}, got {value!r}")


def _is_text(pattern: str, value: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def count_frames(num_samples: int, hop_length: int) -> int:
    """L, the frames that cover all samples of a recording; the last may reach beyond its end."""
    return _divide_up(num_samples, hop_length)


def _divide_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
