import numpy as np
import pytest
import torch
from torch import nn

from dmcodec.codec.conv import (
    Conv1d,
    ConvTranspose1d,
    add_weight_norm,
    ceil_div,
    length_mask,
    pad_reflect,
    remove_weight_norm,
)
from dmcodec.codec.lstm import SkipLSTM

# kernel, stride, dilation: every kind that SEANet has, and odd ones
SHAPES = [(7, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 4), (4, 2, 1), (10, 5, 1), (16, 8, 1), (6, 3, 1)]
LENGTHS = torch.tensor([23, 1, 40, 2, 7, 8, 39])


def mirrored_by_numpy(x, left, right, stride):
    """The padding of one row, written with numpy: zeros for what is too short, then mirrors."""
    right += -len(x) % stride
    num_zeros = max(0, max(left, right) + 1 - len(x))
    padded = np.pad(np.pad(x, (0, num_zeros)), (left, right), mode="reflect")
    return padded[: len(padded) - num_zeros]


def mixed_batch(generator, *, beyond):
    """Rows of LENGTHS steps as [B, 3, T]; what lies beyond them is `beyond`."""
    x = torch.randn(len(LENGTHS), 3, 40, generator=generator)
    return x.masked_fill(~length_mask(LENGTHS, 40)[:, None], beyond)


def assert_mixed_equals_singles(layer, x, lengths_out):
    together = layer(x, LENGTHS)
    for row, (length, length_out) in enumerate(zip(LENGTHS, lengths_out, strict=True)):
        alone = layer(x[row : row + 1, :, :length])
        assert alone.shape[-1] == length_out
        torch.testing.assert_close(
            together[row : row + 1, :, :length_out], alone, rtol=0, atol=1e-6
        )


def test_ceil_div_rounds_numbers_and_tensors_up():
    assert [ceil_div(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert ceil_div(torch.tensor([1, 4, 5, 8]), 4).tolist() == [1, 1, 2, 2]


def test_length_mask_is_true_inside():
    assert length_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
def test_borders_of_every_length_are_those_of_numpy(kernel, stride, dilation, generator):
    layer = Conv1d(1, 1, kernel_size=kernel, stride=stride, dilation=dilation)
    left, right = layer.padding_left, layer.padding_right
    for length in range(1, 41):
        x = torch.randn(1, 1, length, generator=generator)
        expected = mirrored_by_numpy(x[0, 0].numpy(), left, right, stride)

        padded = pad_reflect(x, left, right, stride, None)[0, 0, : len(expected)]
        steps = layer(x).shape[-1]

        assert np.array_equal(padded, expected)
        assert steps == ceil_div(length, stride)


@pytest.mark.parametrize("beyond", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
def test_mixed_convolution_equals_singles_whatever_lies_beyond(
    kernel, stride, dilation, beyond, generator
):
    layer = Conv1d(3, 5, kernel_size=kernel, stride=stride, dilation=dilation)

    assert_mixed_equals_singles(
        layer, mixed_batch(generator, beyond=beyond), ceil_div(LENGTHS, stride)
    )


@pytest.mark.parametrize("beyond", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize("stride", [1, 2, 5, 8])
def test_mixed_transposed_convolution_equals_singles_whatever_lies_beyond(
    stride, beyond, generator
):
    layer = ConvTranspose1d(3, 5, stride=stride)

    assert_mixed_equals_singles(layer, mixed_batch(generator, beyond=beyond), LENGTHS * stride)


@pytest.mark.parametrize("is_bidirectional", [False, True])
@pytest.mark.parametrize("beyond", [0.0, float("nan")])
def test_mixed_lstm_equals_singles_whatever_lies_beyond(is_bidirectional, beyond, generator):
    layer = SkipLSTM(3, num_layers=2, is_bidirectional=is_bidirectional)

    assert_mixed_equals_singles(layer, mixed_batch(generator, beyond=beyond), LENGTHS)


def test_bidirectional_lstm_hears_the_future_and_the_other_does_not(generator):
    x = torch.randn(1, 3, 6, generator=generator)
    changed = x.clone()
    changed[..., -1] += 1
    for is_bidirectional in (False, True):
        layer = SkipLSTM(3, num_layers=1, is_bidirectional=is_bidirectional)

        is_same = torch.equal(layer(x)[..., 0], layer(changed)[..., 0])

        assert is_same == (not is_bidirectional)


def test_lstm_adds_its_input_to_both_directions(generator):
    layer = SkipLSTM(3, num_layers=1, is_bidirectional=True)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    x = torch.randn(2, 3, 6, generator=generator)

    torch.testing.assert_close(layer(x), torch.cat([x, x], dim=1), rtol=0, atol=0)


def test_gradients_of_a_mixed_batch_are_those_of_singles_and_zero_beyond(generator):
    layer = Conv1d(3, 5, kernel_size=10, stride=5)
    x = mixed_batch(generator, beyond=0.0).requires_grad_()
    mask = length_mask(ceil_div(LENGTHS, 5), 8)[:, None]
    (together,) = torch.autograd.grad((layer(x, LENGTHS).square() * mask).sum(), x)

    for row, length in enumerate(LENGTHS):
        alone_x = x[row : row + 1, :, :length].detach().requires_grad_()
        (alone,) = torch.autograd.grad(layer(alone_x).square().sum(), alone_x)
        torch.testing.assert_close(together[row, :, :length], alone[0], rtol=0, atol=1e-5)
        assert not together[row, :, length:].any()


def test_transposed_convolution_spreads_a_step_over_its_two_strides():
    layer = ConvTranspose1d(1, 1, stride=5)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    x = torch.zeros(1, 1, 4)
    x[..., 2] = 1.0

    y = layer(x)[0, 0]

    # Ten samples about the five of step 2, three of them before: 2 * 5 - 3 = 7.
    assert y.nonzero()[:, 0].tolist() == list(range(7, 17))
    assert len(y) == 20


def test_weight_norm_comes_and_goes_without_changing_outputs(generator):
    layers = nn.Sequential(Conv1d(3, 4, kernel_size=7), ConvTranspose1d(4, 2, stride=4))
    x = torch.randn(2, 3, 9, generator=generator)
    before, names = layers(x), list(layers.state_dict())

    add_weight_norm(layers)
    add_weight_norm(layers)  # a second time changes nothing
    normed, normed_names = layers(x), list(layers.state_dict())
    remove_weight_norm(layers)

    assert sum(name.endswith("weight.original0") for name in normed_names) == 2
    assert list(layers.state_dict()) != normed_names
    assert sorted(layers.state_dict()) == sorted(names)
    torch.testing.assert_close(normed, before, rtol=0, atol=1e-6)
    torch.testing.assert_close(layers(x), before, rtol=0, atol=1e-6)


def test_weight_norm_trains_size_and_direction_apart(generator):
    layer = Conv1d(3, 4, kernel_size=7)
    add_weight_norm(layer)
    x = torch.randn(2, 3, 9, generator=generator)

    layer(x).square().sum().backward()

    size = layer.conv.parametrizations.weight.original0
    direction = layer.conv.parametrizations.weight.original1
    assert bool(size.grad.abs().min() > 0)
    # The direction's gradient is orthogonal to it: its size does not move.
    overlap = (direction.grad * direction).sum(dim=(1, 2))
    torch.testing.assert_close(overlap, torch.zeros(4), rtol=0, atol=1e-4)
