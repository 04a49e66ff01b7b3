"""What the protocol says of silence, delay and level holds for every group that runs here."""

import math
from dataclasses import replace

import numpy as np
import pytest

from dmcodec.evaluation.scoring import cache_key, group_identity, score_group
from dmcodec.evaluation.workspace import CachedScores
from dmcodec.metrics.measure import Models, Original, ScoringConfig
from dmcodec.metrics.registry import GROUPS
from dmcodec.packages import MissingPackage

LIGHT = [
    name for name in ("stoi", "pesq", "signal") if GROUPS[name].why_not(ScoringConfig()) is None
]
pytestmark = pytest.mark.skipif(len(LIGHT) < 3, reason="pip install 'dmcodec[metrics]'")


def score(name: str, reference: np.ndarray, estimate: np.ndarray) -> CachedScores:
    original = Original(reference, Models(ScoringConfig()))
    return score_group(GROUPS[name], "key", original, estimate)


def score_all(reference: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in LIGHT:
        values |= score(name, reference, estimate).values
    return values


def test_identical_signals_are_perfect(speech: np.ndarray) -> None:
    values = score_all(speech, speech)

    assert values["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert values["estoi"] == pytest.approx(1.0, abs=1e-6)
    assert values["pesq"] == pytest.approx(4.64, abs=0.01)
    assert values["si_sdr"] == 100.0
    for name in ("mel_distance", "stft_distance", "mcd", "level_difference", "delay"):
        assert values[name] == 0.0


def test_silent_reconstruction_scores_as_bad_and_not_as_an_error(speech: np.ndarray) -> None:
    values = score_all(speech, np.zeros_like(speech))

    assert abs(values["stoi"]) < 0.05
    assert abs(values["estoi"]) < 0.05
    assert (values["pesq"], values["pesq_nb"]) == (1.0, 1.0)
    assert (values["si_sdr"], values["level_difference"]) == (-100.0, -100.0)
    assert values["mel_distance"] > 2.0
    assert values["mcd"] > 10.0
    silence = np.zeros_like(speech)
    assert score("visqol", speech, silence).values == {"visqol": 1.0}
    assert score("speaker", speech, silence).values == {"spk_similarity": 0.0}
    assert score("words", speech, silence).text == ""


def test_a_gain_of_0_9_changes_what_is_defined_by_level_and_nothing_else(
    speech: np.ndarray,
) -> None:
    values = score_all(speech, (0.9 * speech).astype(np.float32))

    assert values["stoi"] == pytest.approx(1.0, abs=1e-4)
    assert values["pesq"] == pytest.approx(4.64, abs=0.01)  # PESQ aligns levels
    assert values["si_sdr"] > 90.0
    assert values["mel_distance"] == pytest.approx(-math.log(0.9), abs=0.005)
    assert values["level_difference"] == pytest.approx(-0.915, abs=0.001)


def test_ten_samples_of_delay_cost_the_measures_that_do_not_align(speech: np.ndarray) -> None:
    late = np.concatenate([np.zeros(10, np.float32), speech[:-10]])

    values = score_all(speech, late)

    assert values["delay"] == pytest.approx(0.625)
    assert values["pesq"] > 4.5  # PESQ aligns time
    assert 0.97 < values["stoi"] < 1.0  # frames of 25.6 ms hardly notice 0.6 ms
    assert values["si_sdr"] < 3.0  # sample by sample


def test_what_has_no_value_is_missing_with_its_reason(speech: np.ndarray) -> None:
    result = score("stoi", speech[:3_000], speech[:3_000])

    assert result.values == {}
    assert set(result.missing) == {"stoi", "estoi"}
    assert "STOI" in result.missing["stoi"]


def test_a_package_that_is_not_installed_makes_its_group_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dmcodec.packages.find_spec", lambda name: None)

    assert GROUPS["visqol"].why_not(ScoringConfig()) == (
        "visqol needs the package visqol: pip install 'dmcodec[eval]'"
    )
    assert "no weights at hand" in str(GROUPS["utmos"].why_not(ScoringConfig()))
    assert GROUPS["signal"].why_not(ScoringConfig()) is None


def test_what_a_package_lacks_while_scoring_is_a_reason_and_not_an_error(
    speech: np.ndarray,
) -> None:
    def compute(original: Original, estimate: np.ndarray) -> dict[str, float]:
        raise MissingPackage("PESQ needs the package pesq: pip install it")

    group = replace(GROUPS["pesq"], compute=compute)

    result = score_group(group, "key", Original(speech, Models(ScoringConfig())), speech)

    assert result.values == {}
    assert result.missing == dict.fromkeys(
        group.names, "PESQ needs the package pesq: pip install it"
    )


def test_cache_keys_change_with_content_and_with_models() -> None:
    words, stoi = GROUPS["words"], GROUPS["stoi"]
    config = ScoringConfig(recognizer="some/model")
    other = ScoringConfig(recognizer="other/model")

    assert group_identity(words, config) != group_identity(words, other)
    assert group_identity(stoi, config) == group_identity(stoi, other)
    keys = {cache_key(stoi, "i", a, b) for a in ("x", "y") for b in ("x", "y")}
    assert len(keys) == 4
    # A transcript depends on the estimate alone.
    assert cache_key(words, "i", "x", "y") == cache_key(words, "i", "z", "y")


def test_every_measure_belongs_to_one_group() -> None:
    from dmcodec.metrics.registry import MEASURES

    names = [name for group in GROUPS.values() for name in group.names]
    assert sorted(names) == sorted(MEASURES)
