"""Sound files to `.dmc` files and back, whatever runs the codec's network; no torch here.

One file at a time; which files, and where results go, is paths.py's.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dmcodec.audio import SoundBytes, Waveform, audio_info, hold_pipe, read_parts
from dmcodec.tokens.bitstream import Maker, dumps, loads, make_header, silence_lost_frames


class Engine(Maker, Protocol):
    """A codec that runs: `codec.engine.TorchCodec` or `export.onnx_codec.OnnxCodec`."""

    def encode_parts(
        self,
        parts: Iterable[Waveform],
        *,
        num_codebooks: int | None = None,
        search_width: int = 1,
    ) -> tuple[NDArray[np.int64], int]:
        """Codes [K, L] of a waveform in consecutive parts [T_i], and its number of samples.

        Memory does not grow with the length. Raises ValueError for no samples, and for samples,
        books and widths that are none.
        """
        ...

    def decode_parts(self, codes: NDArray[Any], num_samples: int) -> Iterator[Waveform]:
        """The waveform of codes [K, L] in parts [T_i] that add up to `num_samples`.

        Memory does not grow with the length. K may be smaller than the codec's: the first books.
        """
        ...


def encode_file(
    engine: Engine,
    path: Path | SoundBytes,
    *,
    num_codebooks: int | None = None,
    search_width: int = 1,
) -> bytes:
    """The `.dmc` file of a sound file, read in parts: memory does not grow with its length.

    A pipe is read as a whole, at once.
    """
    sound = hold_pipe(path)
    total = audio_info(sound).num_samples_at(engine.sample_rate)
    parts = read_parts(sound, sample_rate=engine.sample_rate, num_samples=total)
    codes, num_samples = engine.encode_parts(
        parts, num_codebooks=num_codebooks, search_width=search_width
    )
    return dumps(codes, make_header(engine, num_samples, len(codes)))


def decode_bytes(
    engine: Engine,
    data: bytes,
    *,
    num_codebooks: int | None = None,
    any_model: bool = False,
    on_damage: Literal["raise", "skip"] = "raise",
) -> tuple[Waveform, tuple[int, ...]]:
    """The waveform [T] of a `.dmc` file and the numbers of its damaged chunks.

    Errors are those of `decode_blocks`.
    """
    blocks, damaged = decode_blocks(
        engine, data, num_codebooks=num_codebooks, any_model=any_model, on_damage=on_damage
    )
    return np.concatenate(list(blocks)), damaged


def decode_blocks(
    engine: Engine,
    data: bytes,
    *,
    num_codebooks: int | None = None,
    any_model: bool = False,
    on_damage: Literal["raise", "skip"] = "raise",
) -> tuple[Iterator[Waveform], tuple[int, ...]]:
    """The waveform of a `.dmc` file in blocks [T_i], and the numbers of its damaged chunks.

    A long file comes in pieces as they are decoded: memory grows with its codes (8 bytes each)
    but not with its sound.

    Raises BitstreamError for a damaged file, and ValueError for codes of another model than the
    engine's, which would decode to noise (not with `any_model`), and for books that are not there.
    With `on_damage="skip"` lost frames are silent.
    """
    file = loads(data, on_damage=on_damage)
    header = file.header
    if not any_model:
        header.check_model(engine.model_id, engine.model_hash)
    header.check_layout(engine.sample_rate, engine.hop_length, engine.codebook_size)
    if num_codebooks is not None and num_codebooks > header.num_codebooks:
        raise ValueError(f"it has {header.num_codebooks} books, not {num_codebooks}")
    blocks = engine.decode_parts(file.codes[:num_codebooks], header.num_samples)
    return silence_lost_frames(blocks, file), file.damaged_chunks
