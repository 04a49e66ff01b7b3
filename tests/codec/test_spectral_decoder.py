"""The spectral decoder alone and in a codec: exact at any length and in any batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.codec.spectral_decoder import SpectralConfig, SpectralDecoder
from dmcodec.codec.streaming import StreamDecoder

SIZES = {
    "a window a frame": SpectralConfig(channels=12, num_blocks=2, n_fft=1024),
    "two windows a frame": SpectralConfig(
        channels=12, num_blocks=2, upsampling=2, fine_channels=8, num_fine_blocks=1, n_fft=640
    ),
    "a window that is no multiple of its hop": SpectralConfig(
        channels=12, num_blocks=1, kernel_size=3, upsampling=5, fine_channels=8, n_fft=162
    ),
}


def make_decoder(config: SpectralConfig, seed: int = 0) -> SpectralDecoder:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        decoder = SpectralDecoder(config, latent_dim=8, hop_length=320)
        for weight in decoder.parameters():  # so that every part of it shows in the output
            weight.data += 0.1 * torch.randn(weight.shape)
    return decoder.eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SIZES)
def decoder(request: pytest.FixtureRequest) -> SpectralDecoder:
    return make_decoder(SIZES[request.param])


def test_the_spectrum_of_a_waveform_gives_the_waveform(decoder: SpectralDecoder) -> None:
    hop, n_fft, num_steps = decoder.stft_hop_length, decoder.n_fft, 24
    waveform = 0.1 * noise(2, num_steps * hop)
    left = (n_fft - hop) // 2
    # An independent analysis: windows cut by hand, centred on the middles of their hops.
    padded = torch.nn.functional.pad(waveform, (left, n_fft))
    frames = torch.stack([padded[:, i * hop : i * hop + n_fft] for i in range(num_steps)], dim=1)
    spectrum = torch.fft.rfft(frames * torch.hann_window(n_fft))  # [B, N, F]
    # The direction need not have length 1.
    spectra = torch.cat([spectrum.abs().log(), 3 * spectrum.real, 3 * spectrum.imag], dim=-1)

    decoded = decoder.synthesize(spectra)

    torch.testing.assert_close(decoded[:, 0], waveform, atol=2e-6, rtol=0)


def test_an_item_of_a_batch_is_what_it_is_alone(decoder: SpectralDecoder) -> None:
    quantized = noise(3, 8, 40)
    lengths = torch.tensor([40, 1, 17])

    together = decoder(quantized, lengths)

    for row, item, length in zip(together, quantized, lengths.tolist(), strict=True):
        alone = decoder(item[None, :, :length])
        torch.testing.assert_close(row[None, :, : length * 320], alone, atol=1e-5, rtol=1e-4)


def test_reach_is_how_far_a_frame_is_heard(decoder: SpectralDecoder) -> None:
    quantized, size = noise(1, 8, 81), 320
    changed = quantized.clone()
    changed[:, :, 40] += 1

    is_heard = (decoder(changed) - decoder(quantized))[0, 0].abs() > 0
    frames = is_heard.view(-1, size).any(dim=1).nonzero()[:, 0]

    reach = decoder.reach_frames
    assert 40 - reach <= int(frames[0]) <= 40 <= int(frames[-1]) <= 40 + reach
    # A bound that is much too large would cost time in every piece.
    assert int(frames[-1]) >= 40 + reach - 1


def test_steps_that_are_loud_beyond_measure_stay_finite() -> None:
    decoder = make_decoder(SIZES["a window a frame"])

    decoded = decoder(1e6 * noise(1, 8, 5))

    assert bool(decoded.isfinite().all())


def test_gradients_are_finite_where_a_direction_is_zero() -> None:
    decoder = make_decoder(SIZES["a window a frame"])
    spectra = torch.zeros(1, 4, 3 * 513, requires_grad=True)

    decoder.synthesize(spectra).square().sum().backward()

    assert bool(spectra.grad.isfinite().all())


@pytest.fixture(scope="module")
def codec() -> Codec:
    config = CodecConfig(
        seanet=SEANetConfig(num_filters=4, latent_dim=8), decoder=SIZES["two windows a frame"]
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        codec = Codec(config)
    codec.decoder = make_decoder(SIZES["two windows a frame"])
    return codec.eval()


def test_as_many_samples_come_out_as_went_in(codec: Codec) -> None:
    for num_samples in (1, 319, 320, 321, 5000):
        decoded = codec.decode(codec.encode(0.1 * noise(num_samples)))
        assert decoded.shape == (1, num_samples)


def test_fast_path_on_threads_equals_the_plain_path(codec: Codec) -> None:
    codes = codec.encode([0.1 * noise(250_000), 0.1 * noise(9_000, seed=1)])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fast = codec.decode(codes)
    finally:
        torch.set_num_threads(threads)

    quantized = codec.quantizer.decode(codes.codes)
    with torch.no_grad():
        plain = codec.decoder(quantized, codes.lengths)[:, 0]
    for row, expected, size in zip(fast, plain, codes.num_samples.tolist(), strict=True):
        torch.testing.assert_close(row[:size], expected[:size], atol=1e-5, rtol=1e-4)


def test_training_pass_is_what_decode_gives(codec: Codec) -> None:
    waveform = 0.1 * noise(1, 1, 6400)

    encoded = codec.encode(waveform)
    output = codec(waveform)
    given = codec(waveform, codes=encoded.codes)

    torch.testing.assert_close(output.waveform[:, 0], codec.decode(encoded), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(given.waveform, output.waveform)
    assert given.quantizer is None


def test_saved_and_read_it_is_the_same(codec: Codec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)

    again = Codec.from_pretrained(tmp_path)

    assert again.config == codec.config
    assert again.fingerprint() == codec.fingerprint()
    codes = codec.encode(0.1 * noise(2000))
    assert torch.equal(again.decode(codes), codec.decode(codes))


def test_fingerprint_knows_what_shapes_do_not_show(build_codec: Callable[..., Codec]) -> None:
    # One fine step of 8 x 2 channels, or two of 8: the weights have the same shapes.
    sizes = {"channels": 12, "num_blocks": 1, "n_fft": 640}
    first = Codec(CodecConfig(decoder=SpectralConfig(upsampling=2, fine_channels=10, **sizes)))
    second = Codec(CodecConfig(decoder=SpectralConfig(upsampling=4, fine_channels=5, **sizes)))
    shared = {k: v for k, v in first.state_dict().items() if "decoder" not in k}
    second.load_state_dict(second.state_dict() | shared)

    assert first.fingerprint() != second.fingerprint()


def test_streams_refuse_it_and_causal_codecs_cannot_have_it(codec: Codec) -> None:
    with pytest.raises(ValueError, match="looks ahead"):
        StreamDecoder(codec)
    with pytest.raises(ValidationError, match="a causal codec needs"):
        CodecConfig(
            seanet=SEANetConfig(is_causal=True, is_encoder_bidirectional=False),
            decoder=SpectralConfig(),
        )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"upsampling": 3}, "whole number of hops"),
        ({"n_fft": 512}, "at least two of them"),
        ({"upsampling": 64, "n_fft": 12}, "must be even"),
        ({"kernel_size": 4}, "must be odd"),
        ({"channels": 5000}, "less than or equal to 4096"),
        ({"channels": 4096, "num_blocks": 64, "expansion": 16}, "would have .* weights"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CodecConfig(decoder=SpectralConfig(**sizes))
