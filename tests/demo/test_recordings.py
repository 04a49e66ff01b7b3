"""What a visitor gives becomes codes or one sentence; books and voices are taken apart exactly."""

import numpy as np
import pytest
import torch

from dmcodec.audio import SoundBytes, dump_wav, read_audio
from dmcodec.demo.models import Model, Refused
from dmcodec.demo.recordings import (
    Recording,
    clean_name,
    decode,
    describe_books,
    mix,
    open_recording,
)
from dmcodec.metrics import pair
from dmcodec.packages import MissingPackage
from dmcodec.tokens.bitstream import loads


def _open(model: Model, sound: SoundBytes, max_seconds: float = 10) -> Recording:
    return open_recording(model, sound, max_seconds=max_seconds)


def _noise(num_samples: int, seed: int) -> SoundBytes:
    noise = 0.1 * np.random.default_rng(seed).standard_normal(num_samples)
    return SoundBytes(f"noise {seed}.wav", dump_wav(noise, 16_000))


def test_a_sound_has_the_codes_that_the_codec_gives_it(model: Model, sound: SoundBytes) -> None:
    recording = _open(model, sound)

    assert recording.original is not None
    np.testing.assert_array_equal(recording.original, read_audio(sound))
    assert torch.equal(recording.codes, model.codec.encode(read_audio(sound)).codes[0])
    assert (recording.name, recording.num_samples) == ("a talk", 8_416)


@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
def test_the_first_books_decode_as_the_codec_decodes_them(
    recording: Recording, num_codebooks: int
) -> None:
    expected = recording.model.codec.decode(recording.encoded, num_codebooks=num_codebooks)[0]

    decoded = decode(recording, num_codebooks)

    np.testing.assert_array_equal(decoded.waveform, expected.numpy())
    assert decoded.num_codebooks == num_codebooks


def test_one_book_alone_is_decoded_as_the_book_that_it_is(recording: Recording) -> None:
    codec = recording.model.codec
    expected = codec.decode(recording.codes[2:], first_codebook=2)[0, : recording.num_samples]

    alone = decode(recording, 1, first_codebook=2).waveform

    np.testing.assert_allclose(alone, expected.numpy(), atol=1e-6)
    assert not np.allclose(alone, decode(recording, 1).waveform, atol=1e-4)


def test_a_dmc_file_of_some_books_comes_back_as_these_books(recording: Recording) -> None:
    data = recording.dumps(2)

    again = _open(recording.model, SoundBytes("a talk.dmc", data))

    assert torch.equal(again.codes, recording.codes[:2])
    assert torch.equal(again.codes, torch.from_numpy(loads(data).codes))
    assert again.original is None
    assert "no original" in describe_books(again, decode(again, 2))["quality"]


def test_a_dmc_file_is_known_by_its_content(recording: Recording) -> None:
    again = _open(recording.model, SoundBytes("talk.bin", recording.dumps(3)))

    assert torch.equal(again.codes, recording.codes)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("x.wav", b"no sound at all, but a letter", "x.wav: cannot be read as sound"),
        ("x.mp3", b"", "x.mp3: the file is empty"),
        ("x.dmc", b"RIFF", "x.dmc cannot be read: not a .dmc file"),
        ("x.wav", dump_wav(np.zeros(4000, np.float32), 16_000), "x.wav is silent"),
        ("x.wav", dump_wav(np.full(4000, np.nan, np.float32), 16_000), "NaN"),
        ("x.wav", dump_wav(np.ones(4000, np.float32), 16_000)[:9000], "cut short"),
        ("x.wav", dump_wav(np.ones(8001, np.float32), 8_000), "lasts 1.0 s, and this page takes"),
    ],
    ids=["text", "empty", "no dmc", "silent", "nan", "cut", "long"],
)
def test_what_is_no_use_is_refused_in_a_sentence(
    model: Model, name: str, data: bytes, sentence: str
) -> None:
    with pytest.raises(Refused) as refusal:
        _open(model, SoundBytes(name, data), max_seconds=1)

    text = str(refusal.value)
    assert sentence in text
    assert text.endswith((".", "--max-seconds."))
    assert "\n" not in text


def test_exactly_the_longest_is_taken(model: Model) -> None:
    assert _open(model, _noise(16_000, 1), max_seconds=1).num_samples == 16_000


def test_a_damaged_dmc_file_is_refused(recording: Recording) -> None:
    data = bytearray(recording.dumps(3))
    data[-3] ^= 1

    with pytest.raises(Refused, match=r"a\.dmc cannot be read: .*chunk"):
        _open(recording.model, SoundBytes("a.dmc", bytes(data)))


