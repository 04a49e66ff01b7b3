import numpy as np
import pytest

from dmcodec.evaluation.statistics import (
    Bootstrap,
    almost_stochastic_order,
    information_lost,
    ratio,
)


def as_means(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values), np.zeros_like(values)], axis=1)


def test_interval_of_a_mean_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="pip install scipy")
    values = np.random.default_rng(0).gamma(2.0, size=80)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval

    result = Bootstrap().estimate(as_means(values), ratio)

    assert result.value == pytest.approx(values.mean())
    # Two draws of thousands of resamples differ by a few percent of the interval's width.
    tolerance = 0.05 * (expected.high - expected.low)
    assert result.low == pytest.approx(expected.low, abs=tolerance)
    assert result.high == pytest.approx(expected.high, abs=tolerance)


def test_error_rates_are_pooled_and_not_averaged() -> None:
    errors_and_words = np.array([[1.0, 2.0, 0.0], [0.0, 8.0, 0.0]])

    assert Bootstrap().estimate(errors_and_words, ratio).value == pytest.approx(0.1)


def test_information_lost_of_pooled_counts() -> None:
    hits_references_hypotheses = np.array([[3.0, 4.0, 3.0], [1.0, 4.0, 5.0]])

    value = Bootstrap().estimate(hits_references_hypotheses, information_lost).value

    assert value == pytest.approx(1 - 16 / (8 * 8))
    assert information_lost(np.array([0.0, 5.0, 0.0])) == 1.0


def test_interval_is_the_same_each_time_and_moves_with_the_seed() -> None:
    values = as_means(np.random.default_rng(0).normal(size=30))

    first, again = (Bootstrap(seed=1).estimate(values, ratio) for _ in range(2))

    assert first == again
    assert first != Bootstrap(seed=2).estimate(values, ratio)


def test_resampling_speakers_widens_the_interval_when_their_clips_agree() -> None:
    """Ten speakers whose ten clips are all alike: only ten observations."""
    values = np.repeat(np.random.default_rng(0).normal(size=10), 10)
    speakers = np.repeat(np.arange(10), 10)

    by_clip = Bootstrap().estimate(as_means(values), ratio)
    by_speaker = Bootstrap().estimate(as_means(values), ratio, speakers)

    widths = [result.high - result.low for result in (by_clip, by_speaker)]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(10), rel=0.2)


def difference(values: np.ndarray, other: np.ndarray):
    return Bootstrap().difference(
        as_means(values), as_means(other), ratio, values=values, other_values=other
    )


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(scale=10.0, size=50)
    better = values + 0.5 + 0.1 * rng.normal(size=50)

    result = difference(better, values)

    assert result.value == pytest.approx((better - values).mean())
    assert 0.4 < result.low < result.value < result.high < 0.6
    assert result.p_value == pytest.approx(2 / 5001)


def test_p_value_of_no_difference_is_large() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=60)
    other = values + rng.permutation(np.repeat([-0.3, 0.3], 30))

    assert difference(values, other).p_value > 0.5
    assert difference(values, values).p_value == 1.0


def test_p_values_are_close_to_those_of_the_t_test() -> None:
    stats = pytest.importorskip("scipy.stats", reason="pip install scipy")
    rng = np.random.default_rng(5)
    values = rng.normal(size=100)
    other = values + rng.normal(loc=0.2, size=100)

    expected = stats.ttest_rel(values, other).pvalue

    assert difference(values, other).p_value == pytest.approx(expected, abs=0.02)


def order(values: list[float], other: list[float], **changes: object) -> float:
    settings = {"confidence": 0.95, "rng": np.random.default_rng(0), **changes}
    return almost_stochastic_order(np.array(values), np.array(other), **settings)


def test_dominance_has_no_violation_and_its_reverse_has_nothing_else() -> None:
    low, high = np.linspace(0, 1, 50), np.linspace(5, 6, 50)

    assert order(high, low) == 0.0
    assert order(low, high) == 1.0


def test_violation_ratio_without_margin_is_the_one_by_hand() -> None:
    """Sorted gaps are +3, +1, -2: 4 of 14 squared units violate. Half confidence: no margin."""
    ratio_seen = order([5.0, 4.0, 3.0], [0.0, 3.0, 7.0], confidence=0.5)

    # Sorted: (3, 4, 5) against (0, 3, 7): +3, +1, -2.
    assert ratio_seen == pytest.approx(4 / 14)


def test_equal_distributions_are_not_better_than_each_other() -> None:
    assert order([1.0, 2.0, 3.0], [3.0, 1.0, 2.0], confidence=0.5) == 0.5


def test_stochastic_order_agrees_with_deepsig() -> None:
    deepsig = pytest.importorskip("deepsig", reason="pip install deepsig, for this check only")
    rng = np.random.default_rng(2)
    values, other = rng.normal(0.3, 1.0, 60), rng.normal(0.0, 1.0, 60)

    expected = deepsig.aso(
        values, other, seed=0, show_progress=False, num_bootstrap_iterations=500, dt=0.001
    )

    # Both bounds hold resampling noise.
    assert order(values, other) == pytest.approx(expected, abs=0.05)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="same clips"):
        Bootstrap().difference(
            np.ones((3, 2)), np.ones((2, 2)), ratio, values=np.ones(3), other_values=np.ones(2)
        )
    with pytest.raises(ValueError, match="at least 100"):
        Bootstrap(num_resamples=10)
