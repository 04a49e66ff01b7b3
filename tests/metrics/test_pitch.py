import numpy as np
import pytest

from dmcodec.metrics import pitch
from dmcodec.metrics.measure import Unmeasurable

librosa = pytest.importorskip("librosa", reason="pip install 'dmcodec[eval]'")


def voice(f0_hz: np.ndarray) -> np.ndarray:
    """Ten harmonics of a fundamental [T] at 16 kHz."""
    phase = 2 * np.pi * np.cumsum(f0_hz) / 16_000
    return sum(0.1 / n * np.sin(n * phase) for n in range(1, 11)).astype(np.float32)


RISING = np.linspace(120, 180, 16_000)


def test_track_follows_a_rising_voice_within_its_steps() -> None:
    track = pitch.track_pitch(voice(RISING), 16_000)

    middle = slice(10, 90)
    times = np.arange(101) * 160
    expected = RISING[np.minimum(times, 15_999)]
    assert track.is_voiced[middle].all()
    np.testing.assert_allclose(track.f0_hz[middle], expected[middle], rtol=0.02)


def test_track_is_that_of_librosa(speech: np.ndarray) -> None:
    clip = speech[8_000:24_000]
    f0_hz, is_voiced, _ = librosa.pyin(
        clip, fmin=60, fmax=400, sr=16_000, frame_length=1024, hop_length=160, resolution=0.2
    )

    track = pitch.track_pitch(clip, 16_000)

    np.testing.assert_array_equal(track.is_voiced, is_voiced)
    np.testing.assert_array_equal(track.f0_hz[is_voiced], f0_hz[is_voiced])


def test_a_voice_a_tenth_higher_is_off_by_that_and_still_correlates() -> None:
    low, high = (pitch.track_pitch(voice(k * RISING), 16_000) for k in (1.0, 1.1))

    assert pitch.f0_rmse_hz(low, high) == pytest.approx(15.0, abs=1.5)  # a tenth of 120 to 180
    assert pitch.f0_correlation(low, high) > 0.98
    assert pitch.voicing_error(low, high) < 0.05


def test_silence_is_unvoiced_and_errs_wherever_the_original_speaks() -> None:
    spoken = pitch.track_pitch(voice(RISING), 16_000)
    silent = pitch.track_pitch(np.zeros(16_000, np.float32), 16_000)

    assert pitch.voicing_error(spoken, silent) == spoken.is_voiced.mean()
    with pytest.raises(Unmeasurable, match="0 frames are voiced in both"):
        pitch.f0_rmse_hz(spoken, silent)


def test_a_constant_fundamental_has_no_correlation() -> None:
    steady = pitch.PitchTrack(np.full(50, 120.0), np.ones(50, dtype=bool))

    with pytest.raises(Unmeasurable, match="F0 does not change"):
        pitch.f0_correlation(steady, steady)
