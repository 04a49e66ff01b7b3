import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmcodec.spectral import Mel, log_mel_spectrogram, mel_filterbank, mel_spectrogram, stft


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slaney_mels_to_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))


def htk_mels_to_hz(mels: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mels / 2595) - 1)


TOP_MELS = {
    "slaney": 15 + 27 * np.log(8000 / 1000) / np.log(6.4),
    "htk": 2595 * np.log10(1 + 8000 / 700),
}
TO_HZ = {"slaney": slaney_mels_to_hz, "htk": htk_mels_to_hz}


@pytest.mark.parametrize("formula", ["slaney", "htk"])
@pytest.mark.parametrize(("n_fft", "num_mels"), [(1024, 80), (2048, 64), (512, 40)])
def test_filterbank_equals_interpolated_triangles(formula, n_fft, num_mels):
    edges = TO_HZ[formula](np.linspace(0, TOP_MELS[formula], num_mels + 2))
    bins = np.arange(n_fft // 2 + 1) * 16000 / n_fft
    expected = np.stack(
        [
            np.interp(bins, edges[m : m + 3], [0, 2 / (edges[m + 2] - edges[m]), 0])
            for m in range(num_mels)
        ]
    )

    filters = mel_filterbank(
        Mel(sample_rate=16000, n_fft=n_fft, num_mels=num_mels, formula=formula)
    )

    torch.testing.assert_close(filters, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-8)


def test_filter_peaks_stand_at_the_frequencies_that_librosa_documents():
    # librosa.mel_frequencies(n_mels=40), without its first and last entry.
    first = [85.317, 170.635, 255.952, 341.269, 426.586, 511.904, 597.221, 682.538, 767.855]
    then = [853.173, 938.49, 1024.856, 1119.114, 1222.042, 1334.436]
    n_fft = 32768

    filters = mel_filterbank(Mel(sample_rate=22050, n_fft=n_fft, num_mels=38))

    peaks_hz = filters.argmax(dim=1)[:15] * 22050 / n_fft
    torch.testing.assert_close(peaks_hz, torch.tensor(first + then), rtol=0, atol=22050 / n_fft)


def test_filters_stay_within_the_range_and_have_unit_area():
    filters = mel_filterbank(
        Mel(sample_rate=16000, n_fft=16384, num_mels=20, f_min=300.0, f_max=4000.0)
    )

    bins_hz = torch.arange(8193) * 16000 / 16384
    outside = (bins_hz <= 300) | (bins_hz >= 4000)
    assert filters[:, outside].abs().max() == 0
    areas = filters.sum(dim=1) * 16000 / 16384
    torch.testing.assert_close(areas, torch.ones(20), rtol=1e-3, atol=0)


def test_empty_filters_are_refused():
    with pytest.raises(ValueError, match=r"14 of 80 mel filters on n_fft 128 .* fewer mels"):
        mel_filterbank(Mel(sample_rate=16000, n_fft=128, num_mels=80))


def test_release_filterbanks_have_the_known_empty_filters_when_allowed():
    num_empty = []
    for n_fft in (1024, 512, 256, 128):
        filters = mel_filterbank(
            Mel(
                sample_rate=16000, n_fft=n_fft, num_mels=80, formula="htk", allow_empty_filters=True
            )
        )
        num_empty.append(int((filters.amax(dim=1) == 0).sum()))

    assert num_empty == [0, 0, 2, 13]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f_min": 5000.0, "f_max": 4000.0}, "f_min=5000"),
        ({"f_max": 8001.0}, "f_max=8001"),
        ({"f_min": -1.0}, "f_min=-1"),
        ({"num_mels": 0}, "num_mels=0"),
    ],
)
def test_impossible_filterbanks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mel_filterbank(Mel(**{"sample_rate": 16000, "n_fft": 512, "num_mels": 20, **changes}))


