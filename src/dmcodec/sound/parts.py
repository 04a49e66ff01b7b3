"""A part of a file as a file of its own, for readers that know only whole files."""

import io
from typing import BinaryIO, NamedTuple

_CLAIM = 100  # times the size: more than the highest bitrate is of the lowest
_TAG_BYTES = 128


class Part(NamedTuple):
    """Bytes [start, end) of a file that make a sound file of their own behind `prefix`.

    num_samples: per channel, where they were counted; a decoder must find as many.
    """

    start: int
    end: int
    prefix: bytes = b""
    num_samples: int | None = None


class PartFile(io.RawIOBase):
    """A part of an open file, to be read and sought in; closes the file with itself.

    A part whose samples were counted says that it is many times longer: a decoder that guesses the
    number of samples from the size would else stop too early. It finds no tag at the end claimed.
    """

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self._file, self._part, self._position = file, part, 0
        self._size = len(part.prefix) + part.end - part.start
        self._claimed_size = self._size
        if part.num_samples is not None:
            self._claimed_size = _CLAIM * self._size + _TAG_BYTES

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in the part."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._claimed_size}[
            whence
        ]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """As of any file; fewer bytes only at the end."""
        if self._position >= max(self._size, self._claimed_size - _TAG_BYTES):
            length = max(0, min(len(buffer), self._claimed_size - self._position))
            buffer[:length] = bytes(length)
            self._position += length
            return length
        wanted = max(0, min(len(buffer), self._size - self._position))
        prefix = self._part.prefix[self._position : self._position + wanted]
        rest = b""
        if len(prefix) < wanted:
            inside = self._position + len(prefix) - len(self._part.prefix)
            self._file.seek(self._part.start + inside)
            rest = self._file.read(wanted - len(prefix))
        data = prefix + rest
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Closes the file too."""
        self._file.close()
        super().close()
