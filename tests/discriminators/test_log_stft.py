import math

import torch

from dmcodec.discriminators.log_stft import LogStftDiscriminator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(discriminator: LogStftDiscriminator, waveform: torch.Tensor) -> torch.Tensor:
    seen = []
    handle = discriminator.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    discriminator(waveform)
    handle.remove()
    return seen[0]


def test_halving_the_waveform_lowers_every_input_by_its_logarithm():
    discriminator = LogStftDiscriminator(64, (4,))
    waveform = noise(1, 1, 6400)

    loud, quiet = (inputs_of(discriminator, gain * waveform) for gain in (1.0, 0.5))

    # In units of the deviation, 2; some bins of noise lie near the floor.
    torch.testing.assert_close(
        (loud - quiet).median(), torch.tensor(math.log(2) / 2), rtol=1e-3, atol=0
    )


def test_silence_and_its_gradient_are_finite():
    discriminator = LogStftDiscriminator(64, (4, 4))
    waveform = torch.zeros(1, 1, 640, requires_grad=True)

    logits, _ = discriminator(waveform)
    logits.sum().backward()

    assert bool(logits.isfinite().all())
    assert bool(waveform.grad.isfinite().all())


def test_sign_and_delay_by_a_hop_are_not_heard():
    discriminator = LogStftDiscriminator(64, (4, 4, 4, 4))
    waveform = noise(2, 1, 64 * 20)

    logits, _ = discriminator(waveform)

    torch.testing.assert_close(discriminator(-waveform)[0], logits)
    # Five layers of 3 frames, and 1 of reflection at each edge.
    delayed, _ = discriminator(waveform[:, :, 32:])
    torch.testing.assert_close(delayed[:, :, 7:-7], logits[:, :, 8:-7], rtol=1e-4, atol=1e-6)


def test_frequencies_are_halved_twice():
    discriminator = LogStftDiscriminator(256, (2, 2, 4, 4))

    logits, maps = discriminator(noise(1, 1, 640))

    # 129 bins, halved twice (rounded up), then kept.
    assert [each.shape[-1] for each in maps] == [65, 33, 33, 33]
    assert logits.shape == (1, 1, 5, 33)
