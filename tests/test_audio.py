import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from dmcodec.audio import (
    AUDIO_SUFFIXES,
    AudioError,
    AudioInfo,
    audio_info,
    dump_pcm_16,
    find_audio_files,
    from_int16,
    read_audio,
    remove_dc,
    resample,
    resampled_length,
    samples_to_seconds,
    seconds_to_samples,
    to_int16,
    write_audio,
    write_audio_blocks,
)

# name -> format, subtype, rate, channels: what people bring.
FILES = {
    "mono.wav": ("WAV", "PCM_16", 16_000, 1),
    "telephone.wav": ("WAV", "PCM_16", 8_000, 1),
    "stereo.wav": ("WAV", "FLOAT", 44_100, 2),
    "studio.flac": ("FLAC", "PCM_24", 48_000, 2),
    "mono.flac": ("FLAC", "PCM_16", 16_000, 1),
    "odd_rate.flac": ("FLAC", "PCM_16", 22_050, 1),
    "mono.ogg": ("OGG", "VORBIS", 16_000, 1),
    "stereo.ogg": ("OGG", "VORBIS", 44_100, 2),
    "stereo.opus": ("OGG", "OPUS", 48_000, 2),
    "stereo.mp3": ("MP3", "MPEG_LAYER_III", 44_100, 2),
    "mono.aiff": ("AIFF", "PCM_16", 16_000, 1),
}
NUM_SECONDS = 2


def make_waveform(num_samples: int, seed: int = 0) -> np.ndarray:
    """Smooth noise `[T]` with content at all frequencies, peak 0.5."""
    noise = np.random.default_rng(seed).normal(size=num_samples + 2)
    smooth = np.convolve(noise, [0.25, 0.5, 0.25], mode="valid")
    return (0.5 * smooth / np.abs(smooth).max()).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for seed, (name, (format_name, subtype, rate, channels)) in enumerate(FILES.items()):
        frames = NUM_SECONDS * rate + 123
        waveform = np.stack([make_waveform(frames, 10 * seed + c) for c in range(channels)], axis=1)
        soundfile.write(folder / name, waveform, rate, format=format_name, subtype=subtype)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_whole_file_has_the_exact_length(folder: Path, name: str) -> None:
    _, _, rate, channels = FILES[name]
    frames = NUM_SECONDS * rate + 123
    expected = -(-frames * 16_000 // rate)

    waveform = read_audio(folder / name)

    assert audio_info(folder / name) == AudioInfo(rate, channels, frames)
    assert audio_info(folder / name).num_samples_at(16_000) == expected
    assert waveform.shape == (expected,)
    assert waveform.dtype == np.float32
    assert 0.05 < np.abs(waveform).max() < 1.5


@pytest.mark.parametrize("name", FILES)
def test_slice_equals_the_same_slice_of_the_whole(folder: Path, name: str) -> None:
    whole = read_audio(folder / name)
    rng = np.random.default_rng(1)
    slices = [(0, 1), (len(whole) - 1, 1), (0, len(whole)), (320, 16_000)]
    starts = rng.integers(0, len(whole), size=10)
    slices += [(int(s), int(rng.integers(1, len(whole) - s + 1))) for s in starts]

    for start, length in slices:
        part = read_audio(folder / name, start_samples=start, num_samples=length)
        # Resampling in float32 rounds differently per position: a few units in the last place.
        np.testing.assert_allclose(part, whole[start : start + length], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_slice_without_length_goes_to_the_end(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "x.wav", make_waveform(rate), rate, subtype="FLOAT")
    whole = read_audio(tmp_path / "x.wav")

    tail = read_audio(tmp_path / "x.wav", start_samples=15_000)

    np.testing.assert_allclose(tail, whole[15_000:], rtol=0, atol=1e-6)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = make_waveform(1_000, 1), make_waveform(1_000, 2)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")

    np.testing.assert_allclose(read_audio(tmp_path / "x.wav"), (left + right) / 2, atol=1e-7)


def test_block_boundaries_leave_no_trace(tmp_path: Path) -> None:
    waveform = make_waveform(150_000)  # more than two blocks of 65,536 frames
    soundfile.write(tmp_path / "x.wav", waveform, 16_000, subtype="FLOAT")

    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav"), waveform)


@given(
    num_samples=st.integers(1, 2_000),
    from_rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000]),
    to_rate=st.sampled_from([8_000, 16_000, 24_000, 44_100]),
)
@settings(max_examples=150)
def test_resampled_length_is_exact(num_samples: int, from_rate: int, to_rate: int) -> None:
    resampled = resample(make_waveform(num_samples), from_rate, to_rate)

    assert resampled.shape == (-(-num_samples * to_rate // from_rate),)
    assert np.isfinite(resampled).all()


@pytest.mark.parametrize("from_rate", [8_000, 22_050, 44_100, 48_000])
def test_resampled_sine_is_the_sine_at_the_new_rate(from_rate: int) -> None:
    sine = np.sin(2 * np.pi * 440 * np.arange(from_rate) / from_rate)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)

    resampled = resample(sine, from_rate, 16_000)

    # The ends ring, because the sine begins and stops abruptly there; HQ is good to about 100 dB.
    np.testing.assert_allclose(resampled[500:-500], expected[500:-500], atol=1e-4)


def test_resampling_down_removes_what_would_fold_back() -> None:
    tone_10_khz = np.sin(2 * np.pi * 10_000 * np.arange(44_100) / 44_100)

    assert np.abs(resample(tone_10_khz, 44_100, 16_000)[500:-500]).max() < 1e-4


def test_rates_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sample rates must be positive, got 0 and 16000"):
        resampled_length(10, 0, 16_000)


@pytest.mark.parametrize("shape", [(2, 10), (0,)])
def test_waveform_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be mono"):
        resample(np.zeros(shape, np.float32), 8_000, 16_000)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        read_audio(tmp_path / "nowhere.wav")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.wav", b"", "empty"),
        ("text.wav", b"this is no sound" * 100, "Format not recognised"),
        ("text.mp3", b"this is no sound" * 100, "cannot be read as sound"),
        ("headerless.raw", bytes(1_000), "no header"),
    ],
)
def test_no_sound_file_is_named_with_its_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(AudioError, match=rf"{name}.*{reason}"):
        read_audio(tmp_path / name)


