"""Our numbers are those of the wrapped packages called directly."""

import numpy as np
import pytest

from dmcodec.audio import resample
from dmcodec.evaluation import perceptual
from dmcodec.packages import MissingPackage
from dmcodec.quality import Unmeasurable


@pytest.fixture
def noisy(speech: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(speech))
    return (speech + 0.02 * noise).astype(np.float32)


def test_estoi_is_that_of_pystoi(speech: np.ndarray, noisy: np.ndarray) -> None:
    pystoi = pytest.importorskip("pystoi", reason="pip install 'dmcodec[metrics]'")

    expected = pystoi.stoi(speech, noisy, 16_000, extended=True)

    assert perceptual.estoi(speech, noisy, 16_000) == expected
    assert perceptual.estoi(speech, speech, 16_000) == pytest.approx(1.0, abs=1e-6)


def test_estoi_of_silent_stretches_depends_on_no_chance(speech: np.ndarray) -> None:
    pytest.importorskip("pystoi", reason="pip install 'dmcodec[metrics]'")
    half = np.where(np.arange(len(speech)) < len(speech) // 2, speech, 0).astype(np.float32)
    before = np.random.get_state()[1]  # noqa: NPY002

    first, second = (perceptual.estoi(speech, half, 16_000) for _ in range(2))

    assert first == second
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_narrow_band_pesq_is_that_of_pesq_at_8_khz(speech: np.ndarray, noisy: np.ndarray) -> None:
    pesq = pytest.importorskip("pesq", reason="pip install 'dmcodec[metrics]'")

    pair = [resample(waveform, 16_000, 8_000) for waveform in (speech, noisy)]

    assert perceptual.pesq_nb(speech, noisy, 16_000) == pesq.pesq(8_000, *pair, "nb")


def test_pesq_of_silence_has_no_value(speech: np.ndarray) -> None:
    pytest.importorskip("pesq", reason="pip install 'dmcodec[metrics]'")

    with pytest.raises(Unmeasurable, match="silent"):
        perceptual.pesq_nb(speech, np.zeros_like(speech), 16_000)


def test_visqol_speech_mode_is_that_of_the_package_with_its_lattice(
    speech: np.ndarray, noisy: np.ndarray
) -> None:
    pytest.importorskip("ai_edge_litert", reason="pip install 'dmcodec[eval]'")
    visqol = pytest.importorskip("visqol", reason="pip install 'dmcodec[eval]'")
    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=True)
    pair = [waveform[:24_000].astype(np.float64) for waveform in (speech, noisy)]

    expected = api.measure_from_arrays(*pair, 16_000).moslqo

    assert perceptual.visqol(speech[:24_000], noisy[:24_000], 16_000, "speech") == expected


def test_visqol_audio_mode_is_that_of_the_package_at_48_khz(
    speech: np.ndarray, noisy: np.ndarray
) -> None:
    visqol = pytest.importorskip("visqol", reason="pip install 'dmcodec[eval]'")
    api = visqol.VisqolApi()
    api.create(mode="audio")
    clips = speech[:24_000], noisy[:24_000]
    pair = [resample(waveform, 16_000, 48_000).astype(np.float64) for waveform in clips]

    expected = api.measure_from_arrays(*pair, 48_000).moslqo

    assert perceptual.visqol(*clips, 16_000, "audio") == expected


def test_visqol_of_silence_has_no_value(speech: np.ndarray) -> None:
    with pytest.raises(Unmeasurable, match="silent"):
        perceptual.visqol(speech, np.zeros_like(speech), 16_000, "speech")


def test_dnsmos_is_that_of_speechmos(speech: np.ndarray) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'dmcodec[eval]'")
    pytest.importorskip("librosa", reason="pip install 'dmcodec[eval]'")
    package = pytest.importorskip("speechmos.dnsmos", reason="pip install 'dmcodec[eval]'")

    def assert_near_package(waveform: np.ndarray, tolerance: float) -> None:
        expected = package.run(waveform, 16_000)
        scores = perceptual.dnsmos(waveform, 16_000)
        assert scores["dnsmos_overall"] == pytest.approx(expected["ovrl_mos"], abs=tolerance)
        assert scores["dnsmos_p808"] == pytest.approx(expected["p808_mos"], abs=tolerance)

    # 11.5 s: two windows; 4.8 s: one window. One thread here, several there: sums differ a little.
    assert_near_package(np.tile(speech, 3)[:184_000], tolerance=1e-4)
    assert_near_package(speech, tolerance=1e-4)
    assert_near_package(speech[:48_000], tolerance=0.1)  # three windows there, one here


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pystoi", None)

    with pytest.raises(MissingPackage, match=r"ESTOI needs the package pystoi: pip install '"):
        perceptual.estoi(np.zeros(9, np.float32), np.zeros(9, np.float32), 16_000)


def test_utmos_without_weights_is_missing(speech: np.ndarray) -> None:
    with pytest.raises(Unmeasurable, match="no weights at hand"):
        perceptual.utmos(speech, 16_000, None)
