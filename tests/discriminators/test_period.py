import pytest
import torch

from dmcodec.discriminators.period import PeriodDiscriminator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("period", [2, 3, 7])
def test_shift_by_whole_strided_rows_shifts_the_logits(period):
    # One layer of stride 3 and one of stride 1: three rows of samples are one row of logits.
    discriminator = PeriodDiscriminator(period, [4, 8])
    waveform = noise(2, 1, 60 * period)

    logits, _ = discriminator(waveform)
    logits_of_shifted, _ = discriminator(waveform[:, :, 3 * period :])

    # Rows at the edges see the zeros around the waveform.
    torch.testing.assert_close(logits_of_shifted[:, :, 4:-4], logits[:, :, 5:-4])


def test_shift_by_less_than_a_period_moves_columns():
    discriminator = PeriodDiscriminator(5, [4, 8])
    waveform = noise(1, 1, 60 * 5 + 2)

    logits, _ = discriminator(waveform[:, :, : 60 * 5])
    logits_of_shifted, _ = discriminator(waveform[:, :, 2:])

    torch.testing.assert_close(logits_of_shifted[..., :3], logits[..., 2:])


def test_samples_of_one_phase_reach_one_column_only():
    discriminator = PeriodDiscriminator(5, [4, 8])
    waveform = noise(1, 1, 300)
    changed = waveform.clone()
    changed[:, :, 3::5] += 1.0

    _, maps = discriminator(waveform)
    _, changed_maps = discriminator(changed)

    for feature_map, changed_map in zip(maps, changed_maps, strict=True):
        columns = (feature_map != changed_map).flatten(0, 2).any(dim=0)
        assert columns.tolist() == [False, False, False, True, False]


def test_unfinished_row_is_continued_by_reflection():
    discriminator = PeriodDiscriminator(5, [4, 8])
    waveform = noise(1, 1, 103)

    logits, _ = discriminator(waveform)
    expected, _ = discriminator(
        torch.cat([waveform, waveform[:, :, 101:102], waveform[:, :, 100:101]], dim=2)
    )

    torch.testing.assert_close(logits, expected)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="got 0"):
        PeriodDiscriminator(0, [4])
    with pytest.raises(ValueError, match="at least one layer"):
        PeriodDiscriminator(2, [])
