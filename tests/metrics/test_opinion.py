"""Our numbers are those of the wrapped packages called directly."""

import numpy as np
import pytest

from dmcodec.audio import resample
from dmcodec.metrics import opinion
from dmcodec.metrics.measure import Unmeasurable


@pytest.fixture
def noisy(speech: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(speech))
    return (speech + 0.02 * noise).astype(np.float32)


def test_narrow_band_pesq_is_that_of_pesq_at_8_khz(speech: np.ndarray, noisy: np.ndarray) -> None:
    pesq = pytest.importorskip("pesq", reason="pip install 'dmcodec[metrics]'")

    pair = [resample(waveform, 16_000, 8_000) for waveform in (speech, noisy)]

    assert opinion.pesq_nb(speech, noisy, 16_000) == pesq.pesq(8_000, *pair, "nb")


def test_pesq_of_silence_has_no_value(speech: np.ndarray) -> None:
    pytest.importorskip("pesq", reason="pip install 'dmcodec[metrics]'")

    with pytest.raises(Unmeasurable, match="silent"):
        opinion.pesq_nb(speech, np.zeros_like(speech), 16_000)


def test_visqol_speech_mode_is_that_of_the_package_with_its_lattice(
    speech: np.ndarray, noisy: np.ndarray
) -> None:
    pytest.importorskip("ai_edge_litert", reason="pip install 'dmcodec[eval]'")
    visqol = pytest.importorskip("visqol", reason="pip install 'dmcodec[eval]'")
    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=True)
    pair = [waveform[:24_000].astype(np.float64) for waveform in (speech, noisy)]

    expected = api.measure_from_arrays(*pair, 16_000).moslqo

    assert opinion.visqol(speech[:24_000], noisy[:24_000], 16_000, "speech") == expected


def test_visqol_audio_mode_is_that_of_the_package_at_48_khz(
    speech: np.ndarray, noisy: np.ndarray
) -> None:
    visqol = pytest.importorskip("visqol", reason="pip install 'dmcodec[eval]'")
    api = visqol.VisqolApi()
    api.create(mode="audio")
    clips = speech[:24_000], noisy[:24_000]
    pair = [resample(waveform, 16_000, 48_000).astype(np.float64) for waveform in clips]

    expected = api.measure_from_arrays(*pair, 48_000).moslqo

    assert opinion.visqol(*clips, 16_000, "audio") == expected


def test_visqol_of_silence_has_no_value(speech: np.ndarray) -> None:
    with pytest.raises(Unmeasurable, match="silent"):
        opinion.visqol(speech, np.zeros_like(speech), 16_000, "speech")


def test_dnsmos_is_that_of_speechmos(speech: np.ndarray) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'dmcodec[eval]'")
    pytest.importorskip("librosa", reason="pip install 'dmcodec[eval]'")
    package = pytest.importorskip("speechmos.dnsmos", reason="pip install 'dmcodec[eval]'")

    def assert_near_package(waveform: np.ndarray, tolerance: float) -> None:
        expected = package.run(waveform, 16_000)
        scores = opinion.dnsmos(waveform, 16_000)
        assert scores["dnsmos_overall"] == pytest.approx(expected["ovrl_mos"], abs=tolerance)
        assert scores["dnsmos_p808"] == pytest.approx(expected["p808_mos"], abs=tolerance)

    # 11.5 s: two windows; 4.8 s: one window. One thread here, several there: sums differ a little.
    assert_near_package(np.tile(speech, 3)[:184_000], tolerance=1e-4)
    assert_near_package(speech, tolerance=1e-4)
    assert_near_package(speech[:48_000], tolerance=0.1)  # three windows there, one here


def test_utmos_without_weights_is_missing(speech: np.ndarray) -> None:
    with pytest.raises(Unmeasurable, match="no weights at hand"):
        opinion.utmos(speech, 16_000, None)
