import pytest
import torch

from dmcodec.discriminators.scale import ScaleDiscriminator

CHANNELS = (8, 8, 16, 32, 32, 32, 32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_halved_copy_equals_the_waveform_averaged_over_four_samples():
    whole, halved = ScaleDiscriminator(0, CHANNELS), ScaleDiscriminator(1, CHANNELS)
    halved.load_state_dict(whole.state_dict())
    waveform = noise(1, 1, 400)
    padded = torch.nn.functional.pad(waveform, (2, 2))
    averaged = torch.stack([padded[..., start::2][..., :201] for start in range(4)]).mean(dim=0)

    logits, _ = halved(waveform)
    expected, _ = whole(averaged)

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("num_halvings", "is_seen"), [(0, True), (1, False), (2, False)])
def test_only_the_full_rate_sees_the_highest_frequency(num_halvings, is_seen):
    discriminator = ScaleDiscriminator(num_halvings, CHANNELS)
    waveform = noise(1, 1, 8000)
    buzz = 1.0 - 2.0 * (torch.arange(8000) % 2)

    _, (first_map, *_) = discriminator(waveform)
    _, (first_map_with_buzz, *_) = discriminator(waveform + buzz)

    difference = (first_map - first_map_with_buzz)[..., 20:-20].abs().max()
    assert (difference > 1e-3) == is_seen


def test_groups_are_those_of_the_paper_at_its_sizes_and_fewer_below():
    full = ScaleDiscriminator(0, (128, 128, 256, 512, 1024, 1024, 1024))
    small = ScaleDiscriminator(0, CHANNELS)

    assert [layer.groups for layer in full.layers] == [1, 4, 16, 16, 16, 16, 1]
    assert [layer.groups for layer in small.layers] == [1, 1, 1, 2, 4, 4, 1]


def test_shift_by_the_product_of_the_strides_shifts_the_logits():
    discriminator = ScaleDiscriminator(0, CHANNELS)
    waveform = noise(1, 1, 8000)

    logits, _ = discriminator(waveform)
    logits_of_shifted, _ = discriminator(waveform[:, :, 64:])

    # 26 logits at each edge see the zeros around the waveform or around a layer's output.
    torch.testing.assert_close(
        logits_of_shifted[..., 30:-30], logits[..., 31:-30], rtol=1e-4, atol=1e-6
    )


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="got -1"):
        ScaleDiscriminator(-1, CHANNELS)
    with pytest.raises(ValueError, match="7 entries, got 2"):
        ScaleDiscriminator(0, (8, 8))
