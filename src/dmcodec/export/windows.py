"""Codes window by window, for networks that look ahead and must not see the whole.

Each window is worked on with context on either side, which is thrown away. What comes out differs
from that of the whole where the network's LSTM remembers more than the context: docs/results.md has
the share of equal codes against its length.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmcodec.audio import Waveform, overlapping_parts
from dmcodec.tokens.bitstream import count_frames

Integers = NDArray[np.integer[Any]]


def encode_windows(
    encode: Callable[[Waveform], Integers],
    blocks: Iterable[Waveform],
    *,
    hop_length: int,
    window_frames: int,
    context_frames: int,
) -> Iterator[Integers]:
    """Codes [K, window_frames] of a waveform without end, window by window; the last is shorter.

    A window leaves when its context is there. Where the end can be waited for, `encode_long` is
    exact; a causal codec streams exactly (codec/streaming.py).

    Args:
        encode: from a waveform [T] to codes [K, ceil(T / hop_length)].
        blocks: consecutive parts [T_i] of the waveform, of any sizes.
        hop_length: samples of a frame.
        window_frames: frames of a window, at least 1.
        context_frames: further frames that are encoded on either side and thrown away.

    Raises ValueError when there is no sample at all.
    """
    if window_frames < 1 or context_frames < 0:
        raise ValueError("window_frames must be 1 or more and context_frames 0 or more")
    is_empty = True
    for part, before, num_samples in overlapping_parts(
        blocks, window_frames * hop_length, context_frames * hop_length
    ):
        is_empty = False
        first, num_frames = before // hop_length, count_frames(num_samples, hop_length)
        codes = encode(part)[:, first : first + num_frames]
        # The last part may have frames of its own beyond the window.
        for start in range(0, num_frames, window_frames):
            yield codes[:, start : start + window_frames]
    if is_empty:
        raise ValueError("audio is empty; give at least one sample")
