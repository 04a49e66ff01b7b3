import math
from itertools import pairwise

import pytest

from dmcodec.config import ConfigError
from dmcodec.training.experiment import OptimizerConfig


def learning_rates(config: OptimizerConfig, first_step: int, num_steps: int) -> list[float]:
    """Every step of a course and some beyond its end."""
    steps = range(first_step, num_steps + 50)
    return [config.learning_rate_at(step, first_step, num_steps) for step in steps]


def test_cosine_equals_its_formula_over_the_whole_run():
    config = OptimizerConfig(
        learning_rate=2e-3, warmup_steps=10, schedule="cosine", final_share=0.1
    )

    rates = learning_rates(config, 0, 110)

    for step in range(10):
        assert rates[step] == pytest.approx(2e-3 * (step + 1) / 10)
    for step in range(10, 110):
        wave = 0.5 + 0.5 * math.cos(math.pi * (step - 10) / 99)
        assert rates[step] == pytest.approx(2e-3 * (0.1 + 0.9 * wave))
    assert rates[109:] == pytest.approx([2e-4] * 51)


def test_exponential_loses_the_same_share_each_step():
    config = OptimizerConfig(learning_rate=1e-3, schedule="exponential", final_share=0.25)

    rates = learning_rates(config, 0, 101)

    ratios = [after / before for before, after in pairwise(rates[:101])]
    assert ratios == pytest.approx([0.25**0.01] * 100)
    assert rates[0] == 1e-3
    assert rates[100:] == pytest.approx([2.5e-4] * 51)


def test_constant_stays_after_the_warm_up():
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=4, schedule="constant")

    rates = learning_rates(config, 0, 20)

    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4] + [1e-3] * 67)


def test_wsd_is_stable_and_then_falls_in_a_line():
    config = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=10, schedule="wsd", decay_share=0.25, final_share=0.1
    )

    rates = learning_rates(config, 0, 111)  # 100 steps of course after the warm-up

    assert rates[10:86] == pytest.approx([1e-3] * 76)
    for step in range(86, 111):
        assert rates[step] == pytest.approx(1e-3 * (1 - 0.9 * (step - 85) / 25))
    assert rates[110:] == pytest.approx([1e-4] * 51)


@pytest.mark.parametrize("schedule", ["cosine", "exponential", "constant", "wsd"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 30, 100])
def test_rate_rises_in_the_warm_up_and_never_afterwards(schedule, warmup_steps):
    config = OptimizerConfig(warmup_steps=warmup_steps, schedule=schedule, final_share=0.01)

    rates = learning_rates(config, 0, 30)

    top = min(warmup_steps, len(rates))
    assert all(before < after for before, after in pairwise(rates[:top]))
    assert all(before >= after for before, after in pairwise(rates[top:]))
    assert min(rates) > 0
    assert max(rates) <= config.learning_rate


def test_course_from_a_later_step_is_the_same_course_moved():
    config = OptimizerConfig(warmup_steps=5, schedule="cosine")

    assert learning_rates(config, 40, 100) == learning_rates(config, 0, 60)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer.schedule=exponential", "exponential schedule needs final_share above 0"),
        ("optimizer.warmup=3", "unknown key 'optimizer.warmup'"),
        ("losses.mel_weigth=3", "unknown key 'losses.mel_weigth'"),
        ("data.hop_length=160", "data.sample_rate and data.hop_length are"),
        ("average_decay=1", "average_decay: "),
        ("mixed_precision=fp8", "mixed_precision: "),
    ],
)
def test_wrong_experiment_is_refused(tiny, assignment, message):
    with pytest.raises(ConfigError, match=message):
        tiny(assignment, "optimizer.final_share=0")


def test_losses_without_reconstruction_are_refused(tiny):
    nothing = [f"losses.{name}_weight=0" for name in ("time", "mel", "stft")]

    with pytest.raises(ConfigError, match="nothing to learn"):
        tiny(*nothing)


def test_feature_map_without_a_teacher_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"no \[distillation\] uses the map"):
        tiny("codec.feature_dim=8")