def test_a_dmc_file_that_claims_hours_is_refused_unread(recording: Recording) -> None:
    with pytest.raises(Refused, match=r"lasts 0\.5 s"):
        _open(recording.model, SoundBytes("a.dmc", recording.dumps(1)), max_seconds=0.25)


def test_codes_of_another_model_are_refused_by_both_names(
    recording: Recording, other_model: Model
) -> None:
    hashes = [each.engine.model_hash for each in (recording.model, other_model)]

    with pytest.raises(Refused, match=rf"\({hashes[0]}\), and .*\({hashes[1]}\) is chosen"):
        _open(other_model, SoundBytes("a.dmc", recording.dumps(3)))


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("talk.mp3", "talk"),
        ("../../etc/passwd", "passwd"),
        ("C:\\talks\\one.wav", "one"),
        ("a<b>$x.wav", "a_b_x"),
        ("日本語 1.flac", "日本語 1"),
        ("....", "recording"),
        ("a" * 200 + ".wav", "a" * 60),
    ],
)
def test_names_of_files_are_made_harmless(name: str, clean: str) -> None:
    assert clean_name(name) == clean


def test_measures_without_their_package_say_which(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> float:
        raise MissingPackage("PESQ needs the package pesq: pip install it")

    monkeypatch.setitem(pair.STOI_AND_PESQ, "pesq_wb", missing)
    monkeypatch.setitem(pair.STOI_AND_PESQ, "stoi", lambda *_: 0.5)

    rows = describe_books(recording, decode(recording, 2))

    assert rows["STOI"] == "0.500 against the original"
    assert rows["PESQ-WB"] == "none: PESQ needs the package pesq: pip install it"
    # 50 frames a second, 2 books of 4 bits; 0.526 s
    assert rows["bitrate"].startswith("0.4 kbps of codes")
    assert rows["size"].startswith(f"{len(recording.dumps(2))} bytes as .dmc, 16832 as")


def test_two_voices_exchange_their_books(model: Model) -> None:
    first, second = _open(model, _noise(6_400, 1)), _open(model, _noise(6_400, 2))
    codec = model.codec

    mixture = mix(first, second, num_from_first=1, fit="stretch")

    for low, high, waveform in (
        (first, first, mixture.first),
        (second, second, mixture.second),
        (first, second, mixture.first_with_second),
        (second, first, mixture.second_with_first),
    ):
        expected = codec.decode(torch.cat([low.codes[:1], high.codes[1:]]))[0]
        np.testing.assert_allclose(waveform, expected.numpy(), atol=1e-6)
    assert mixture.notice == "Both have 20 frames."


@pytest.mark.parametrize(
    ("num_samples", "frames", "notice"),
    [
        (2 * 320, [0, 0, 1, 1], "The second was stretched from 2 to 4 frames: 2 were repeated."),
        (8 * 320, [1, 3, 5, 7], "The second was stretched from 8 to 4 frames: 4 were left out."),
    ],
)
def test_a_second_voice_is_stretched_evenly(
    model: Model, num_samples: int, frames: list[int], notice: str
) -> None:
    first, second = _open(model, _noise(4 * 320 - 7, 1)), _open(model, _noise(num_samples, 2))

    mixture = mix(first, second, fit="stretch")

    expected = model.codec.decode(second.codes[:, frames])[0, : 4 * 320 - 7]
    np.testing.assert_allclose(mixture.second, expected.numpy(), atol=1e-6)
    assert mixture.notice == notice


def test_cutting_leaves_the_beginnings(model: Model) -> None:
    first, second = _open(model, _noise(10 * 320, 1)), _open(model, _noise(4 * 320, 2))

    mixture = mix(first, second, fit="cut")

    expected = model.codec.decode(first.codes[:, :4])[0]
    np.testing.assert_allclose(mixture.first, expected.numpy(), atol=1e-6)
    assert mixture.notice == "The first was cut from 10 to 4 frames."


def test_voices_of_different_models_are_not_mixed(
    recording: Recording, other_model: Model, sound: SoundBytes
) -> None:
    with pytest.raises(Refused, match="different models"):
        mix(recording, _open(other_model, sound), fit="cut")


def test_without_a_second_book_there_is_nothing_to_exchange(recording: Recording) -> None:
    one_book = _open(recording.model, SoundBytes("a.dmc", recording.dumps(1)))

    with pytest.raises(Refused, match="one book only"):
        mix(recording, one_book, fit="cut")
