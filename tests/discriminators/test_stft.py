import pytest
import torch

from dmcodec.discriminators.stft import StftDiscriminator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_shift_by_a_hop_shifts_the_logits_by_a_frame():
    discriminator = StftDiscriminator(64, 4)
    waveform = noise(2, 1, 64 * 20)

    logits, _ = discriminator(waveform)
    logits_of_shifted, _ = discriminator(waveform[:, :, 16:])

    # 10 frames of dilated convolutions and 2 of reflection at each edge.
    torch.testing.assert_close(
        logits_of_shifted[:, :, 13:-13], logits[:, :, 14:-13], rtol=1e-4, atol=1e-6
    )


def test_logits_look_ten_frames_to_each_side():
    discriminator = StftDiscriminator(64, 4)
    waveform = noise(1, 1, 16 * 60).requires_grad_()

    logits, _ = discriminator(waveform)
    logits[:, :, 30].sum().backward()

    # First 3, dilated 1 + 2 + 4, last 1 and head 1 frames to each side, each frame of 64 samples
    # (the first of them has weight 0 in the window).
    seen = waveform.grad[0, 0].nonzero().flatten()
    centre = 30 * 16 + 8
    assert seen[0] == centre - 10 * 16 - 32 + 1
    assert seen[-1] == centre + 10 * 16 + 31


def test_spectrum_of_white_noise_enters_with_unit_power():
    discriminator = StftDiscriminator(256, 4)
    inputs = []
    discriminator.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))

    discriminator(noise(1, 1, 64000))

    # Real and imaginary part; 3 %: the spread of the mean over 1000 overlapping frames.
    power = inputs[0].square().sum(dim=1).mean()
    torch.testing.assert_close(power, torch.tensor(1.0), rtol=0.03, atol=0)


def test_phase_is_seen():
    discriminator = StftDiscriminator(64, 4)
    waveform = noise(1, 1, 640)

    logits, _ = discriminator(waveform)
    logits_of_inverted, _ = discriminator(-waveform)

    assert (logits - logits_of_inverted).abs().max() > 1e-3


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        StftDiscriminator(30, 4)
    with pytest.raises(ValueError, match="num_filters must be positive, got 0"):
        StftDiscriminator(64, 0)
