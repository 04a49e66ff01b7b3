import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from pystoi import stoi
from safetensors.torch import load_file

from dmcodec.losses.reconstruction import (
    PAPER_MEL_SCALES,
    RELEASE_MEL_SCALES,
    STFT_SCALES,
    MelScale,
    StftScale,
    envelope_loss,
    mel_loss,
    stft_loss,
    waveform_l1_loss,
)

GOLDEN = Path(__file__).parents[1] / "golden"
LOG_SCALE = {
    "n_fft": 512,
    "hop_length": 128,
    "win_length": 512,
    "num_mels": 40,
    "compression": "log",
    "l1_weight": 1.0,
    "l2_weight": 0.0,
}
LOSSES = {
    "waveform": waveform_l1_loss,
    "mel_paper": lambda reference, estimate: mel_loss(reference, estimate, PAPER_MEL_SCALES, 16000),
    "mel_release": lambda reference, estimate: mel_loss(
        reference, estimate, RELEASE_MEL_SCALES, 16000
    ),
    "stft": lambda reference, estimate: stft_loss(reference, estimate, STFT_SCALES),
    "envelope": lambda reference, estimate: envelope_loss(reference, estimate, 16000),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def release() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "release_losses.safetensors") | load_file(
        GOLDEN / "release_losses_estimate.safetensors"
    )


def test_waveform_loss_equals_the_release(release):
    loss = waveform_l1_loss(release["reference"], release["estimate"])

    torch.testing.assert_close(loss, release["loss_waveform"])


@pytest.mark.parametrize("index", range(4))
def test_mel_loss_of_each_scale_equals_the_release(release, index):
    scale = RELEASE_MEL_SCALES[index].model_copy(update={"l1_weight": 1.0})

    loss = mel_loss(release["reference"], release["estimate"], [scale], 16000)

    torch.testing.assert_close(loss, release["loss_mels"][index])


def test_mel_loss_of_the_release_column_weighs_the_scales_45_1_1_1(release):
    loss = mel_loss(release["reference"], release["estimate"], RELEASE_MEL_SCALES, 16000)

    expected = (release["loss_mels"] * torch.tensor([45.0, 1.0, 1.0, 1.0])).sum()
    torch.testing.assert_close(loss, expected)


def test_paper_column_has_64_mels_and_windows_32_to_2048_with_both_norms():
    assert [scale.win_length for scale in PAPER_MEL_SCALES] == [32, 64, 128, 256, 512, 1024, 2048]
    assert {(scale.num_mels, scale.l1_weight, scale.l2_weight) for scale in PAPER_MEL_SCALES} == {
        (64, 1.0, 1.0)
    }


def test_waveform_loss_by_hand():
    reference = torch.tensor([[[0.0, 0.5, -0.25]], [[1.0, 0.0, 0.0]]])
    estimate = torch.tensor([[[0.25, 0.0, -0.25]], [[0.0, 0.0, 0.5]]])

    loss = waveform_l1_loss(reference, estimate)

    torch.testing.assert_close(loss, torch.tensor((0.25 + 0.5 + 1.0 + 0.5) / 6))


def test_log_mel_loss_of_a_halved_waveform_is_the_logarithm_of_two():
    reference = noise(2, 1, 4000)
    scale = MelScale(**{**LOG_SCALE, "l1_weight": 3.0, "l2_weight": 5.0})

    loss = mel_loss(reference, reference / 2, [scale], 16000)

    expected = 3 * math.log(2) + 5 * math.log(2) ** 2
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-5, atol=0)


def test_linear_mel_loss_grows_with_the_level_and_its_square():
    reference, estimate = noise(2, 1, 4000), noise(2, 1, 4000, seed=1)
    l1_scale = MelScale(**{**LOG_SCALE, "compression": "linear"})
    l2_scale = l1_scale.model_copy(update={"l1_weight": 0.0, "l2_weight": 1.0})

    l1_loss = mel_loss(reference, estimate, [l1_scale], 16000)
    l2_loss = mel_loss(reference, estimate, [l2_scale], 16000)
    louder = mel_loss(4 * reference, 4 * estimate, [l1_scale, l2_scale], 16000)

    torch.testing.assert_close(louder, 4 * l1_loss + 16 * l2_loss)