def test_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="folder"):
        read_audio(tmp_path)


def test_file_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(0), 16_000)

    with pytest.raises(AudioError, match=r"x\.wav: the file holds no samples"):
        audio_info(tmp_path / "x.wav")


@pytest.mark.parametrize("name", ["mono.wav", "mono.flac", "mono.aiff"])
def test_file_cut_in_half_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])

    with pytest.raises(AudioError, match=rf"{name}: (cut short|damaged)"):
        read_audio(tmp_path / name)


def test_damage_inside_a_flac_file_is_refused(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "mono.flac").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2_000] = bytes(2_000)
    (tmp_path / "x.flac").write_bytes(content)

    with pytest.raises(AudioError, match=r"x\.flac: damaged"):
        read_audio(tmp_path / "x.flac")


def test_wav_of_unknown_size_from_a_pipe_is_read(tmp_path: Path) -> None:
    waveform = make_waveform(1_000)
    write_audio(tmp_path / "x.wav", waveform)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    size = content.index(b"data") + 4
    content[size : size + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "x.wav").write_bytes(content)

    np.testing.assert_allclose(read_audio(tmp_path / "x.wav"), waveform, atol=2**-16)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    waveform = make_waveform(1_000)
    waveform[500] = bad
    soundfile.write(tmp_path / "x.wav", waveform, 16_000, subtype="FLOAT")

    with pytest.raises(AudioError, match=r"x\.wav: has NaN or infinite samples"):
        read_audio(tmp_path / "x.wav")


