"""STOI and PESQ-WB of one decoded sound: what is said of it wherever a single one is shown."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dmcodec.audio import Waveform
from dmcodec.metrics.intelligibility import stoi
from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.opinion import pesq_wb

PairMeasure = Callable[[Waveform, Waveform, int], float]

STOI_AND_PESQ: Mapping[str, PairMeasure] = {"stoi": stoi, "pesq_wb": pesq_wb}


class PairScores(NamedTuple):
    """Measures that have a value, and the others with their reasons."""

    values: dict[str, float]
    missing: dict[str, str]


def score_pair(
    reference: Waveform,
    estimate: Waveform,
    sample_rate: int,
    *,
    measures: Mapping[str, PairMeasure] = STOI_AND_PESQ,
    reasons: tuple[type[Exception], ...] = (Unmeasurable,),
) -> PairScores:
    """Every measure of two waveforms [T] of one length.

    `reasons` are the errors that say why a measure has no value; others are raised.
    """
    values, missing = {}, {}
    for name, measure in measures.items():
        try:
            values[name] = measure(reference, estimate, sample_rate)
        except reasons as reason:
            missing[name] = str(reason)
    return PairScores(values, missing)
