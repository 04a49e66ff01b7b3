"""The fast CPU path gives what the plain path gives, and steps aside where it must."""

import copy
import pickle  # noqa: TID251 (in memory)
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmcodec.codec import fast
from dmcodec.codec import lstm as lstm_module
from dmcodec.codec.conv import add_weight_norm, remove_weight_norm
from dmcodec.codec.fast import Inference
from dmcodec.codec.lstm import run_direction
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.network import SEANetDecoderConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import Encoder, SEANetConfig
from dmcodec.codec.spectral_decoder import SpectralConfig
from dmcodec.codec.threads import in_threads


def make_codec(decoder: SpectralConfig | None = None, **seanet: object) -> Codec:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        config = CodecConfig(
            seanet=SEANetConfig(**{"num_filters": 4, "latent_dim": 8, **seanet}),
            quantizer=QuantizerConfig(codebook_size=32, num_codebooks=3),
            decoder=decoder or SEANetDecoderConfig(),
        )
        return Codec(config).eval()


CODECS = {
    "paper": make_codec(),
    "odd kernels": make_codec(
        strides=(3, 2), kernel_size=6, residual_kernel_size=4, num_residual_layers=3
    ),
    "snake, no units, one direction": make_codec(
        activation="snake", num_residual_layers=0, is_encoder_bidirectional=False, num_filters=8
    ),
    "spectral": make_codec(SpectralConfig(channels=12, num_blocks=2, kernel_size=3)),
}


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def noise(num_samples: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", CODECS)
@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=3),
    piece_frames=st.integers(1, 20),
    num_threads=st.sampled_from([1, 3]),
)
# The last piece is short, its last step mostly mirrored.
@example(sizes=[1370], piece_frames=4, num_threads=1)
@torch.no_grad()
def test_any_lengths_equal_the_plain_path(
    kind: str, sizes: list[int], piece_frames: int, num_threads: int
) -> None:
    codec = CODECS[kind]
    waveforms = [noise(size, seed=size) for size in sizes]
    with pytest.MonkeyPatch.context() as patch, threads(num_threads):
        patch.setattr(fast, "PIECE_FRAMES", piece_frames)
        patch.setattr(fast, "LEAST_PIECE_FRAMES", 1)
        patch.setattr(fast, "SPECTRAL_PIECE_FRAMES", piece_frames)
        encoder, decoder = Inference().encoder(codec), Inference().decoder(codec)
        assert encoder is not None
        assert decoder is not None
        latents = encoder(waveforms)
        decoded = decoder(latents)

    for waveform, ours, sound in zip(waveforms, latents, decoded, strict=True):
        plain = codec.encoder(waveform[None, None])[0]
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(sound, codec.decoder(ours[None])[0, 0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_step_by_step_lstm_equals_torch_from_any_state() -> None:
    lstm = torch.nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True).eval()
    first = torch.nn.LSTM(6, 5, batch_first=True)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(first, f"{name}_l0", getattr(lstm, f"{name}_l0_reverse"))
    x, h, c = noise(7 * 6, 1).view(7, 6), noise(5, 2), noise(5, 3)

    y, (h_end, c_end) = run_direction(lstm, "_l0_reverse", x, (h, c))
    expected, (h_expected, c_expected) = first(x, (h[None], c[None]))

    torch.testing.assert_close(y, expected)
    torch.testing.assert_close((h_end, c_end), (h_expected[0], c_expected[0]))


@torch.no_grad()
def test_a_large_lstm_takes_the_step_by_step_path(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, waveform = CODECS["paper"], noise(6000, 4)
    expected = codec.encoder(waveform[None, None])[0]
    sound = codec.decoder(expected[None])[0, 0]
    monkeypatch.setattr(lstm_module, "LARGE_LSTM", 1)

    encoder, decoder = Inference().encoder(codec), Inference().decoder(codec)
    assert encoder is not None
    assert decoder is not None
    with threads(1):
        torch.testing.assert_close(encoder([waveform])[0], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(decoder([expected])[0], sound, atol=2e-5, rtol=1e-4)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_work_in_threads_keeps_order_and_the_number_of_threads() -> None:
    with threads(3):
        inside = in_threads(lambda n: (n, torch.get_num_threads()), range(5))

        assert inside == [(n, 1) for n in range(5)]
        assert threads_of_a_new_thread() == torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda n: 1 // n, [1, 0])
        assert threads_of_a_new_thread() == 3


@torch.no_grad()
def test_changed_weights_are_noticed() -> None:
    codec, waveform = make_codec(), noise(3000, 6)
    before = codec.decode(codec.encode(waveform))
    codec.decoder.conv_out.conv.weight.data *= 2
    codec.decoder.conv_out.conv.bias.mul_(2)

    torch.testing.assert_close(codec.decode(codec.encode(waveform)), 2 * before)


@pytest.mark.parametrize("is_inference", [False, True])
def test_weights_written_without_a_trace_are_noticed(is_inference: bool) -> None:
    waveform = torch.randn(1, 3000, generator=torch.Generator().manual_seed(2))
    source = make_codec(num_filters=8)
    for weight in source.encoder.parameters():
        weight.data.mul_(-0.9)
    with torch.inference_mode(is_inference):
        codec = make_codec(num_filters=8)
        codec.encode(waveform)
        for name, weight in codec.named_parameters():
            weight.data.copy_(source.get_parameter(name))
        codec.quantizer.codebooks.copy_(source.quantizer.codebooks)

        assert torch.equal(codec.encode(waveform).codes, source.encode(waveform).codes)


def write_one_value(codec: Codec) -> None:
    """One of thousands: a look at a few of them would pass it over."""
    codec.encoder.blocks[3].downsample.conv.weight.data[3, 5, 7] += 5.0


def load_weights(codec: Codec, *, assign: bool) -> None:
    codec.load_state_dict(scaled(codec), assign=assign)


def step_of_an_optimizer(codec: Codec) -> None:
    for weight in codec.parameters():
        weight.grad = torch.ones_like(weight)
    torch.optim.SGD(codec.parameters(), lr=0.05).step()


def trained_meanwhile(codec: Codec) -> None:
    codec.train()
    step_of_an_optimizer(codec)
    codec.eval()


def replaced_weight(codec: Codec) -> None:
    conv = codec.decoder.conv_in.conv
    conv.weight = torch.nn.Parameter(2 * conv.weight.detach())


def replaced_layers(codec: Codec) -> None:
    with torch.random.fork_rng():
        codec.encoder = Encoder(codec.config.seanet).eval()


@torch.no_grad()
def changed_in_place(codec: Codec) -> None:
    for weight in codec.parameters():
        weight.mul_(1.5)


def changed_codebooks(codec: Codec) -> None:
    codec.quantizer.codebooks.data.mul_(-1)


def scaled(codec: Codec) -> dict[str, Tensor]:
    tensors = codec.state_dict()
    return {n: 1.2 * v if v.is_floating_point() else v.clone() for n, v in tensors.items()}


CHANGES: dict[str, Callable[[Codec], object]] = {
    "one value through .data": write_one_value,
    "all in place": changed_in_place,
    "load_state_dict": lambda codec: load_weights(codec, assign=False),
    "load_state_dict, assigned": lambda codec: load_weights(codec, assign=True),
    "an optimizer": step_of_an_optimizer,
    "training": trained_meanwhile,
    "a replaced weight": replaced_weight,
    "replaced layers": replaced_layers,
    "codebooks": changed_codebooks,
    "half precision and back": lambda codec: codec.to(torch.float16).to(torch.float32),
    "numpy": lambda codec: codec.encoder.conv_in.conv.bias.detach().numpy().fill(0.7),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_no_write_is_missed(kind: str) -> None:
    """Codes, searched codes and sound are those of a codec that never had other weights."""
    codec, waveform = make_codec(num_filters=8), noise(3000, 6)

    def results(codec: Codec) -> tuple[Tensor, Tensor, Tensor]:
        encoded = codec.encode(waveform)
        searched = codec.encode(waveform, search_width=4)
        return encoded.codes, searched.codes, codec.decode(encoded.codes)

    before = results(codec)
    CHANGES[kind](codec)
    after = results(codec)

    fresh = Codec(codec.config).eval()
    fresh.load_state_dict(codec.state_dict())
    assert all(map(torch.equal, after, results(fresh)))
    assert not all(map(torch.equal, after, before))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])  # noqa: S301
def test_copies_are_their_own_and_carry_their_weights_once(
    copied: Callable[[Codec], Codec],
) -> None:
    codec, waveform = make_codec(), noise(3000, 6)
    size = len(pickle.dumps(codec))
    before = codec.decode(codec.encode(waveform, search_width=4))

    other = copied(codec)
    changed_in_place(other)

    assert len(pickle.dumps(codec)) == size
    assert torch.equal(codec.decode(codec.encode(waveform, search_width=4)), before)
    fresh = Codec(codec.config).eval()
    fresh.load_state_dict(other.state_dict())
    encoded = fresh.encode(waveform)
    assert torch.equal(other.encode(waveform).codes, encoded.codes)
    assert torch.equal(other.decode(encoded), fresh.decode(encoded))


@torch.no_grad()
def test_fast_form_holds_no_weights_of_before() -> None:
    codec = make_codec()
    codec.encode(noise(1000, 3))
    form = weakref.ref(codec._inference.encoder(codec))
    assert form() is codec._inference.encoder(codec)

    codec.train()

    assert form() is None


def test_training_gradients_and_weight_norm_keep_the_plain_path() -> None:
    codec, path = make_codec(), Inference()
    assert path.encoder(codec) is None  # gradients are on
    with torch.no_grad():
        assert path.encoder(codec) is not None
        assert path.encoder(codec.train()) is None
        add_weight_norm(codec.eval())
        assert path.encoder(codec) is None
        remove_weight_norm(codec)
        with torch.autocast("cpu", torch.bfloat16):
            assert path.encoder(codec) is None
        assert path.encoder(codec) is not None
        assert path.encoder(codec.double()) is None
