import numpy as np
import pytest

from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.pair import score_pair

SOUND = np.ones(10, np.float32)


def refuse(*_: object) -> float:
    raise Unmeasurable("too short")


def break_down(*_: object) -> float:
    raise ZeroDivisionError("by zero")


def test_measures_give_values_or_their_reasons() -> None:
    def rate_of(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
        return sample_rate + float((reference - estimate).sum())

    measures = {"rate": rate_of, "refused": refuse}

    values, missing = score_pair(SOUND, SOUND - 1, 16_000, measures=measures)

    assert values == {"rate": 16_010}
    assert missing == {"refused": "too short"}


def test_errors_that_are_no_reasons_are_raised() -> None:
    measures = {"broken": break_down}

    with pytest.raises(ZeroDivisionError):
        score_pair(SOUND, SOUND, 16_000, measures=measures)

    reasons = (Unmeasurable, ZeroDivisionError)
    found = score_pair(SOUND, SOUND, 16_000, measures=measures, reasons=reasons)
    assert found.missing == {"broken": "by zero"}
