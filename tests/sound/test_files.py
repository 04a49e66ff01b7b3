"""Sound files as people have them: lengths that are guessed, joined, cut, damaged, from pipes."""

import io
import os
import struct
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmcodec.audio import AudioError, SoundBytes, audio_info, read_audio, resample

RATE = 16_000


def make_waveform(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise of changing loudness [T], so that a variable bitrate varies."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.2 * noise * np.linspace(0, 1, num_samples) ** 2).astype(np.float32)


def make_file(kind: str, subtype: str, waveform: np.ndarray, rate: int = RATE, **more) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, waveform, rate, format=kind, subtype=subtype, **more)
    return data.getvalue()


def make_mp3(num_samples: int = 80_000, seed: int = 0, rate: int = RATE) -> tuple[bytes, int]:
    """A VBR file with its Xing frame, and the number of samples of all its frames."""
    data = make_file(
        "MP3",
        "MPEG_LAYER_III",
        make_waveform(num_samples, seed),
        rate,
        bitrate_mode="VARIABLE",
        compression_level=0.5,
    )
    mark = data.index(b"Xing")
    (num_frames,) = struct.unpack(">I", data[mark + 8 : mark + 12])
    return data, num_frames * (576 if rate < 32_000 else 1152)


def without_xing(data: bytes) -> bytes:
    """The file without its first frame, which holds the tag and no sound."""
    mark = data.index(b"Xing")
    return data[data.index(data[:2], mark) :]


def read(data: bytes, **more) -> np.ndarray:
    """All samples, which are as many as `audio_info` said."""
    sound = SoundBytes("x", data)
    waveform = read_audio(sound, **more)
    assert audio_info(sound).num_samples_at(RATE) == len(waveform)
    return waveform


# Lengths that are only guessed.


def test_mp3_without_a_xing_frame_has_the_samples_of_all_its_frames() -> None:
    data, num_samples = make_mp3()
    plain = without_xing(data)
    guess = soundfile.info(io.BytesIO(plain)).frames
    assert guess != num_samples  # else the test would show nothing

    waveform = read(plain)

    assert len(waveform) == num_samples
    with_tag = read(data)  # what the tag says of the encoder's delay is cut off
    delays = [
        float(np.corrcoef(with_tag[:40_000], waveform[delay : delay + 40_000])[0, 1])
        for delay in range(2_000)
    ]
    assert max(delays) > 0.999


@pytest.mark.parametrize("size", [100, 1_000, 70_000])
def test_a_tag_before_an_mp3_adds_no_samples(size: int) -> None:
    data, num_samples = make_mp3()
    body = size.to_bytes(4, "big")
    synchsafe = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    tagged = b"ID3\x03\x00\x00" + synchsafe + body + bytes(size - 4) + without_xing(data)

    assert len(read(tagged)) == num_samples
    # A tag at the end, and a tag between two files.
    assert len(read(tagged + b"TAG" + bytes(125))) == num_samples
    assert len(read(tagged + tagged)) == 2 * num_samples


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_joined_mp3_files_are_read_one_after_the_other(rate: int) -> None:
    first, second = make_mp3(50_000, 1, rate)[0], make_mp3(70_000, 2, rate)[0]

    joined = read(first + second)

    parts = [read_audio(SoundBytes("p", each), sample_rate=rate) for each in (first, second)]
    whole = np.concatenate(parts)
    np.testing.assert_allclose(joined, resample(whole, rate, RATE), atol=1e-6)
    tail = read_audio(
        SoundBytes("x", first + second), sample_rate=rate, start_samples=49_000, num_samples=3_000
    )
    np.testing.assert_allclose(tail, whole[49_000:52_000], atol=1e-6)


