"""ESTOI is that of pystoi; STOI is tested with the other measures of pairs."""

import numpy as np
import pytest

from dmcodec.metrics.intelligibility import estoi
from dmcodec.packages import MissingPackage


@pytest.fixture
def noisy(speech: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(speech))
    return (speech + 0.02 * noise).astype(np.float32)


def test_estoi_is_that_of_pystoi(speech: np.ndarray, noisy: np.ndarray) -> None:
    pystoi = pytest.importorskip("pystoi", reason="pip install 'dmcodec[metrics]'")

    expected = pystoi.stoi(speech, noisy, 16_000, extended=True)

    assert estoi(speech, noisy, 16_000) == expected
    assert estoi(speech, speech, 16_000) == pytest.approx(1.0, abs=1e-6)


def test_estoi_of_silent_stretches_depends_on_no_chance(speech: np.ndarray) -> None:
    pytest.importorskip("pystoi", reason="pip install 'dmcodec[metrics]'")
    half = np.where(np.arange(len(speech)) < len(speech) // 2, speech, 0).astype(np.float32)
    before = np.random.get_state()[1]  # noqa: NPY002

    first, second = (estoi(speech, half, 16_000) for _ in range(2))

    assert first == second
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pystoi", None)

    with pytest.raises(MissingPackage, match=r"ESTOI needs the package pystoi: pip install '"):
        estoi(np.ones(9, np.float32), np.ones(9, np.float32), 16_000)
