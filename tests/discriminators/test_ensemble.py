import pytest
import torch
from pydantic import ValidationError

from dmcodec.discriminators.ensemble import DiscriminatorConfig, Discriminators

SMALL = DiscriminatorConfig(
    periods=(2, 3),
    period_channels=(4, 8, 8),
    num_scales=2,
    scale_channels=(4, 4, 8, 8, 8, 8, 8),
    n_ffts=(64, 128, 256),
    stft_filters=4,
    log_n_ffts=(128,),
    log_stft_channels=(4, 4),
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def num_parameters(config: DiscriminatorConfig) -> int:
    with torch.device("meta"):
        discriminators = Discriminators(config)
    return sum(parameter.numel() for parameter in discriminators.parameters())


def test_every_part_gives_logits_and_its_number_of_feature_maps():
    output = Discriminators(SMALL)(noise(2, 1, 800))

    # Period and scale: every layer and the logits; both kinds of STFT: without the logits.
    assert len(output.logits) == 2 + 2 + 3 + 1
    assert [len(maps) for maps in output.feature_maps] == [4, 4, 8, 8, 5, 5, 5, 2]


def test_parts_come_in_the_order_of_the_configuration():
    output = Discriminators(SMALL)(noise(1, 1, 960))

    assert [logits.shape[-1] for logits in output.logits[:2]] == [2, 3]
    num_frames = [logits.shape[2] for logits in output.logits[4:]]
    # The logarithms of 128 samples come last, half a window apart.
    assert num_frames == [960 // 16, 960 // 32, 960 // 64, 960 // 64]


@pytest.mark.parametrize(
    ("left_out", "num_parts"),
    [({"periods": ()}, 6), ({"num_scales": 0}, 6), ({"n_ffts": ()}, 5), ({"log_n_ffts": ()}, 7)],
)
def test_empty_kind_is_left_out(left_out, num_parts):
    config = SMALL.model_copy(update=left_out)

    assert len(Discriminators(config)(noise(1, 1, 400)).logits) == num_parts


def test_default_sizes_have_the_parameters_of_the_paper():
    # Weights (the magnitude and direction of a weight-normalised layer), biases.
    def convolution(num_in, num_out, kernel_size, groups=1):
        return num_out * (num_in // groups) * kernel_size + num_out + num_out

    period = (
        convolution(1, 32, 5)
        + convolution(32, 128, 5)
        + convolution(128, 512, 5)
        + convolution(512, 1024, 5)
        + convolution(1024, 1024, 5)
        + convolution(1024, 1, 3)
    )
    scale = (
        convolution(1, 128, 15)
        + convolution(128, 128, 41, groups=4)
        + convolution(128, 256, 41, groups=16)
        + convolution(256, 512, 41, groups=16)
        + convolution(512, 1024, 41, groups=16)
        + convolution(1024, 1024, 41, groups=16)
        + convolution(1024, 1024, 5)
        + convolution(1024, 1, 3)
    )
    spectral = (
        convolution(2, 32, 27)
        + 3 * convolution(32, 32, 27)
        + convolution(32, 32, 9)
        + convolution(32, 1, 9)
    )

    assert num_parameters(DiscriminatorConfig()) == 5 * period + 3 * scale + 5 * spectral


@pytest.mark.parametrize("num_samples", [1, 2, 7, 12, 100, 801])
def test_every_part_sees_every_sample_of_any_length(num_samples):
    discriminators = Discriminators(SMALL)
    waveform = noise(1, 1, num_samples).requires_grad_()

    for logits in discriminators(waveform).logits:
        (gradient,) = torch.autograd.grad(logits.square().sum(), waveform, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().min() > 0


def test_items_of_a_batch_are_judged_alone():
    discriminators = Discriminators(SMALL)
    waveform = noise(3, 1, 500)

    together = discriminators(waveform)
    alone = discriminators(waveform[1:2])

    for logits, logits_alone in zip(together.logits, alone.logits, strict=True):
        torch.testing.assert_close(logits[1:2], logits_alone, rtol=1e-4, atol=1e-6)


def test_judging_changes_no_state():
    discriminators = Discriminators(SMALL).train()
    before = {key: value.clone() for key, value in discriminators.state_dict().items()}

    discriminators(noise(1, 1, 500))

    for key, value in discriminators.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_silence_gives_finite_gradients():
    discriminators = Discriminators(SMALL)
    waveform = torch.zeros(1, 1, 500, requires_grad=True)

    output = discriminators(waveform)
    torch.stack([logits.square().sum() for logits in output.logits]).sum().backward()

    assert waveform.grad.isfinite().all()
    for parameter in discriminators.parameters():
        assert parameter.grad.isfinite().all()


def test_autocast_runs_with_close_results():
    discriminators = Discriminators(SMALL)
    waveform = noise(1, 1, 500)
    expected = discriminators(waveform)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = discriminators(waveform)

    # bfloat16 keeps 8 bits; the layers add up to a few percent of the largest logit.
    for logits, reference in zip(output.logits, expected.logits, strict=True):
        tolerance = 0.05 * reference.abs().max().item()
        torch.testing.assert_close(logits.float(), reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(800,), (2, 800), (2, 2, 800), (1, 1, 0)])
def test_other_shapes_than_mono_batches_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, 1, T\]"):
        Discriminators(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"periods": (), "num_scales": 0, "n_ffts": ()}, "no discriminator left"),
        ({"periods": (0,)}, "periods"),
        ({"period_channels": ()}, "period_channels"),
        ({"scale_channels": (8, 8)}, "scale_channels"),
        ({"n_ffts": (30,)}, "n_ffts"),
        ({"stft_filters": 0}, "stft_filters"),
        ({"filters": 8}, "filters"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        DiscriminatorConfig(**changes)