def test_writing_into_a_filterbank_leaves_the_next_one_whole():
    sizes = {"sample_rate": 16000, "n_fft": 512, "num_mels": 20}
    first = mel_filterbank(Mel(**sizes))
    expected = first.clone()

    first.zero_()

    torch.testing.assert_close(mel_filterbank(Mel(**sizes)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("n_fft", "hop_length", "win_length"), [(256, 64, 256), (128, 30, 128), (512, 100, 400)]
)
def test_stft_equals_windowed_numpy_transforms(n_fft, hop_length, win_length):
    waveform = noise(2, 1503).double()
    left = (n_fft - hop_length) // 2
    right = n_fft - hop_length - left
    padded = np.pad(waveform.numpy(), ((0, 0), (left, right)), mode="reflect")
    window = np.zeros(n_fft)
    start = (n_fft - win_length) // 2
    window[start : start + win_length] = np.sin(np.pi * np.arange(win_length) / win_length) ** 2
    expected = np.stack(
        [
            np.fft.rfft(padded[:, frame * hop_length : frame * hop_length + n_fft] * window)
            for frame in range(1503 // hop_length)
        ],
        axis=2,
    )

    spectrum = stft(waveform, n_fft, hop_length, win_length)

    torch.testing.assert_close(spectrum, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n_fft", "hop_length", "win_length"), [(64, 16, 64), (63, 21, 40)])
def test_gradient_of_the_stft_is_that_of_torch(n_fft, hop_length, win_length):
    waveform = torch.randn(2, 210, requires_grad=True)
    spectrum = stft(waveform, n_fft, hop_length, win_length)

    left = (n_fft - hop_length) // 2
    expected = torch.stft(
        F.pad(waveform[None], (left, n_fft - hop_length - left), mode="reflect")[0],
        n_fft,
        hop_length=hop_length,
        win_length=win_length,
        window=torch.hann_window(win_length),
        center=False,
        return_complex=True,
    )

    weights = torch.randn_like(spectrum)
    torch.testing.assert_close(spectrum, expected)
    torch.testing.assert_close(
        torch.autograd.grad(spectrum, waveform, weights),
        torch.autograd.grad(expected, waveform, weights),
    )


def test_sine_gives_half_the_window_sum_at_its_bin():
    n_fft, frequency_bin = 256, 20
    time = torch.arange(4096, dtype=torch.float64)
    waveform = 0.5 * torch.sin(2 * math.pi * frequency_bin / n_fft * time)[None]

    magnitudes = stft(waveform, n_fft, 64, n_fft).abs()[0, :, 4:-4]

    # A periodic Hann window of n samples sums to n / 2 and reaches one bin to each side.
    expected = torch.zeros_like(magnitudes)
    expected[frequency_bin] = 0.5 * n_fft / 4
    expected[frequency_bin - 1] = expected[frequency_bin + 1] = 0.5 * n_fft / 8
    torch.testing.assert_close(magnitudes, expected, rtol=1e-9, atol=1e-9)


def test_frame_is_centred_half_a_hop_after_its_start():
    waveform = torch.zeros(1, 1000)
    waveform[0, 7 * 50 + 25] = 1.0

    energy = stft(waveform, 200, 50, 200).abs().square().sum(dim=1)[0]

    assert energy.argmax() == 7
    torch.testing.assert_close(energy[6], energy[8])


@pytest.mark.parametrize("num_samples", [1, 2, 60, 90])
def test_short_waveform_counts_as_followed_by_silence(num_samples):
    waveform = noise(1, num_samples)
    # 256 - 64 = 192 samples of reflection, 96 on the right: 97 samples are the fewest.
    continued = torch.nn.functional.pad(waveform, (0, 97 - num_samples))

    torch.testing.assert_close(stft(waveform, 256, 64, 256), stft(continued, 256, 64, 256))


def test_half_precision_waveform_is_transformed_in_float32():
    waveform = noise(1, 800).half()

    torch.testing.assert_close(
        stft(waveform, 256, 64, 256), stft(waveform.float(), 256, 64, 256), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((800,), (256, 64, 256), r"\[800\]"),
        ((1, 1, 800), (256, 64, 256), r"\[1, 1, 800\]"),
        ((1, 0), (256, 64, 256), r"\[1, 0\]"),
        ((1, 800), (256, 257, 256), "got 257"),
        ((1, 800), (256, 0, 256), "got 0"),
        ((1, 800), (256, 64, 300), "got 300"),
    ],
)
def test_stft_refuses_wrong_shapes_and_sizes(shape, sizes, message):
    with pytest.raises(ValueError, match=message):
        stft(torch.zeros(shape), *sizes)


def test_mel_spectrogram_is_the_filterbank_times_the_magnitudes():
    waveform = noise(2, 2000)
    filters = mel_filterbank(Mel(sample_rate=16000, n_fft=512, num_mels=30))
    expected = torch.einsum("mf,bfl->bml", filters, stft(waveform, 512, 128, 512).abs())

    mels = mel_spectrogram(waveform, Mel(sample_rate=16000, n_fft=512, num_mels=30))

    torch.testing.assert_close(mels, expected)


def test_log_mel_of_silence_is_the_floor():
    log_mels = log_mel_spectrogram(
        torch.zeros(1, 2000), Mel(sample_rate=16000, n_fft=512, num_mels=30)
    )

    torch.testing.assert_close(log_mels, torch.full_like(log_mels, math.log(1e-5)))


def test_tables_made_in_inference_mode_serve_training():
    # Sizes that no other test uses, so that the tables are made here.
    sizes = {"sample_rate": 16000, "n_fft": 480, "hop_length": 111, "win_length": 479}
    with torch.inference_mode():
        mel_spectrogram(noise(1, 2000), Mel(**sizes, num_mels=17))
    waveform = noise(1, 2000).requires_grad_()

    mel_spectrogram(waveform, Mel(**sizes, num_mels=17)).sum().backward()

    assert waveform.grad is not None
    assert waveform.grad.abs().max() > 0
