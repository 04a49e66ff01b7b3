import pytest
import torch
from pydantic import ValidationError

from dmcodec.codec.conv import ceil_div, length_mask
from dmcodec.codec.seanet import Decoder, Encoder, ResidualStack, SEANetConfig, Snake

LENGTHS = torch.tensor([331, 1, 700, 58, 60, 61])
SMALL = SEANetConfig(num_filters=4, latent_dim=8, strides=(3, 4, 5), num_residual_layers=2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "snake"}, {"is_encoder_bidirectional": False}, {"residual_kernel_size": 4}],
)
@pytest.mark.parametrize("beyond", [0.0, float("nan")])
def test_mixed_batch_equals_singles_through_encoder_and_decoder(changes, beyond, generator):
    config = SMALL.model_copy(update=changes)
    encoder, decoder = Encoder(config), Decoder(config)
    waveform = torch.randn(len(LENGTHS), 1, 700, generator=generator) * 0.1
    waveform = waveform.masked_fill(~length_mask(LENGTHS, 700)[:, None], beyond)
    frames = ceil_div(LENGTHS, 60)

    with torch.no_grad():
        latents = encoder(waveform, LENGTHS)
        decoded = decoder(latents, frames)

        for row, (length, num_frames) in enumerate(zip(LENGTHS, frames, strict=True)):
            latents_alone = encoder(waveform[row : row + 1, :, :length])
            decoded_alone = decoder(latents[row : row + 1, :, :num_frames])
            assert latents_alone.shape[-1] == num_frames
            assert decoded_alone.shape[-1] == num_frames * 60
            for together, alone in (
                (latents[row, :, :num_frames], latents_alone[0]),
                (decoded[row, :, : num_frames * 60], decoded_alone[0]),
            ):
                # Snake is not a contraction: untrained networks of it give signals above 10.
                atol = 1e-5 * max(1.0, float(alone.abs().max()))
                torch.testing.assert_close(together, alone, rtol=0, atol=atol)


def test_hop_length_is_the_product_of_the_strides():
    assert SMALL.hop_length == 60
    assert SEANetConfig().hop_length == 320


@pytest.mark.parametrize(
    "changes", [{"strides": ()}, {"strides": (2, 0)}, {"num_filters": 3}, {"num_lstm_layers": 0}]
)
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        SEANetConfig(**changes)


def test_snake_is_its_formula():
    layer = Snake(2)
    layer.alpha.data = torch.tensor([2.0, 0.0]).reshape(1, 2, 1)
    x = torch.tensor([[[0.5, -1.0], [0.5, -1.0]]])

    y = layer(x)

    # x + sin(2 x)^2 / 2, and x itself in the limit of a = 0
    expected = torch.tensor([[[0.5 + 0.70807342 / 2, -1.0 + 0.82682181 / 2], [0.5, -1.0]]])
    torch.testing.assert_close(y, expected)


def test_second_residual_unit_reaches_further():
    stack = ResidualStack(SMALL, 4)
    x = torch.zeros(1, 4, 21, requires_grad=True)

    (gradient,) = torch.autograd.grad(stack(x)[..., 10].sum(), x)

    # kernel 3: dilation 1 reaches one step to each side, dilation 2 two more
    reached = gradient.abs().sum(dim=1)[0].nonzero()[:, 0]
    assert (reached.min(), reached.max()) == (7, 13)


def test_untrained_encoder_keeps_the_size_and_the_difference_of_signals(generator):
    encoder = Encoder(SEANetConfig(num_filters=8, latent_dim=32))
    waveform = torch.randn(4, 1, 3200, generator=generator) * 0.1

    with torch.no_grad():
        latents = encoder(waveform)

    between_items = (latents - latents.mean(dim=0)).std()
    assert 0.2 < float(latents.std()) < 5
    assert float(between_items) > 0.5 * float(latents.std())


def test_gradient_reaches_every_weight(generator):
    encoder, decoder = Encoder(SMALL), Decoder(SMALL)

    decoder(encoder(torch.randn(2, 1, 300, generator=generator))).square().mean().backward()

    weights = [*encoder.named_parameters(), *decoder.named_parameters()]
    assert [name for name, weight in weights if not bool(weight.grad.abs().sum() > 0)] == []
