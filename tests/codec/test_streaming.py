"""Streams: joined chunks are the whole, the future never changes the past, none hears another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.codec.streaming import StreamDecoder, StreamEncoder, StreamState

HOP = 320


def make_codec(**seanet: object) -> Codec:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        config = CodecConfig(
            seanet=SEANetConfig(
                num_filters=4,
                latent_dim=8,
                is_encoder_bidirectional=False,
                is_causal=True,
                **seanet,
            ),
            quantizer=QuantizerConfig(codebook_size=32, num_codebooks=3),
        )
        codec = Codec(config).eval()
        codec.decoder.conv_out.conv.weight.data *= 10  # so that tolerances mean something
    return codec


CODEC = make_codec(num_residual_layers=2)


def noise(num_samples: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def cut(waveform: Tensor, sizes: list[int]) -> list[Tensor]:
    """Chunks of these sizes in turn, until the waveform ends."""
    chunks, start = [], 0
    while start < len(waveform):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(waveform[start : start + size])
        start += size
    return chunks


@settings(max_examples=25)
@given(
    num_samples=st.integers(1, 6000),
    sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=4),
)
def test_joined_chunks_are_the_whole(num_samples: int, sizes: list[int]) -> None:
    waveform = noise(num_samples, seed=num_samples)
    whole = CODEC.encode(waveform)
    encoder, decoder = StreamEncoder(CODEC), StreamDecoder(CODEC)
    hearing, speaking = StreamState(), StreamState()
    codes, sound = [], []

    for chunk in cut(waveform, sizes):
        (frames,), (hearing,) = encoder.push([chunk], [hearing])
        codes.append(frames)
        (samples,), (speaking,) = decoder.push([frames], [speaking])
        assert samples.shape == (frames.shape[1] * HOP,)
        sound.append(samples)
    frames, num_last = encoder.finish(hearing)
    sound.append(decoder.push([frames], [speaking])[0][0][:num_last])

    assert torch.equal(torch.cat([*codes, frames], dim=1), whole.codes[0])
    torch.testing.assert_close(torch.cat(sound), CODEC.decode(whole)[0], atol=2e-6, rtol=1e-4)


@torch.no_grad()
def test_latency_is_one_frame_and_the_future_never_changes_the_past() -> None:
    waveform, frame = noise(20 * HOP, 1), 9
    latents = CODEC.encoder(waveform[None, None])
    changed = waveform.clone()
    changed[(frame + 1) * HOP :] = noise(10 * HOP, 2)
    later = CODEC.encoder(changed[None, None])
    changed[(frame + 1) * HOP - 1] += 1.0  # the last sample that the frame waits for
    within = CODEC.encoder(changed[None, None])

    torch.testing.assert_close(later[..., : frame + 1], latents[..., : frame + 1])
    assert not torch.allclose(later[..., frame + 1], latents[..., frame + 1])
    assert not torch.allclose(within[..., frame], latents[..., frame])

    sound = CODEC.decoder(latents)[0, 0]
    latents[..., frame] += 1.0
    altered = CODEC.decoder(latents)[0, 0]
    torch.testing.assert_close(altered[: frame * HOP], sound[: frame * HOP])
    assert not torch.allclose(altered[frame * HOP :][:HOP], sound[frame * HOP :][:HOP])


def test_streams_in_one_batch_start_and_stop_independently() -> None:
    waveforms = [noise(4000, 1), noise(2500, 2), noise(3333, 3)]
    starts, sizes = [0, 2, 5], [700, 320, 500]
    encoder = StreamEncoder(CODEC, num_codebooks=2)
    states: dict[int, StreamState] = {}
    codes: dict[int, list[Tensor]] = {n: [] for n in range(3)}
    rest = list(waveforms)
    for tick in range(30):
        for number in range(3):
            if tick == starts[number]:
                states[number] = StreamState()
        active = sorted(states)
        chunks = [rest[n][: sizes[n]] for n in active]
        frames, new = encoder.push(chunks, [states[n] for n in active])
        for n, got, state in zip(active, frames, new, strict=True):
            codes[n].append(got)
            rest[n] = rest[n][sizes[n] :]
            states[n] = state
            if len(rest[n]) == 0:
                codes[n].append(encoder.finish(states.pop(n))[0])

    for number, waveform in enumerate(waveforms):
        alone = CODEC.encode(waveform, num_codebooks=2).codes[0]
        assert torch.equal(torch.cat(codes[number], dim=1), alone)


def test_a_state_is_a_value_that_can_be_used_again() -> None:
    encoder = StreamEncoder(CODEC)
    _, (state,) = encoder.push([noise(1000, 4)], [StreamState()])

    first, _ = encoder.push([noise(900, 5)], [state])
    encoder.push([noise(2000, 6)], [state])
    again, _ = encoder.push([noise(900, 5)], [state])

    assert torch.equal(first[0], again[0])


@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=3), pieces=st.integers(1, 9))
def test_causal_batches_and_pieces_are_exact(sizes: list[int], pieces: int) -> None:
    waveforms = [noise(size, size) for size in sizes]
    together = CODEC.encode(waveforms)
    decoded = CODEC.decode(together)
    for number, waveform in enumerate(waveforms):
        with torch.no_grad():
            plain = CODEC.quantizer.encode(CODEC.encoder(waveform[None, None]))[0]
        assert torch.equal(together.item(number), plain)
        codes, count = encode_long(CODEC, [waveform], chunk_frames=pieces)
        assert torch.equal(codes, plain)
        joined = torch.cat(list(decode_long(CODEC, codes, count, chunk_frames=pieces)))
        torch.testing.assert_close(decoded[number, :count], joined, atol=2e-6, rtol=1e-4)


def test_integer_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="float samples"):
        StreamEncoder(CODEC).push([torch.zeros(320, dtype=torch.int16)], [StreamState()])


def test_what_cannot_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="looks ahead and cannot stream"):
        StreamEncoder(Codec(CodecConfig(seanet=SEANetConfig(num_filters=2, latent_dim=4))).eval())
    with pytest.raises(ValueError, match="is_encoder_bidirectional = false"):
        SEANetConfig(is_causal=True)
    with pytest.raises(ValueError, match="chunk 0 has NaN or infinite samples"):
        StreamEncoder(CODEC).push([torch.tensor([float("nan")])], [StreamState()])
    with pytest.raises(ValueError, match="1 chunks for 2 states"):
        StreamEncoder(CODEC).push([noise(5, 1)], [StreamState()] * 2)