def test_stft_loss_of_a_halved_waveform_is_half_plus_the_logarithm_of_two():
    reference = noise(2, 1, 4000)

    loss = stft_loss(reference, reference / 2, STFT_SCALES)

    # 1e-3: a few of the bins lie under the floor of the logarithm.
    torch.testing.assert_close(loss, torch.tensor(0.5 + math.log(2)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_waveforms_have_no_loss(name):
    waveform = noise(2, 1, 3000)

    # A correlation is a quotient: the envelopes' is 1 but for rounding.
    assert LOSSES[name](waveform, waveform.clone()).abs() <= (1e-6 if name == "envelope" else 0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_gradient_on_a_silent_estimate_is_finite(name, level):
    estimate = torch.zeros(2, 1, 3000, requires_grad=True)

    loss = LOSSES[name](level * noise(2, 1, 3000), estimate)
    loss.backward()

    assert loss.isfinite()
    assert estimate.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_on_a_silent_reference_is_finite(name):
    estimate = noise(2, 1, 3000).requires_grad_()

    LOSSES[name](torch.zeros(2, 1, 3000), estimate).backward()

    assert estimate.grad.isfinite().all()
    # Silence has no envelope to correlate with: that term leaves it to the others.
    assert bool(estimate.grad.abs().max() > 0) == (name != "envelope")


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_against_the_gradient_lowers_the_loss(name):
    reference, estimate = noise(1, 1, 3000), noise(1, 1, 3000, seed=1).requires_grad_()
    before = LOSSES[name](reference, estimate)
    before.backward()

    step = 1e-3 * estimate.grad / estimate.grad.norm()

    assert LOSSES[name](reference, estimate.detach() - step) < before


@pytest.mark.parametrize("name", LOSSES)
def test_loss_under_autocast_is_the_float32_loss(name):
    reference, estimate = noise(1, 1, 3000), noise(1, 1, 3000, seed=1)
    expected = LOSSES[name](reference, estimate)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](reference, estimate)

    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_estimate_is_compared_in_float32(name):
    reference, estimate = noise(1, 1, 3000), noise(1, 1, 3000, seed=1).bfloat16()

    loss = LOSSES[name](reference.bfloat16(), estimate)

    expected = LOSSES[name](reference.bfloat16().float(), estimate.float())
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "shapes", [((2, 1, 800), (1, 1, 800)), ((1, 1, 800), (1, 1, 801)), ((1, 1, 800), (1, 800))]
)
def test_unequal_shapes_are_refused(name, shapes):
    with pytest.raises(ValueError, match="equal shapes"):
        LOSSES[name](torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(2, 800), (2, 2, 800)])
def test_other_shapes_than_mono_batches_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"\[B, 1, T\]"):
        LOSSES[name](torch.zeros(shape), torch.zeros(shape))


def test_no_scales_are_refused():
    waveform = torch.zeros(1, 1, 800)
    with pytest.raises(ValueError, match="at least one scale"):
        mel_loss(waveform, waveform, [], 16000)
    with pytest.raises(ValueError, match="at least one scale"):
        stft_loss(waveform, waveform, [])


def test_scale_with_empty_filters_is_refused_unless_allowed():
    waveform = noise(1, 1, 800)
    scale = MelScale(**{**LOG_SCALE, "num_mels": 200})

    allowing = scale.model_copy(update={"allow_empty_filters": True})

    with pytest.raises(ValueError, match="hold no frequency bin"):
        mel_loss(waveform, waveform, [scale], 16000)
    assert mel_loss(waveform, waveform, [allowing], 16000) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop_length": 513}, "must not exceed n_fft"),
        ({"win_length": 513}, "must not exceed n_fft"),
        ({"l1_weight": 0.0}, "remove the scale"),
        ({"l1_weight": -1.0}, "l1_weight"),
        ({"compression": "sqrt"}, "compression"),
        ({"num_bins": 3}, "num_bins"),
    ],
)
def test_impossible_scales_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        MelScale(**{**LOG_SCALE, **changes})


@pytest.mark.parametrize("scale", [*PAPER_MEL_SCALES, *RELEASE_MEL_SCALES])
def test_scales_survive_a_trip_through_a_configuration_file(scale):
    assert MelScale.model_validate_json(scale.model_dump_json()) == scale


def test_stft_scale_refuses_mel_keys():
    with pytest.raises(ValidationError, match="num_mels"):
        StftScale(n_fft=512, hop_length=128, win_length=512, num_mels=40)


@pytest.mark.parametrize("noise_level", [0.1, 0.3, 1.0])
def test_envelope_loss_is_one_minus_stoi(noise_level):
    seconds = torch.arange(40_000) / 10_000  # at STOI's own rate, without a pause
    loudness = 0.3 + torch.sin(2 * math.pi * 3 * seconds).square()
    original = loudness * noise(40_000)
    decoded = original + noise_level * noise(40_000, seed=1)

    loss = envelope_loss(original.view(1, 1, -1), decoded.view(1, 1, -1), 10_000)

    expected = 1 - stoi(original.double().numpy(), decoded.double().numpy(), 10_000)
    assert abs(loss.item() - expected) < 0.005
    assert expected > 0.001


def test_envelope_loss_hears_no_level_but_where_it_changes():
    original = noise(2, 1, 16_000)
    fading = original * torch.linspace(1, 0.1, 16_000)

    assert envelope_loss(original, 0.25 * original, 16_000) < 1e-5
    assert envelope_loss(original, fading, 16_000) > 0.05


def test_envelope_loss_passes_over_silence():
    speech, hiss = noise(1, 1, 16_000), 1e-4 * noise(1, 1, 16_000, seed=1)
    original = torch.cat([speech, torch.zeros(1, 1, 32_000)], dim=-1)
    decoded = torch.cat([speech, hiss, hiss], dim=-1)

    # Only places that reach over the end of the speech hear some of the hiss.
    assert envelope_loss(original, decoded, 16_000) < 0.05
    assert envelope_loss(original, torch.zeros_like(original), 16_000) > 0.5
