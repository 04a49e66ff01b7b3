"""The fast CPU path gives what the plain path gives, and steps aside where it must."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmcodec.codec import fast
from dmcodec.codec.conv import add_weight_norm, remove_weight_norm
from dmcodec.codec.fast import fast_codec, run_direction
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig


def make_codec(**seanet: object) -> Codec:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        config = CodecConfig(
            seanet=SEANetConfig(**{"num_filters": 4, "latent_dim": 8, **seanet}),
            quantizer=QuantizerConfig(codebook_size=32, num_codebooks=3),
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
@settings(max_examples=20, deadline=None)
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
        path = fast_codec(codec)
        assert path is not None
        latents = path.encoder(waveforms)
        decoded = path.decoder(latents)

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
    monkeypatch.setattr(fast, "LARGE_LSTM", 1)

    path = fast_codec(codec)
    assert path is not None
    with threads(1):
        torch.testing.assert_close(path.encoder([waveform])[0], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(path.decoder([expected])[0], sound, atol=2e-5, rtol=1e-4)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_work_in_threads_keeps_order_and_the_number_of_threads() -> None:
    with threads(3):
        inside = fast.in_threads(lambda n: (n, torch.get_num_threads()), range(5))

        assert inside == [(n, 1) for n in range(5)]
        assert threads_of_a_new_thread() == torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            fast.in_threads(lambda n: 1 // n, [1, 0])
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


def test_fast_form_holds_no_weights_of_before() -> None:
    codec = make_codec()
    with torch.no_grad():
        codec.encode(noise(1000, 3))
    assert "_fast" in codec.__dict__

    codec.train()
    assert fast_codec(codec) is None

    assert "_fast" not in codec.__dict__


def test_training_gradients_and_weight_norm_keep_the_plain_path() -> None:
    codec = make_codec()
    assert fast_codec(codec) is None  # gradients are on
    with torch.no_grad():
        assert fast_codec(codec) is not None
        assert fast_codec(codec.train()) is None
        add_weight_norm(codec.eval())
        assert fast_codec(codec) is None
        remove_weight_norm(codec)
        with torch.autocast("cpu", torch.bfloat16):
            assert fast_codec(codec) is None
        assert fast_codec(codec) is not None
        assert fast_codec(codec.double()) is None