def test_cut_and_damaged_mp3_files_are_refused() -> None:
    data, _ = make_mp3()
    plain = without_xing(data)
    for whole in (data, plain):
        for end in (len(whole) // 2, len(whole) - 7):
            with pytest.raises(AudioError, match="cut short"):
                read(whole[:end])
        middle = len(whole) // 2
        with pytest.raises(AudioError, match=r"damaged at byte \d+"):
            read(whole[:middle] + bytes(3_000) + whole[middle + 3_000 :])
    # Whole frames are missing: only the tag knows.
    frames = data.split(plain[:2] + plain[2:3])
    assert len(frames) > 3
    with pytest.raises(AudioError, match="promises"):
        read(data[: len(data) - len(plain)] + without_xing(make_mp3(20_000)[0]))


def test_mp3_files_of_two_rates_are_not_read_as_one() -> None:
    with pytest.raises(AudioError, match="streams of 16000 and 44100 Hz one after another"):
        read(make_mp3()[0] + make_mp3(rate=44_100)[0])


# Several streams in one file.

JOINED = [
    ("WAV", "PCM_16"),
    ("WAVEX", "FLOAT"),
    ("WAV", "GSM610"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_24"),
    ("CAF", "PCM_16"),
    ("NIST", "PCM_16"),
    ("NIST", "ULAW"),
    ("AVR", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("HTK", "PCM_16"),
    ("IRCAM", "FLOAT"),
    ("IRCAM", "ULAW"),
    ("MAT4", "FLOAT"),
    ("MAT5", "PCM_16"),
    ("MPC2K", "PCM_16"),
    ("PAF", "PCM_16"),
    ("PVF", "PCM_16"),
    ("SDS", "PCM_16"),
    ("VOC", "PCM_16"),
    ("VOC", "ULAW"),
    ("WVE", "ALAW"),
    ("XI", "DPCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


# Formats that know one rate.
RATES = {"MPC2K": 44_100, "WVE": 8_000, "XI": 44_100}


@pytest.mark.parametrize(("kind", "subtype"), JOINED)
def test_joined_files_are_read_one_after_the_other(kind: str, subtype: str) -> None:
    rate = RATES.get(kind, 48_000 if subtype == "OPUS" else RATE)
    parts = [make_file(kind, subtype, make_waveform(n, n), rate) for n in (9_000, 12_345)]
    each = [read_audio(SoundBytes("p", data), sample_rate=rate) for data in parts]

    joined = read_audio(SoundBytes("x", b"".join(parts)), sample_rate=rate)

    np.testing.assert_array_equal(joined, np.concatenate(each))


@pytest.mark.parametrize("kind", ["IRCAM", "MAT4", "PAF"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_joined_files_of_either_order_of_bytes_are_read(kind: str, endian: str) -> None:
    data = make_file(kind, "PCM_16", make_waveform(5_000), endian=endian)
    assert len(read(data + data)) == 10_000


def test_joined_flac_files_are_refused(tmp_path: Path) -> None:
    data = make_file("FLAC", "PCM_16", make_waveform(9_000))
    (tmp_path / "x.flac").write_bytes(data + data)
    for sound in (SoundBytes("x.flac", data + data), tmp_path / "x.flac"):
        with pytest.raises(AudioError, match=r"x\.flac: holds several FLAC streams"):
            read_audio(sound)


# Files cut short.

# Their headers do not say how much sound there is.
WITHOUT_LENGTH = ("IRCAM", "PAF", "PVF", "XI")
CUT = [
    *(pair for pair in JOINED if pair[1] != "GSM610" and pair[0] not in WITHOUT_LENGTH),
    ("FLAC", "PCM_16"),
    ("AIFF", "IMA_ADPCM"),
    ("AU", "ULAW"),
    ("W64", "MS_ADPCM"),
    ("CAF", "ALAC_24"),
    ("MAT4", "PCM_16"),
    ("SVX", "PCM_16"),
]


@pytest.mark.parametrize(("kind", "subtype"), CUT)
def test_files_cut_short_are_refused(kind: str, subtype: str, tmp_path: Path) -> None:
    rate = RATES.get(kind, 48_000 if subtype == "OPUS" else RATE)
    data = make_file(kind, subtype, make_waveform(20_000), rate)
    assert len(read_audio(SoundBytes("x", data), sample_rate=rate)) >= 20_000
    for end in (len(data) // 3, len(data) // 2, len(data) - 400):
        (tmp_path / "x").write_bytes(data[:end])
        for sound in (SoundBytes("x", data[:end]), tmp_path / "x"):
            with pytest.raises(AudioError, match=r"cut short|damaged|malformed"):
                read_audio(sound)


@pytest.mark.parametrize(
    ("kind", "subtype"), [("CAF", "PCM_16"), ("CAF", "ALAC_24"), ("HTK", "PCM_16")]
)
def test_the_last_bytes_are_missed_too(kind: str, subtype: str) -> None:
    data = make_file(kind, subtype, make_waveform(20_000))
    with pytest.raises(AudioError, match=f"promises {len(data)} bytes, {len(data) - 3} are there"):
        read(data[:-3])


def test_ogg_page_that_is_lost_or_damaged_is_found() -> None:
    data = make_file("OGG", "VORBIS", make_waveform(200_000))
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    assert len(pages) > 5
    with pytest.raises(AudioError, match="a page is missing"):
        read(b"".join(pages[:4] + pages[5:]))
    with pytest.raises(AudioError, match="has no last page"):
        read(b"".join(pages[:-1]))
    middle = len(data) // 2
    with pytest.raises(AudioError, match="damaged in the Ogg page"):
        read(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert len(read(data + b"TAG" + bytes(125))) == 200_000


# Headers of programs that write to pipes.


def unknown_size(kind: str, data: bytes, size: int) -> bytes:
    """The file with the sizes that its writer did not know."""
    changed = bytearray(data)
    if kind == "WAV":
        changed[4:8] = struct.pack("<I", size)
        start = data.index(b"data") + 4
        changed[start : start + 4] = struct.pack("<I", size)
    elif kind == "AU":
        changed[8:12] = struct.pack(">I", size)
    elif kind == "CAF":
        start = data.index(b"data") + 4
        changed[start : start + 8] = b"\xff" * 8
    elif kind == "RF64":
        start = data.index(b"ds64") + 8
        changed[start : start + 24] = struct.pack("<QQQ", *[size if size == 0 else 2**64 - 1] * 3)
    return bytes(changed)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", ["WAV", "AU", "CAF", "RF64"])
def test_file_of_unknown_size_is_read_to_its_end(kind: str, size: int) -> None:
    waveform = make_waveform(20_000)
    data = make_file(kind, "PCM_16", waveform)

    found = read(unknown_size(kind, data, size))

    np.testing.assert_allclose(found, waveform, atol=2**-15)


def test_joined_wav_files_of_unknown_size_are_both_read() -> None:
    data = unknown_size("WAV", make_file("WAV", "PCM_16", make_waveform(5_000)), 0)
    assert len(read(data + data)) == 10_000


def test_size_of_a_large_file_is_taken_at_its_word(tmp_path: Path) -> None:
    """3 GB of silence (a hole in the file) with a note behind them, which is no sound."""
    head = bytearray(make_file("WAV", "PCM_16", np.zeros(1, np.float32)))[:44]
    num_bytes, note = 3_000_000_000, b"LIST" + struct.pack("<I", 4) + b"INFO"
    head[4:8] = struct.pack("<I", 36 + num_bytes + len(note))
    head[40:44] = struct.pack("<I", num_bytes)
    with (tmp_path / "x.wav").open("wb") as file:
        file.write(head)
        file.seek(44 + num_bytes)
        file.write(note)

    assert audio_info(tmp_path / "x.wav").num_samples == num_bytes // 2


def test_wav_file_that_is_truly_empty_is_refused() -> None:
    data = make_file("WAV", "PCM_16", make_waveform(100))
    start = data.index(b"data") + 4
    note = b"LIST" + struct.pack("<I", 4) + b"INFO"
    empty = bytearray(data[:start] + bytes(4) + note)
    empty[4:8] = struct.pack("<I", len(empty) - 8)
    with pytest.raises(AudioError, match="holds no samples"):
        read(bytes(empty))


# Formats that cannot seek, rates that are none, samples that are no sound.

TELEPHONE = [
    ("WAV", "GSM610"),
    ("W64", "GSM610"),
    ("AIFF", "GSM610"),
    ("WAV", "G721_32"),
    ("AU", "G721_32"),
    ("AU", "G723_24"),
    ("WAV", "NMS_ADPCM_16"),
    ("WAV", "NMS_ADPCM_32"),
]


@pytest.mark.parametrize(("kind", "subtype"), TELEPHONE)
def test_telephone_formats_are_read_from_the_start(kind: str, subtype: str) -> None:
    waveform = resample(make_waveform(8_000), 4_000, 8_000)
    data = make_file(kind, subtype, waveform, 8_000)

    whole = read_audio(SoundBytes("x", data), sample_rate=8_000)

    assert 16_000 <= len(whole) < 16_400  # whole blocks
    assert np.corrcoef(whole[8_000:16_000], waveform[8_000:])[0, 1] > 0.8
    part = read_audio(SoundBytes("x", data), sample_rate=8_000, start_samples=9_000, num_samples=70)
    np.testing.assert_array_equal(part, whole[9_000:9_070])


@pytest.mark.parametrize("rate", [1, 999, 2**31 - 1])
def test_rates_that_no_sound_has_are_refused(rate: int) -> None:
    data = bytearray(make_file("WAV", "PCM_16", make_waveform(100)))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(AudioError, match=rf"says {rate} samples a second; 1000 to 1000000"):
        audio_info(SoundBytes("x", bytes(data)))


@pytest.mark.parametrize("scale", [32_768.0, 3e38])
def test_samples_far_beyond_full_scale_are_refused(scale: float) -> None:
    waveform = (make_waveform(4_000).astype(np.float64) * scale).astype(np.float32)
    with pytest.raises(AudioError, match=r"x: has samples up to .*, where full scale is 1"):
        read(make_file("WAV", "FLOAT", waveform))
    # Loud, and still sound.
    read(make_file("WAV", "FLOAT", 30 * make_waveform(4_000)))


def test_named_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = make_file("FLAC", "PCM_16", make_waveform(3_000))
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()

    waveform = read_audio(pipe)

    writer.join()
    np.testing.assert_array_equal(waveform, read(data))


# What FFmpeg reads.


def make_media(container: str, codec: str, rate: int, waveform: np.ndarray, **options) -> bytes:
    av = pytest.importorskip("av", reason="needs pip install 'dmcodec[media]'")
    data = io.BytesIO()
    with av.open(data, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            resample(waveform, RATE, rate)[None], format="flt", layout="mono"
        )
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        fit = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=1024)
        for piece in fit.resample(frame) + fit.resample(None):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return data.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("ipod", "aac", RATE), ("mp4", "aac", 44_100), ("matroska", "flac", RATE)],
)
def test_media_files_are_read(container: str, codec: str, rate: int, tmp_path: Path) -> None:
    waveform = np.sin(np.arange(40_000) * 0.05).astype(np.float32) * 0.3
    data = make_media(container, codec, rate, waveform)
    (tmp_path / "x").write_bytes(data)

    found = read(data)

    assert 40_000 <= len(found) < 41_100  # the last frame of AAC is filled up
    assert np.corrcoef(found[2_000:39_000], waveform[2_000:39_000])[0, 1] > 0.99
    np.testing.assert_array_equal(read_audio(tmp_path / "x"), found)
    part = read_audio(SoundBytes("x", data), start_samples=5_001, num_samples=900)
    np.testing.assert_allclose(part, found[5_001:5_901], atol=1e-6)
    for end in (len(data) // 2, len(data) - 5):
        with pytest.raises(AudioError, match="cut short"):
            read(data[:end])


def test_joined_mp4_files_are_refused() -> None:
    data = make_media("ipod", "aac", RATE, make_waveform(20_000))
    with pytest.raises(AudioError, match="several MP4 files one after another"):
        read(data + data)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "secret.wav").write_bytes(make_file("WAV", "PCM_16", make_waveform(9_000)))
    lists = {
        "x.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n",
        "x.ffconcat": f"ffconcat version 1.0\nfile '{tmp_path / 'secret.wav'}'\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="cannot be read as sound"):
            read_audio(tmp_path / name)


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_media("ipod", "aac", RATE, make_waveform(2_000))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(AudioError, match=r"pip install 'dmcodec\[media\]'"):
        read(data)