@pytest.mark.parametrize(("start", "length"), [(-1, 10), (0, 0), (995, 10), (1_000, None)])
def test_slice_outside_the_file_is_refused(tmp_path: Path, start: int, length: int | None) -> None:
    write_audio(tmp_path / "x.wav", make_waveform(1_000))

    with pytest.raises(ValueError, match="the file has 1000"):
        read_audio(tmp_path / "x.wav", start_samples=start, num_samples=length)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("num_samples", [1, 2, 319, 16_001])
def test_written_file_is_read_back_to_half_a_step(
    tmp_path: Path, suffix: str, num_samples: int
) -> None:
    waveform = make_waveform(num_samples)
    path = tmp_path / f"a.b{suffix}"

    write_audio(path, waveform, 22_050)

    assert soundfile.info(path).subtype == "PCM_16"
    assert audio_info(path) == AudioInfo(22_050, 1, num_samples)
    np.testing.assert_allclose(read_audio(path, sample_rate=22_050), waveform, atol=2**-16)


def test_reading_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    every_value = np.arange(-32_768, 32_768, dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", every_value, 16_000)

    write_audio(tmp_path / "y.wav", read_audio(tmp_path / "x.wav"))

    np.testing.assert_array_equal(soundfile.read(tmp_path / "y.wav", dtype="int16")[0], every_value)


def test_writing_clips_instead_of_wrapping(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", np.array([1.5, -1.5, 1.0, -1.0, 100.0]))

    expected = [32_767, -32_768, 32_767, -32_768, 32_767]
    assert soundfile.read(tmp_path / "x.wav", dtype="int16")[0].tolist() == expected


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", make_waveform(100))
    write_audio(tmp_path / "x.wav", make_waveform(200))

    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]
    assert audio_info(tmp_path / "x.wav").num_samples == 200


def test_failed_writing_keeps_the_old_file(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.wav", make_waveform(100))

    def blocks() -> Iterator[np.ndarray]:
        yield make_waveform(200)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_audio_blocks(tmp_path / "x.wav", blocks())

    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]
    assert audio_info(tmp_path / "x.wav").num_samples == 100


def test_bad_input_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"can write \.wav and \.flac, not '\.mp3'"):
        write_audio(tmp_path / "x.mp3", np.zeros(10))
    with pytest.raises(ValueError, match=r"x\.wav: the waveform has NaN"):
        write_audio(tmp_path / "x.wav", np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="must be mono"):
        write_audio(tmp_path / "x.wav", np.zeros((1, 10)))
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        write_audio(tmp_path / "missing" / "x.wav", np.zeros(10))
    assert list(tmp_path.iterdir()) == []


def test_dc_is_removed_and_nothing_else() -> None:
    waveform = make_waveform(16_000)
    waveform -= waveform.mean(dtype=np.float64)

    np.testing.assert_allclose(remove_dc(waveform + np.float32(0.3)), waveform, atol=1e-6)


@given(num_samples=st.integers(0, 2**40), sample_rate=st.sampled_from([8_000, 16_000, 44_100]))
def test_samples_to_seconds_and_back_is_exact(num_samples: int, sample_rate: int) -> None:
    seconds = samples_to_seconds(num_samples, sample_rate)

    assert seconds_to_samples(seconds, sample_rate) == num_samples


def test_seconds_become_the_nearest_sample() -> None:
    assert seconds_to_samples(14.085) == 225_360
    assert seconds_to_samples(1.4999 / 16_000) == 1
    assert seconds_to_samples(1.5 / 16_000) == 2


@pytest.mark.parametrize("seconds", [-0.1, float("nan"), float("inf")])
def test_impossible_durations_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be finite and not negative"):
        seconds_to_samples(seconds)


