"""Long audio in pieces: the codes and the waveform of the whole, in memory that does not grow."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmcodec.codec import lstm
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.codec.spectral_decoder import SpectralConfig
from dmcodec.export.windows import encode_windows


def make_codec(
    *, is_bidirectional: bool, strides: tuple[int, ...], decoder: SpectralConfig | None = None
) -> Codec:
    decoders = {} if decoder is None else {"decoder": decoder}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(11)
        return Codec(
            CodecConfig(
                seanet=SEANetConfig(
                    num_filters=4,
                    latent_dim=8,
                    strides=strides,
                    num_residual_layers=2,
                    is_encoder_bidirectional=is_bidirectional,
                ),
                quantizer=QuantizerConfig(codebook_size=32, num_codebooks=3),
                **decoders,
            )
        ).eval()


CODECS = {
    "paper": make_codec(is_bidirectional=True, strides=(2, 4, 5, 8)),
    "one direction": make_codec(is_bidirectional=False, strides=(4, 5)),
    "spectral": make_codec(
        is_bidirectional=True,
        strides=(4, 5),
        decoder=SpectralConfig(channels=8, num_blocks=1, n_fft=50, kernel_size=3),
    ),
}


def noise(num_samples: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", CODECS)
@settings(max_examples=25)
@given(data=st.data())
def test_pieces_joined_equal_the_whole(kind: str, data: st.DataObject) -> None:
    codec = CODECS[kind]
    num_samples = data.draw(st.integers(1, 9000), label="samples")
    chunk_frames = data.draw(st.integers(1, 12), label="frames a piece")
    cuts = sorted(data.draw(st.lists(st.integers(0, num_samples), max_size=6), label="cuts"))
    waveform = noise(num_samples, seed=num_samples)
    edges = [0, *cuts, num_samples]
    blocks = [waveform[a:b] for a, b in pairwise(edges)]

    whole = codec.encode(waveform)
    codes, counted = encode_long(codec, blocks, chunk_frames=chunk_frames)
    decoded = list(decode_long(codec, whole.codes[0], num_samples, chunk_frames=chunk_frames))

    assert counted == num_samples
    assert torch.equal(codes, whole.codes[0])
    torch.testing.assert_close(torch.cat(decoded), codec.decode(whole)[0], atol=1e-6, rtol=0)


def test_first_books_and_later_books_are_those_of_the_whole() -> None:
    codec = CODECS["paper"]
    waveform = noise(7000, seed=1)
    whole = codec.encode(waveform)

    codes, _ = encode_long(codec, [waveform], num_codebooks=2, chunk_frames=5)
    tail = whole.select_codebooks(1, 3)
    decoded = torch.cat(
        list(decode_long(codec, tail.codes[0], 7000, first_codebook=1, chunk_frames=4))
    )

    assert torch.equal(codes, whole.codes[0, :2])
    torch.testing.assert_close(decoded, codec.decode(tail)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", CODECS)
def test_a_large_lstm_is_carried_through_pieces_too(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, waveform = CODECS[kind], noise(7000, seed=2)
    whole = codec.encode(waveform)
    expected = codec.decode(whole)[0]
    monkeypatch.setattr(lstm, "LARGE_LSTM", 1)

    codes, _ = encode_long(codec, [waveform], chunk_frames=5)
    decoded = torch.cat(list(decode_long(codec, codes, 7000, chunk_frames=4)))

    assert torch.equal(codes, whole.codes[0])
    torch.testing.assert_close(decoded, expected, atol=1e-6, rtol=0)


def test_nothing_to_encode_is_an_error() -> None:
    with pytest.raises(ValueError, match="audio is empty"):
        encode_long(CODECS["paper"], [torch.zeros(0)])
    windows = encode_windows(np.copy, [], hop_length=1, window_frames=1, context_frames=0)
    with pytest.raises(ValueError, match="audio is empty"):
        list(windows)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (torch.tensor([0.1, float("nan")]), "block 1 has NaN or infinite samples"),
        (torch.tensor([0.1, -3e38]), "block 1 has samples up to 3e"),
        (torch.tensor([0.1, 12_000.0]), "block 1 has samples up to 1.2e"),
        (torch.tensor([3, 4], dtype=torch.int16), "block 1 must be a tensor of float samples"),
        (torch.zeros(2, 2), r"block 1 must .* got torch.float32 \[2, 2\]"),
        (np.zeros(2), "block 1 must be a tensor"),
    ],
)
def test_blocks_that_are_no_sound_are_refused(last: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode_long(CODECS["paper"], [noise(900, 1), last])


@settings(max_examples=15)
@given(
    num_samples=st.integers(1, 9000),
    window_frames=st.integers(1, 9),
    block=st.integers(100, 3000),
)
def test_windows_cover_every_frame_and_equal_the_whole_with_enough_context(
    num_samples: int, window_frames: int, block: int
) -> None:
    codec = CODECS["paper"]
    waveform = noise(num_samples, seed=num_samples)
    whole = codec.encode(waveform).codes[0]

    def windows(context_frames: int) -> list[Tensor]:
        return list(
            encode_windows(
                lambda part: codec.encode(part).codes[0],
                [each.numpy() for each in waveform.split(block)],
                hop_length=codec.config.hop_length,
                window_frames=window_frames,
                context_frames=context_frames,
            )
        )

    assert torch.equal(torch.cat(windows(30), dim=1), whole)
    without = windows(0)
    assert all(codes.shape == (3, window_frames) for codes in without[:-1])
    assert torch.cat(without, dim=1).shape == whole.shape


_PEAK_MEMORY = """
import resource, torch
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.codec.spectral_decoder import SpectralConfig
torch.set_num_threads(1)
codec = Codec(CodecConfig(seanet=SEANetConfig(num_filters=2, latent_dim=4, num_lstm_layers=1)))
codec = codec.eval()
for minutes in (1, 3):
    blocks = (torch.zeros(16000) for _ in range(60 * minutes))
    codes, n = encode_long(codec, blocks, chunk_frames=50)
    assert sum(len(block) for block in decode_long(codec, codes, n, chunk_frames=50)) == n
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_length() -> None:
    output = subprocess.run(
        [sys.executable, "-c", _PEAK_MEMORY], capture_output=True, text=True, check=True
    ).stdout
    short_kib, long_kib = map(int, output.split())
    # Two more minutes are 8 MB of samples alone, and 15 MB for every activation at full rate.
    assert long_kib - short_kib < 7_000


def test_encode_and_decode_send_long_items_through_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = CODECS["paper"]
    waveforms = [noise(2000, seed=5), noise(9000, seed=6), noise(321, seed=7)]
    whole = codec.encode(waveforms)
    decoded = codec.decode(whole)

    monkeypatch.setattr("dmcodec.codec.model.LONG_FRAMES", 10)  # 3200 samples
    pieces = codec.encode(waveforms)

    assert torch.equal(pieces.codes, whole.codes)
    assert torch.equal(pieces.num_samples, whole.num_samples)
    torch.testing.assert_close(codec.decode(pieces), decoded, atol=1e-6, rtol=0)
