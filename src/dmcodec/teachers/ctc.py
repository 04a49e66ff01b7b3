"""Where the symbols of a CTC model lie in time: its best path, and the path of a given text.

Arithmetic on log-probabilities [L, V]; no model is run here.

Reference: Graves et al. 2006, doi:10.1145/1143844.1143891.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dmcodec.teachers.alignment import AlignmentError

LogProbabilities = npt.NDArray[np.floating]


class SymbolSpan(NamedTuple):
    """A symbol's index in the vocabulary and the frames [start, stop) that emit it."""

    symbol: int
    start: int
    stop: int


def best_path(log_probs: LogProbabilities, blank: int) -> list[SymbolSpan]:
    """The most probable symbol of each frame, repetitions joined, blanks left out."""
    symbols = log_probs.argmax(axis=1)
    edges = np.flatnonzero(np.diff(symbols)) + 1
    starts = [0, *edges.tolist()]
    stops = [*edges.tolist(), len(symbols)]
    return [
        SymbolSpan(int(symbols[start]), start, stop)
        for start, stop in zip(starts, stops, strict=True)
        if start < stop and symbols[start] != blank
    ]


def align_symbols(
    log_probs: LogProbabilities, symbols: Sequence[int], blank: int
) -> list[SymbolSpan]:
    """The most probable path [L] that spells `symbols`: one span for each of them.

    Raises AlignmentError when there are too few frames, or no path with a probability above 0.
    """
    if not symbols:
        return []
    # States: blank, symbol 0, blank, symbol 1, ..., blank.
    states = np.full(2 * len(symbols) + 1, blank, dtype=np.int64)
    states[1::2] = symbols
    can_skip = np.zeros(len(states), dtype=bool)  # over the blank between two different symbols
    can_skip[3::2] = states[3::2] != states[1:-2:2]
    num_repeats = int((states[3::2] == states[1:-2:2]).sum())
    if len(log_probs) < len(symbols) + num_repeats:
        raise AlignmentError(f"{len(symbols)} symbols do not fit into {len(log_probs)} frames")

    emitted = log_probs[:, states]  # [L, states]
    scores = np.full(len(states), -np.inf)
    scores[:2] = emitted[0, :2]
    came_from = np.zeros(emitted.shape, dtype=np.int8)  # how many states back
    for frame in range(1, len(emitted)):
        one_back = np.concatenate([[-np.inf], scores[:-1]])
        two_back = np.concatenate([[-np.inf, -np.inf], scores[:-2]])
        options = np.stack([scores, one_back, np.where(can_skip, two_back, -np.inf)])
        came_from[frame] = options.argmax(axis=0)
        scores = options.max(axis=0) + emitted[frame]
    state = len(states) - (1 if scores[-1] >= scores[-2] else 2)
    if not np.isfinite(scores[state]):
        raise AlignmentError("the model gives this text no probability")

    first = np.zeros(len(symbols), dtype=np.int64)
    last = np.full(len(symbols), -1, dtype=np.int64)
    for frame in range(len(emitted) - 1, -1, -1):
        if state % 2:
            first[state // 2] = frame
            last[state // 2] = max(last[state // 2], frame)
        state -= int(came_from[frame, state])
    return [SymbolSpan(symbol, int(first[i]), int(last[i]) + 1) for i, symbol in enumerate(symbols)]
