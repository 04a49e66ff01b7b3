import numpy as np
import pytest

from dmcodec.teachers.alignment import AlignmentError
from dmcodec.teachers.ctc import SymbolSpan, align_symbols, best_path

BLANK = 0


def log_probs_of(path: list[int], num_symbols: int = 5, sharpness: float = 3.0) -> np.ndarray:
    logits = np.random.default_rng(0).normal(size=(len(path), num_symbols))
    logits[np.arange(len(path)), path] += sharpness
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def all_paths(num_frames: int, num_symbols: int) -> np.ndarray:
    grids = np.meshgrid(*[np.arange(num_symbols)] * num_frames, indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1)


def spelled(path: np.ndarray) -> list[int]:
    return [s for i, s in enumerate(path) if s != BLANK and (i == 0 or s != path[i - 1])]


def test_best_path_joins_repetitions_and_drops_blanks():
    log_probs = log_probs_of([0, 3, 3, 0, 3, 1, 0], sharpness=20)

    assert best_path(log_probs, BLANK) == [
        SymbolSpan(3, 1, 3),
        SymbolSpan(3, 4, 5),
        SymbolSpan(1, 5, 6),
    ]


def test_text_of_the_best_path_is_laid_where_that_path_has_it():
    path = [0, 0, 1, 1, 0, 2, 0, 0, 2, 3, 3, 0]
    log_probs = log_probs_of(path, sharpness=20)

    assert align_symbols(log_probs, [1, 2, 2, 3], BLANK) == best_path(log_probs, BLANK)


@pytest.mark.parametrize("symbols", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
def test_aligned_path_is_the_most_probable_of_all_that_spell_the_text(symbols):
    log_probs = log_probs_of([0, 1, 2, 1, 0, 2], num_symbols=3, sharpness=0)
    paths = [path for path in all_paths(6, 3) if spelled(path) == symbols]
    best = max(paths, key=lambda path: log_probs[np.arange(6), path].sum())

    spans = align_symbols(log_probs, symbols, BLANK)

    built = np.zeros(6, dtype=int)
    for symbol, start, stop in spans:
        built[start:stop] = symbol
    np.testing.assert_array_equal(built, best)
    assert [span.symbol for span in spans] == symbols


def test_text_that_does_not_fit_is_an_error():
    with pytest.raises(AlignmentError, match="do not fit into 2 frames"):
        align_symbols(log_probs_of([0, 0]), [1, 1], BLANK)
    impossible = log_probs_of([0, 0, 0])
    impossible[:, 4] = -np.inf
    with pytest.raises(AlignmentError, match="no probability"):
        align_symbols(impossible, [4], BLANK)


def test_no_text_gives_no_spans():
    assert align_symbols(log_probs_of([0]), [], BLANK) == []
