"""The `.dmc` format's version 2: codes of a stream whose end is not known, packet by packet.

Bytes in, bytes out; docs/formats.md describes every byte. Recordings are version 1, bitstream.py.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dmcodec.tokens.bitstream import (
    MAGIC,
    STREAM_VERSION,
    BitstreamError,
    Header,
    pack_bits,
    unpack_bits,
)

# magic, version, num_codebooks, codebook_size - 1, sample_rate, hop_length, model_hash, length of
# model_id
_FIXED_HEADER = struct.Struct("<4sBBHIH8sB")
_CHECKSUM = struct.Struct("<I")
_PACKET = struct.Struct("<HHI")  # frames, missing samples, checksum
_PLACE = struct.Struct("<QHH")  # packet number, frames, missing samples: in the checksum


@dataclass(frozen=True)
class Packet:
    """Codes [K, m] of consecutive frames, and how many samples of their sound there are."""

    codes: NDArray[np.uint16]
    num_samples: int


class PacketWriter:
    """Makes the bytes of a stream: the header, then a packet at a time, then the end."""

    def __init__(self, header: Header) -> None:
        """Takes a header as of a recording; its `num_samples` does not matter."""
        self.header = header
        body = _FIXED_HEADER.pack(
            MAGIC,
            STREAM_VERSION,
            header.num_codebooks,
            header.codebook_size - 1,
            header.sample_rate,
            header.hop_length,
            bytes.fromhex(header.model_hash),
            len(header.model_id),
        ) + header.model_id.encode("ascii")
        self._checksum, self._number = zlib.crc32(body), 0
        self.start = body + _CHECKSUM.pack(self._checksum)

    def packet(self, codes: NDArray[np.integer[Any]], *, missing_samples: int = 0) -> bytes:
        """The packet of codes [K, m], m from 1 to 65,535.

        Args:
            codes: values 0 to V - 1.
            missing_samples: of the last frame, in a stream's last packet: 0 to hop_length - 1.
        """
        header = self.header
        if codes.ndim != 2 or len(codes) != header.num_codebooks:
            raise ValueError(f"codes must be [{header.num_codebooks}, m], got {list(codes.shape)}")
        if not 1 <= codes.shape[1] < 2**16 or not 0 <= missing_samples < header.hop_length:
            raise ValueError("a packet has 1 to 65535 frames and less than a frame missing")
        if codes.min() < 0 or codes.max() >= header.codebook_size:
            raise ValueError(f"codes must be 0 to {header.codebook_size - 1}")
        payload = pack_bits(codes.T.ravel(), header.bits_per_code)
        return self._frame(codes.shape[1], missing_samples, payload)

    def end(self) -> bytes:
        """What ends the stream: a packet without frames. A stream without it was cut."""
        return self._frame(0, 0, b"")

    def _frame(self, num_frames: int, missing: int, payload: bytes) -> bytes:
        checksum = _packet_checksum(self._checksum, self._number, num_frames, missing, payload)
        self._number += 1
        return _PACKET.pack(num_frames, missing, checksum) + payload


class PacketReader:
    """Reads a stream as it comes; `header.num_samples` is 1 and means nothing."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads the header; BitstreamError when it is damaged or no stream's."""
        fixed = _read(file, _FIXED_HEADER.size, "its header")
        magic, version, books, last_code, rate, hop, model_hash, size = _FIXED_HEADER.unpack(fixed)
        if magic != MAGIC:
            raise BitstreamError(f"not a .dmc stream: it begins with {magic.hex(' ')!r}")
        if version != STREAM_VERSION:
            raise BitstreamError(
                f"version {version} of the .dmc format is no stream; dmcodec decode reads files"
            )
        body = fixed + _read(file, size, "its header")
        (checksum,) = _CHECKSUM.unpack(_read(file, _CHECKSUM.size, "its header"))
        if checksum != zlib.crc32(body):
            raise BitstreamError("the header is damaged (checksum mismatch); nothing can be read")
        try:
            self.header = Header(
                sample_rate=rate,
                hop_length=hop,
                num_codebooks=books,
                codebook_size=last_code + 1,
                num_samples=1,
                model_id=body[_FIXED_HEADER.size :].decode("ascii"),
                model_hash=model_hash.hex(),
            )
        except ValueError as error:
            raise BitstreamError(f"the header holds an impossible value: {error}") from error
        self._file, self._checksum, self._number = file, checksum, 0

    def read(self) -> Packet | None:
        """The next packet, None at the end; BitstreamError for a damaged or cut stream."""
        header, where = self.header, f"packet {self._number}"
        num_frames, missing, checksum = _PACKET.unpack(_read(self._file, _PACKET.size, where))
        num_codes = num_frames * header.num_codebooks
        payload = _read(self._file, -(-num_codes * header.bits_per_code // 8), where)
        if checksum != _packet_checksum(self._checksum, self._number, num_frames, missing, payload):
            raise BitstreamError(f"{where} is damaged (checksum mismatch)", (self._number,))
        self._number += 1
        if num_frames == 0:
            return None
        codes = unpack_bits(payload, num_codes, header.bits_per_code)
        padding = 8 * len(payload) - num_codes * header.bits_per_code
        if (
            missing >= header.hop_length
            or codes.max() >= header.codebook_size
            or payload[-1] & ((1 << padding) - 1)
        ):
            raise BitstreamError(f"{where} holds impossible values", (self._number - 1,))
        return Packet(codes.reshape(num_frames, -1).T, num_frames * header.hop_length - missing)


def _packet_checksum(
    header_checksum: int, number: int, num_frames: int, missing: int, payload: bytes
) -> int:
    """Ties a packet to its stream and place."""
    place = zlib.crc32(_PLACE.pack(number, num_frames, missing), header_checksum)
    return zlib.crc32(payload, place)


def _read(file: BinaryIO, size: int, where: str) -> bytes:
    """Exactly `size` bytes, waiting for them."""
    data = bytearray()
    while len(data) < size:
        part = file.read(size - len(data))
        if not part:
            raise BitstreamError(f"the stream ends before or inside {where}: it was cut")
        data += part
    return bytes(data)
