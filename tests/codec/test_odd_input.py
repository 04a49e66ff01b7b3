"""What the codec answers to input that is no speech: an error, or finite codes and sound."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcodec.audio import write_audio
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec
from dmcodec.codec.quantizer import LatentsError
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.codec.streaming import StreamEncoder, StreamState

RATE = 16000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_one_sample_that_is_not_finite_is_refused(codec: Codec, value: float, kind) -> None:
    waveform = np.zeros(1000, np.float32)
    waveform[700] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode(kind(waveform))
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode([np.zeros(10, np.float32), kind(waveform)])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_integers_that_nobody_divided_are_refused(codec: Codec, kind) -> None:
    speech = (3000 * np.random.default_rng(0).standard_normal(1000)).astype(np.float32)
    for loud in (speech, np.full(1000, 3e38, np.float32)):
        with pytest.raises(ValueError, match=r"audio has samples up to .* where full scale is 1"):
            codec.encode(kind(loud))


def test_bytes_and_open_files_are_sound_files(codec: Codec, tmp_path: Path) -> None:
    write_audio(tmp_path / "x.flac", 0.1 * np.random.default_rng(0).standard_normal(5000), 8000)
    data = (tmp_path / "x.flac").read_bytes()
    expected = codec.encode(tmp_path / "x.flac").codes
    with (tmp_path / "x.flac").open("rb") as file:
        for sound in (data, bytearray(data), memoryview(data), io.BytesIO(data), file):
            assert torch.equal(codec.encode(sound).codes, expected)
    assert len(codec.encode([data, tmp_path / "x.flac", np.zeros(700, np.float32)])) == 3
    with pytest.raises(ValueError, match="the bytes given: cannot be read as sound"):
        codec.encode(b"no sound at all")
    with (
        (tmp_path / "x.flac").open(encoding="latin-1") as text,
        pytest.raises(ValueError, match="open in binary mode"),
    ):
        codec.encode(text)


def test_whole_float_sample_rates_are_taken(codec: Codec) -> None:
    waveform = np.random.default_rng(0).standard_normal(4000).astype(np.float32) * 0.1
    expected = codec.encode(waveform, sample_rate=8000).codes
    for rate in (8000.0, np.float32(8000), np.int64(8000)):
        assert torch.equal(codec.encode(waveform, sample_rate=rate).codes, expected)
    with pytest.raises(ValueError, match=r"a whole number of Hz, got 8000\.5"):
        codec.encode(waveform, sample_rate=8000.5)


ODD = {
    "silence": np.zeros(5000, np.float32),
    "DC": np.full(5000, 0.9, np.float32),
    "clipped": np.sign(np.sin(np.arange(5000) / 20)).astype(np.float32),
    "beyond full scale": (30 * np.sin(np.arange(5000) / 20)).astype(np.float32),
    "smallest numbers": np.full(5000, 1e-40, np.float32),
    "one click": np.eye(1, 5000, 2500, dtype=np.float32)[0],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_sound_gets_finite_codes_and_sound_that_do_not_depend_on_the_batch(
    codec: Codec, name: str
) -> None:
    waveform = ODD[name]
    encoded = codec.encode([waveform, waveform[:333]])
    decoded = codec.decode(encoded)

    assert torch.equal(encoded.item(0), codec.encode(waveform).item(0))
    assert torch.equal(encoded.item(1), codec.encode(waveform[:333]).item(0))
    assert bool(torch.isfinite(decoded).all())
    # The codec removes no offset and clips nothing: what comes in is what is encoded.
    assert torch.equal(codec.encode(waveform.copy()).codes, codec.encode(waveform).codes)


def test_silence_is_the_same_in_every_frame_away_from_the_borders(codec: Codec) -> None:
    codes = codec.encode(np.zeros(60 * 320, np.float32)).codes[0]
    assert torch.equal(codes[:, 25], codes[:, 35])


def with_nan(build_codec: Callable[..., Codec], part: str, **changes: object) -> Codec:
    """A codec with one NaN among the weights of a part."""
    codec = build_codec(**changes)
    with torch.no_grad():
        codec.get_parameter(part).view(-1)[0] = torch.nan
    return codec


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_latents_that_are_not_finite_have_no_codes(
    build_codec: Callable[..., Codec], precision: str
) -> None:
    codec = with_nan(build_codec, "encoder.conv_out.conv.weight")
    codec.precision = precision  # type: ignore[assignment]
    waveform = torch.full((8000,), 0.1)

    with pytest.raises(LatentsError, match="NaN or infinite values, which have no codes"):
        codec.encode(waveform)
    with pytest.raises(LatentsError):
        encode_long(codec, [waveform])


def test_streams_of_damaged_weights_are_refused(build_codec: Callable[..., Codec]) -> None:
    seanet = SEANetConfig(
        num_filters=4, latent_dim=8, is_causal=True, is_encoder_bidirectional=False
    )
    codec = with_nan(build_codec, "encoder.conv_in.conv.bias", seanet=seanet)

    with pytest.raises(LatentsError):
        StreamEncoder(codec).push([torch.zeros(320)], [StreamState()])


def test_sound_that_is_not_finite_is_never_given(build_codec: Callable[..., Codec]) -> None:
    codec = with_nan(build_codec, "decoder.conv_in.conv.bias")

    with pytest.raises(ValueError, match="the weights are damaged"):
        codec.decode(torch.zeros(4, 5, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codecs_cast_as_a_whole_are_refused_with_the_way_out(
    build_codec: Callable[..., Codec], dtype: torch.dtype
) -> None:
    codec = build_codec()
    waveform = torch.full((1000,), 0.1)
    expected = codec.encode(waveform).codes
    codec.to(dtype)

    for call in (
        lambda: codec.encode(waveform),
        lambda: codec.decode(expected),
        lambda: encode_long(codec, [waveform]),
        lambda: list(decode_long(codec, expected[0], 1000)),
    ):
        with pytest.raises(ValueError, match=rf"are {dtype}; encode and decode need float32: call"):
            call()
    if dtype == torch.float64:
        assert torch.equal(codec.float().encode(waveform).codes, expected)


def test_codes_are_taken_from_arrays_and_lists(codec: Codec) -> None:
    codes = codec.encode(0.1 * torch.sin(torch.arange(1600) / 9)).codes

    expected = codec.decode(codes)

    for given in (
        codes.numpy(),
        codes[0].numpy().astype(np.uint16),  # as read_rows gives them
        codes.tolist(),
        codes[0].int(),
    ):
        assert torch.equal(codec.decode(given), expected)
    for wrong, reason in (
        (codes.numpy().astype(float), "codes must be integers, got ndarray of float64"),
        ([[1, 2], [3]], "one length"),
        ("12", "must be integers, got str"),
        (None, "must be integers, got NoneType"),
    ):
        with pytest.raises(ValueError, match=reason):
            codec.decode(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["2", 2.0, True])
def test_numbers_of_books_are_whole_numbers(codec: Codec, value: object) -> None:
    with pytest.raises(ValueError, match="num_codebooks must be a whole number, got"):
        codec.encode(np.zeros(1000, np.float32), num_codebooks=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_codebooks must be a whole number, got"):
        codec.decode(np.zeros((4, 5), int), num_codebooks=value)  # type: ignore[arg-type]
    assert codec.encode(np.zeros(1000, np.float32), num_codebooks=np.int64(2)).codes.shape[1] == 2
