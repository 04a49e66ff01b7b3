"""Short-time objective intelligibility, plain and extended, through pystoi.

What cannot be computed raises `Unmeasurable` with the reason; it never becomes a score: silent or
short originals, non-finite samples.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from dmcodec.audio import SAMPLE_RATE, Waveform
from dmcodec.metrics.measure import (
    Group,
    Measure,
    Original,
    Outcomes,
    Unmeasurable,
    attempt,
    check_pair,
    require_sound,
)
from dmcodec.packages import import_package


def stoi(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Short-time objective intelligibility, at most 1, of two waveforms [T] of equal length.

    Needs about 0.4 s of speech in the reference; a silent estimate scores 0. Reference: Taal et
    al. 2011, doi:10.1109/TASL.2011.2114881.
    """
    check_pair(reference, estimate)
    # The package would say 0, as if the estimate were to blame.
    require_sound("STOI", reference=reference)
    return _run("STOI", reference, estimate, sample_rate)


def estoi(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Extended short-time objective intelligibility of two waveforms [T] of equal length.

    Reference: Jensen and Taal 2016, doi:10.1109/TASLP.2016.2585878.
    """
    require_sound("ESTOI", reference=reference)
    with _seeded_numpy():  # the package adds noise, which decides where there is silence
        return _run("ESTOI", reference, estimate, sample_rate, extended=True)


@contextmanager
def _seeded_numpy() -> Iterator[None]:
    """Inside, the global generator of numpy begins anew; afterwards it goes on as before."""
    state = np.random.get_state()  # noqa: NPY002 (the package has no other way)
    np.random.seed(0)  # noqa: NPY002, TID251
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _run(
    name: str, reference: Waveform, estimate: Waveform, sample_rate: int, **options: bool
) -> float:
    """What pystoi gives; Unmeasurable, in our words, where it only warns."""
    package = import_package("pystoi", name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(package.stoi(reference, estimate, sample_rate, **options))
        except (RuntimeWarning, ValueError) as problem:
            is_short = "Not enough STFT frames" in str(problem) or len(reference) < sample_rate // 4
            reason = (
                "the reference has less than the 0.4 s of speech that it needs"
                if is_short
                else f"the package gave no value: {problem}"
            )
            raise Unmeasurable(f"{name}: {reason}") from problem


def _compute(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate, SAMPLE_RATE)
    return {"stoi": attempt(stoi, *pair), "estoi": attempt(estoi, *pair)}


STOI = Group(
    "stoi",
    (
        Measure(
            "stoi", "STOI", "higher", 3, "short-time objective intelligibility",
            is_main=True, has_chart=True,
        ),
        Measure("estoi", "ESTOI", "higher", 3, "extended STOI"),
    ),
    _compute,
    modules=("pystoi",),
    distributions=("pystoi",),
    revision=2,
)  # fmt: skip