def test_sound_files_are_found_sorted_and_recursively(tmp_path: Path) -> None:
    names = ["b.wav", "a/x.1.FLAC", "a/x.2.flac", "c/d/e.mp3", "notes.txt", "._b.wav", "none"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    found = [path.relative_to(tmp_path).as_posix() for path in find_audio_files(tmp_path)]

    assert found == ["a/x.1.FLAC", "a/x.2.flac", "b.wav", "c/d/e.mp3"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_audio_files(tmp_path / "nowhere")


def test_every_supported_suffix_is_readable(folder: Path, tmp_path: Path) -> None:
    sources = {path.suffix: path for path in folder.iterdir()}
    like = {".oga": ".ogg", ".aif": ".aiff", ".aifc": ".aiff", ".bwf": ".wav", ".mp2": ".mp3"}
    sources |= {suffix: sources[other] for suffix, other in like.items()}
    kinds = {".w64": "W64", ".rf64": "RF64", ".au": "AU", ".snd": "AU", ".caf": "CAF"}
    for suffix, kind in (kinds | {".sph": "NIST", ".nist": "NIST", ".voc": "VOC"}).items():
        sources[suffix] = tmp_path / f"made{suffix}"
        soundfile.write(
            sources[suffix], make_waveform(2_000), 16_000, format=kind, subtype="PCM_16"
        )

    for suffix in AUDIO_SUFFIXES:
        (tmp_path / f"x{suffix}").write_bytes(sources[suffix].read_bytes())
        assert len(read_audio(tmp_path / f"x{suffix}", num_samples=1_000)) == 1_000


def test_importing_audio_imports_no_torch() -> None:
    command = "import sys, dmcodec.audio; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_integer_samples_are_refused_and_tensors_are_taken(tmp_path: Path) -> None:
    integers = np.full(100, 1000, np.int16)
    with pytest.raises(ValueError, match="dtype int16; give float samples"):
        write_audio(tmp_path / "a.wav", integers)
    with pytest.raises(ValueError, match="dtype int16"):
        write_audio_blocks(tmp_path / "a.wav", [integers])
    with pytest.raises(ValueError, match="dtype int16"):
        resample(integers, 16_000, 8_000)
    assert not (tmp_path / "a.wav").exists()

    torch = pytest.importorskip("torch")
    write_audio(tmp_path / "b.wav", torch.full((100,), 0.25))
    np.testing.assert_array_equal(read_audio(tmp_path / "b.wav"), 0.25)


def test_flac_from_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe.flac"
    waveform = make_waveform(150_000)
    write_audio(path, waveform)
    data = bytearray(path.read_bytes())
    # STREAMINFO: 36 bits of total samples end at byte 26 of the file; 0 means unknown.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(bytes(data))

    assert audio_info(path).num_samples == 150_000
    np.testing.assert_allclose(read_audio(path), waveform, atol=2**-16)
    part = read_audio(path, start_samples=140_000, num_samples=9_000)
    np.testing.assert_allclose(part, waveform[140_000:149_000], atol=2**-16)
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(AudioError, match="damaged"):
        audio_info(path)


def test_full_disk_is_an_error_with_the_path(tmp_path: Path) -> None:
    script = (
        "import resource, numpy, sys; from dmcodec.audio import write_audio\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "write_audio(sys.argv[1], numpy.zeros(100000, numpy.float32))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "big.wav"], capture_output=True, text=True
    )

    assert "OSError" in result.stderr
    assert "big.wav: cannot be written" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_floats_become_the_nearest_16_bits_and_loud_ones_the_loudest() -> None:
    waveform = np.array([0, 1.4 / 32768, -1.6 / 32768, 1, -1, 3, -3], np.float32)

    integers = to_int16(waveform)

    assert integers.tolist() == [0, 1, -2, 32767, -32768, 32767, -32768]
    assert dump_pcm_16(waveform)[:6] == b"\x00\x00\x01\x00\xfe\xff"
    everything = np.arange(-32768, 32768).astype(np.int16)
    np.testing.assert_array_equal(to_int16(from_int16(everything)), everything)
