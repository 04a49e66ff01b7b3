"""Intervals and tests over clips: bootstrap, paired differences, almost stochastic order.

Arrays in, numbers out. A figure is a function of sums over clips, so that means, pooled error
rates and word information lost are resampled alike: each clip has components [C] (see
`rows.components`), a resample is a weight for each clip.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Sums over clips [..., C] to figures [...]."""


@dataclass(frozen=True)
class Estimate:
    """A figure over clips with its bootstrap interval."""

    value: float
    low: float
    high: float
    num_clips: int


@dataclass(frozen=True)
class Difference:
    """A figure of one system less that of another over the clips that both have.

    p_value: two-sided, from the paired bootstrap: how surprising the sign would be if there were
    no difference. aso: upper bound of the violation ratio that this system is better than the
    other one (0: better everywhere; below 0.5: almost stochastically better).
    """

    value: float
    low: float
    high: float
    p_value: float
    aso: float
    num_clips: int


def ratio(sums: Floats) -> Floats:
    """First component over the second: means, and errors per word."""
    return sums[..., 0] / sums[..., 1]


def information_lost(sums: Floats) -> Floats:
    """WIL from hits, words of the references, words of the hypotheses; 1 when nothing is heard."""
    hits, references, hypotheses = sums[..., 0], sums[..., 1], sums[..., 2]
    kept = np.divide(
        hits**2, references * hypotheses, out=np.zeros_like(hits), where=hypotheses > 0
    )
    return 1 - kept


class Bootstrap:
    """Resamples of clips, the same for every system that has the same clips.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13 (percentile
    intervals).
    """

    def __init__(
        self, *, num_resamples: int = 5000, confidence: float = 0.95, seed: int = 0
    ) -> None:
        if num_resamples < 100 or not 0.5 < confidence < 1:
            raise ValueError(
                "needs at least 100 resamples and a confidence between 0.5 and 1, got "
                f"{num_resamples} and {confidence}"
            )
        self.num_resamples = num_resamples
        self.confidence = confidence
        self._seed = seed
        self._last_weights: tuple[object, Floats] | None = None  # measures share their clips

    def estimate(
        self, components: Floats, statistic: Statistic, groups: NDArray[np.int64] | None = None
    ) -> Estimate:
        """The figure of clips with components [N, C] and its percentile interval.

        Args:
            components: of each clip.
            statistic: sums to a figure.
            groups: [N] number of each clip's speaker, to resample speakers instead of clips.
        """
        _check(components)
        resampled = statistic(self._weights(len(components), groups) @ components)
        low, high = self._interval(resampled)
        value = float(statistic(components.sum(axis=0)))
        return Estimate(value, low, high, len(components))

    def difference(
        self,
        components: Floats,
        other: Floats,
        statistic: Statistic,
        *,
        values: Floats,
        other_values: Floats,
        groups: NDArray[np.int64] | None = None,
    ) -> Difference:
        """The figure of one system less that of another on the same clips.

        Args:
            components: [N, C] of the one.
            other: [N, C] of the other, the same clips in the same order.
            statistic: sums to a figure.
            values: [N] of the one by clip, more is better, for the stochastic order.
            other_values: [N] of the other.
            groups: as in `estimate`.

        Reference: Koehn 2004, Statistical significance tests for machine translation evaluation
        (the paired bootstrap; two-sided here).
        """
        _check(components)
        if components.shape != other.shape:
            raise ValueError("paired differences need the same clips on both sides")
        weights = self._weights(len(components), groups)
        resampled = statistic(weights @ components) - statistic(weights @ other)
        low, high = self._interval(resampled)
        value = float(statistic(components.sum(axis=0)) - statistic(other.sum(axis=0)))
        tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
        p_value = min(1.0, 2 * (tail + 1) / (self.num_resamples + 1))
        aso = almost_stochastic_order(
            values,
            other_values,
            confidence=self.confidence,
            rng=np.random.default_rng(self._seed),
        )
        return Difference(value, low, high, p_value, aso, len(components))

    def _interval(self, resampled: Floats) -> tuple[float, float]:
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return float(low), float(high)

    def _weights(self, num_clips: int, groups: NDArray[np.int64] | None) -> Floats:
        """[R, N]: how often each clip is in each resample."""
        members = np.arange(num_clips) if groups is None else _number_groups(groups)
        key = members.tobytes()
        if self._last_weights is None or self._last_weights[0] != key:
            num_groups = int(members.max()) + 1
            shares = np.full(num_groups, 1 / num_groups)
            rng = np.random.default_rng(self._seed)
            drawn = rng.multinomial(num_groups, shares, self.num_resamples)
            self._last_weights = key, drawn[:, members].astype(np.float64)
        return self._last_weights[1]


def almost_stochastic_order(
    values: Floats,
    other: Floats,
    *,
    confidence: float,
    rng: np.random.Generator,
    num_resamples: int = 1000,
) -> float:
    """Upper bound of the violation ratio of "the first is stochastically better", 0 to 1.

    The violation ratio is the share of the squared Wasserstein distance between the two
    distributions that lies where the first one's quantiles are the worse ones; 0.5 for equal
    distributions. Quantile functions of samples are steps, so the integrals are sums.

    Args:
        values: [N] of the first, more is better.
        other: [N] of the second.
        confidence: of the bound.
        rng: draws the resamples that give the bound its margin.
        num_resamples: how many.

    Reference: Dror et al. 2019, doi:10.18653/v1/P19-1266; del Barrio et al. 2018, arXiv:1705.01788.
    """
    if values.ndim != 1 or values.shape != other.shape or not len(values):
        raise ValueError("stochastic order needs two lists of equal length")
    ratio_seen = float(_violation_ratio(np.sort(values), np.sort(other)))
    size = len(values)
    resampled = _violation_ratio(
        np.sort(values[rng.integers(0, size, (num_resamples, size))], axis=1),
        np.sort(other[rng.integers(0, size, (num_resamples, size))], axis=1),
    )
    scale = math.sqrt(size / 2)  # sqrt(n m / (n + m)) for n = m
    sigma = float(np.std(scale * (resampled - ratio_seen)))
    margin = sigma / scale * NormalDist().inv_cdf(1 - confidence)  # negative
    return min(1.0, max(0.0, ratio_seen - margin))


def _violation_ratio(values: Floats, other: Floats) -> Floats:
    """Of sorted values [..., N]: squared gaps where the first is below, over all squared gaps."""
    squares = (values - other) ** 2
    violating = np.where(values < other, squares, 0.0).sum(axis=-1)
    total = squares.sum(axis=-1)
    return np.divide(violating, total, out=np.full_like(total, 0.5), where=total > 0)


def _number_groups(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N]: the groups numbered from 0 without gaps."""
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _check(components: Floats) -> None:
    if components.ndim != 2 or not len(components):
        raise ValueError(f"components must be [N, C] with N >= 1, got {components.shape}")
