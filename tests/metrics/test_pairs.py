import numpy as np
import pytest
from pesq import pesq as pesq_package
from pystoi import stoi as pystoi_package

from dmcodec.audio import Waveform, resample
from dmcodec.metrics.intelligibility import stoi
from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.opinion import pesq_wb
from dmcodec.metrics.signal import log_mel, mel_distance

SAMPLE_RATE = 16_000
MEASURES = [stoi, pesq_wb, mel_distance]


@pytest.fixture(scope="module")
def speech() -> Waveform:
    """Two seconds of syllables of a harmonic tone, with noise between them."""
    time_s = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * 120 * n * time_s + n * n) / n for n in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_s), 0, 1)
    noise = np.random.default_rng(1).standard_normal(len(time_s))
    return (0.1 * tone * syllables + 0.002 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def noisy(speech: Waveform) -> Waveform:
    noise = np.random.default_rng(2).standard_normal(len(speech))
    return (speech + 0.003 * noise).astype(np.float32)


def test_identical_waveforms_score_best(speech):
    assert stoi(speech, speech, SAMPLE_RATE) == pytest.approx(1.0)
    assert pesq_wb(speech, speech, SAMPLE_RATE) == pytest.approx(4.644, abs=1e-3)
    assert mel_distance(speech, speech, SAMPLE_RATE) == 0.0


def test_scores_equal_those_of_the_packages(speech, noisy):
    assert stoi(speech, noisy, SAMPLE_RATE) == pystoi_package(speech, noisy, SAMPLE_RATE)
    assert pesq_wb(speech, noisy, SAMPLE_RATE) == pesq_package(SAMPLE_RATE, speech, noisy, "wb")


def test_pesq_at_another_rate_is_computed_at_16_khz(speech, noisy):
    speech_24, noisy_24 = (resample(each, SAMPLE_RATE, 24_000) for each in (speech, noisy))

    score = pesq_wb(speech_24, noisy_24, 24_000)

    # Twice resampled: the band above 7.5 kHz is not quite what it was.
    assert score == pytest.approx(pesq_wb(speech, noisy, SAMPLE_RATE), abs=0.05)


def test_more_noise_scores_worse(speech, noisy):
    noisier = speech + 5 * (noisy - speech)

    assert stoi(speech, noisier, SAMPLE_RATE) < stoi(speech, noisy, SAMPLE_RATE) < 1
    assert pesq_wb(speech, noisier, SAMPLE_RATE) < pesq_wb(speech, noisy, SAMPLE_RATE)
    assert mel_distance(speech, noisier, SAMPLE_RATE) > mel_distance(speech, noisy, SAMPLE_RATE)


def test_mel_distance_of_twice_the_level_is_the_logarithm_of_two():
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, 8_000).astype(np.float32)

    assert mel_distance(noise, 2 * noise, SAMPLE_RATE) == pytest.approx(np.log(2), rel=1e-5)


def test_mel_distance_counts_from_the_floor_of_silence(speech):
    silence = np.zeros_like(speech)

    expected = np.mean(log_mel(speech, SAMPLE_RATE) - np.log(1e-5))

    assert mel_distance(speech, silence, SAMPLE_RATE) == pytest.approx(expected, rel=1e-5)


def test_mel_distance_takes_one_sample():
    assert mel_distance(np.ones(1, np.float32), np.ones(1, np.float32), SAMPLE_RATE) == 0.0


def test_silent_estimate_has_no_intelligibility_and_no_pesq(speech):
    silence = np.zeros_like(speech)

    assert stoi(speech, silence, SAMPLE_RATE) == 0.0
    with pytest.raises(Unmeasurable, match="PESQ: the estimate is silent"):
        pesq_wb(speech, silence, SAMPLE_RATE)


def test_silent_reference_is_unmeasurable(speech):
    silence = np.zeros_like(speech)

    with pytest.raises(Unmeasurable, match="STOI: the reference is silent"):
        stoi(silence, speech, SAMPLE_RATE)
    with pytest.raises(Unmeasurable, match="PESQ: the reference is silent"):
        pesq_wb(silence, speech, SAMPLE_RATE)


@pytest.mark.parametrize("num_samples", [1, 400, 3_900])
def test_too_short_is_unmeasurable(speech, num_samples):
    short = speech[:num_samples]

    with pytest.raises(Unmeasurable, match="STOI"):
        stoi(short, short, SAMPLE_RATE)
    with pytest.raises(Unmeasurable, match="PESQ"):
        pesq_wb(short, short, SAMPLE_RATE)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_never_become_a_score(speech, measure, bad):
    broken = speech.copy()
    broken[1_000] = bad

    with pytest.raises(Unmeasurable, match="estimate has NaN or infinite"):
        measure(speech, broken, SAMPLE_RATE)
    with pytest.raises(Unmeasurable, match="reference has NaN or infinite"):
        measure(broken, speech, SAMPLE_RATE)


@pytest.mark.parametrize("measure", MEASURES)
def test_unequal_lengths_are_refused(speech, measure):
    with pytest.raises(ValueError, match="of one length"):
        measure(speech, speech[:-1], SAMPLE_RATE)
    with pytest.raises(ValueError, match="of one length"):
        measure(speech[None], speech[None], SAMPLE_RATE)
