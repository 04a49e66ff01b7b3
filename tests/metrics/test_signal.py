import math

import numpy as np
import pytest
import torch

from dmcodec.metrics import signal
from dmcodec.metrics.measure import Unmeasurable


def delayed(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    return np.concatenate([np.zeros(num_samples, np.float32), waveform[:-num_samples]])


def test_si_sdr_of_orthogonal_noise_is_the_ratio_of_energies() -> None:
    reference = np.array([1.0, -1.0, 1.0, -1.0], dtype=np.float32)
    noise = np.array([0.1, 0.1, -0.1, -0.1], dtype=np.float32)

    assert signal.si_sdr(reference, reference + noise) == pytest.approx(20.0, abs=1e-5)


def test_si_sdr_ignores_gain_and_offset(speech: np.ndarray) -> None:
    noisy = speech + 0.01 * np.random.default_rng(0).standard_normal(len(speech)).astype("f4")

    expected = signal.si_sdr(speech, noisy)

    assert signal.si_sdr(speech, 0.9 * noisy + 0.1) == pytest.approx(expected, abs=1e-3)


def test_si_sdr_of_silence_is_the_lower_limit_and_of_identity_the_upper(
    speech: np.ndarray,
) -> None:
    assert signal.si_sdr(speech, np.zeros_like(speech)) == -100.0
    assert signal.si_sdr(speech, speech) == 100.0


def test_si_sdr_falls_far_when_the_estimate_is_ten_samples_late(speech: np.ndarray) -> None:
    assert signal.si_sdr(speech, delayed(speech, 10)) < 3.0


def test_si_sdr_has_no_value_for_a_silent_reference(speech: np.ndarray) -> None:
    with pytest.raises(Unmeasurable, match="reference is silent"):
        signal.si_sdr(np.zeros_like(speech), speech)


def test_stft_distance_of_a_gain_is_its_logarithm() -> None:
    noise = np.random.default_rng(1).standard_normal(16_000).astype(np.float32)

    assert signal.stft_distance(noise, 0.9 * noise) == pytest.approx(-math.log(0.9), abs=1e-4)


def test_mel_cepstral_distortion_ignores_gain_but_not_a_tilt(speech: np.ndarray) -> None:
    noise = np.random.default_rng(1).standard_normal(16_000).astype(np.float32)
    tilted = np.convolve(noise, [1.0, 0.5], "same").astype(np.float32)

    assert signal.mel_cepstral_distortion(noise, 0.9 * noise, 16_000) < 1e-4
    assert signal.mel_cepstral_distortion(noise, tilted, 16_000) > 1.0


def test_mel_cepstral_distortion_of_a_cosine_envelope_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Log envelopes that differ by a * cos(3 w) have one cepstrum, so MCD = 10/ln 10 sqrt(2) a."""
    bands = (torch.arange(80) + 0.5) * torch.pi / 80
    mels = torch.stack([torch.zeros(80, 5), (0.2 * torch.cos(3 * bands))[:, None].expand(80, 5)])
    monkeypatch.setattr(signal, "log_mel_spectrogram", lambda *args, **kwargs: mels)
    waveform = np.ones(100, np.float32)

    result = signal.mel_cepstral_distortion(waveform, waveform, 16_000)

    assert result == pytest.approx(10 / math.log(10) * math.sqrt(2) * 0.2, rel=1e-5)


def test_level_difference_of_a_gain_is_its_decibels(speech: np.ndarray) -> None:
    difference = signal.level_difference_db(speech, 0.9 * speech)

    assert difference == pytest.approx(20 * math.log10(0.9), abs=1e-4)
    assert signal.level_difference_db(speech, 0 * speech) == -100.0


@pytest.mark.parametrize("lag", [10, 320])
def test_delay_is_found(speech: np.ndarray, lag: int) -> None:
    assert signal.delay_ms(speech, delayed(speech, lag), 16_000) == lag / 16
    assert signal.delay_ms(delayed(speech, lag), speech, 16_000) == -lag / 16


def test_unequal_lengths_are_refused(speech: np.ndarray) -> None:
    with pytest.raises(ValueError, match="of one length"):
        signal.si_sdr(speech, speech[1:])
