"""dmcodec stream between pipes, and the packets that travel there."""

import io
import os
import signal
import subprocess
import sys
import threading
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dmcodec.audio import SoundBytes, read_audio
from dmcodec.cli import app
from dmcodec.cli.options import CommandError
from dmcodec.cli.streams import _read_sound, decode_stream, encode_stream
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.tokens.bitstream import BitstreamError, Header
from dmcodec.tokens.packets import PacketReader, PacketWriter

RATE = 16000


@pytest.fixture(scope="module")
def codec() -> Codec:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(8)
        return Codec(
            CodecConfig(
                seanet=SEANetConfig(
                    num_filters=4, latent_dim=8, is_encoder_bidirectional=False, is_causal=True
                ),
                quantizer=QuantizerConfig(codebook_size=50, num_codebooks=3),
            )
        ).eval()


def make_pcm(num_samples: int) -> np.ndarray:
    return (3000 * np.random.default_rng(1).standard_normal(num_samples)).astype("<i2")


def make_wav(pcm: np.ndarray, rate: int = RATE) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, rate, len(pcm), "NONE", ""))
        file.writeframes(pcm.tobytes())
    return data.getvalue()


@pytest.mark.parametrize("num_samples", [1, 319, 320, 960, 5000])
@pytest.mark.parametrize("packet_frames", [1, 4])
def test_a_stream_is_what_the_file_is(codec: Codec, num_samples: int, packet_frames: int) -> None:
    pcm = make_pcm(num_samples)
    waveform = torch.from_numpy(pcm.astype(np.float32) / 32768)
    whole = codec.encode(waveform)
    packets, sound = io.BytesIO(), io.BytesIO()

    encode_stream(codec, io.BytesIO(make_wav(pcm)), packets, None, packet_frames)
    packets.seek(0)
    decode_stream(codec, packets, sound, is_wav=False)

    packets.seek(0)
    reader, codes = PacketReader(packets), []
    while (packet := reader.read()) is not None:
        codes.append(packet.codes)
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), whole.codes[0].numpy())
    decoded = np.frombuffer(sound.getvalue(), "<i2").astype(np.float32) / 32768
    expected = codec.decode(whole)[0].numpy().clip(-1, 32767 / 32768)
    np.testing.assert_allclose(decoded, expected, atol=0.51 / 32768 + 1e-6)


def test_raw_sound_gives_the_packets_of_wav_and_wav_comes_back(codec: Codec) -> None:
    pcm = make_pcm(2000)
    of_wav, of_raw, sound = io.BytesIO(), io.BytesIO(), io.BytesIO()
    encode_stream(codec, io.BytesIO(make_wav(pcm)), of_wav, 2, 1)
    encode_stream(codec, io.BytesIO(pcm.tobytes()), of_raw, 2, 1)
    assert of_raw.getvalue() == of_wav.getvalue()

    of_wav.seek(0)
    decode_stream(codec, of_wav, sound, is_wav=True)
    sound.seek(0)
    with wave.open(sound) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert len(file.readframes(10**6)) == 4000


def make_any_wav(subtype: str, rate: int, channels: int) -> bytes:
    """Of the subtype; float and 24 bits as WAVE_FORMAT_EXTENSIBLE, as sox and ffmpeg write them."""
    noise = np.random.default_rng(2).standard_normal((rate // 4, channels)) * 0.05
    data = io.BytesIO()
    soundfile.write(data, noise, rate, format="WAVEX", subtype=subtype)
    return data.getvalue()


@pytest.mark.parametrize(
    ("subtype", "rate", "channels"),
    [
        ("PCM_16", RATE, 1),
        ("PCM_24", RATE, 1),
        ("PCM_32", RATE, 2),
        ("PCM_U8", 8_000, 1),
        ("FLOAT", 44_100, 2),
        ("DOUBLE", 48_000, 1),
    ],
)
def test_every_wav_is_the_sound_that_its_file_is(
    codec: Codec, subtype: str, rate: int, channels: int
) -> None:
    data = make_any_wav(subtype, rate, channels)
    waveform = read_audio(SoundBytes("x", data))

    chunks = list(_read_sound(io.BytesIO(data), RATE, 320))

    assert [len(chunk) for chunk in chunks[:-1]] == [320] * (len(chunks) - 1)
    assert len(chunks[-1]) < 320
    np.testing.assert_allclose(np.concatenate(chunks), waveform, atol=2e-6)
    packets = io.BytesIO()
    encode_stream(codec, io.BytesIO(data), packets, None, 1)
    reader, codes = PacketReader(io.BytesIO(packets.getvalue())), []
    while (packet := reader.read()) is not None:
        codes.append(packet.codes)
    frames = np.concatenate(codes, axis=1)
    assert frames.shape[1] == -(-len(waveform) // 320)
    assert (frames == codec.encode(waveform).codes[0].numpy()).mean() > 0.99


def test_wav_of_unknown_size_goes_on_to_the_end() -> None:
    data = bytearray(make_wav(make_pcm(1_000)))
    for size in (0, 0xFFFFFFFF):
        data[40:44] = size.to_bytes(4, "little")
        assert sum(map(len, _read_sound(io.BytesIO(bytes(data)), RATE, 320))) == 1_000
    known = make_wav(make_pcm(1_000)) + b"LIST" + bytes(500)
    assert sum(map(len, _read_sound(io.BytesIO(known), RATE, 320))) == 1_000


def test_wav_that_ends_too_early_is_said(caplog: pytest.LogCaptureFixture) -> None:
    data = make_wav(make_pcm(1_000))
    assert sum(map(len, _read_sound(io.BytesIO(data[:-300]), RATE, 320))) == 850
    assert "stdin ended 300 bytes of sound before its header says" in caplog.text


def test_samples_that_are_no_sound_end_a_stream() -> None:
    data = io.BytesIO()
    loud = np.full(1_000, 3_000.0, np.float32)
    soundfile.write(data, loud, RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match="stdin has samples up to 3000, where full scale is 1"):
        list(_read_sound(io.BytesIO(data.getvalue()), RATE, 320))


def test_a_packet_leaves_as_soon_as_its_frame_is_there(codec: Codec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "causal")
    command = [sys.executable, "-m", "dmcodec.cli", "stream", "encode"]
    with subprocess.Popen(
        [*command, "--model", str(tmp_path / "causal")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(make_pcm(320).tobytes())
        process.stdin.flush()
        reader = PacketReader(process.stdout)  # type: ignore[arg-type]
        packet = reader.read()  # would wait for ever if the frame were held back
        assert packet is not None
        assert packet.codes.shape == (3, 1)
        process.stdin.close()
        assert reader.read() is None
        assert process.stderr is not None
        assert b"0.02 s in 1 packets; the first took" in process.stderr.read()


def test_interrupted_stream_is_finished_and_whole(codec: Codec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "causal")
    # Whatever runs the tests may have its programs ignore SIGINT, as shells do in the background.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from dmcodec.cli import main; main()"
    command = [sys.executable, "-c", program, "stream"]
    model = ["--model", str(tmp_path / "causal")]
    pcm = make_pcm(1000)
    with (
        subprocess.Popen(
            [*command, "encode", *model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        ) as encoder,
        subprocess.Popen(
            [*command, "decode", *model],
            stdin=encoder.stdout,
            stdout=subprocess.PIPE,
            process_group=encoder.pid,
        ) as decoder,
    ):
        # Only a hang lasts so long, also where two programs take minutes to start.
        watch = threading.Timer(900, lambda: os.killpg(encoder.pid, signal.SIGKILL))
        watch.daemon = True
        watch.start()
        assert encoder.stdin is not None
        assert encoder.stdout is not None
        assert decoder.stdout is not None
        encoder.stdout.close()  # the decoder has it
        encoder.stdin.write(pcm.tobytes())
        encoder.stdin.flush()
        sound = decoder.stdout.read(2 * 960)
        os.killpg(encoder.pid, signal.SIGINT)  # the pipe stays open, as that of a microphone
        sound += decoder.stdout.read()
        assert encoder.wait() == 0
        assert decoder.wait() == 0
        watch.cancel()

    whole = codec.decode(codec.encode(torch.from_numpy(pcm.astype(np.float32) / 32768)))[0]
    decoded = np.frombuffer(sound, "<i2") / 32768
    np.testing.assert_allclose(decoded, whole.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("direction", "flags"),
    [
        ("decode", ["--num-codebooks", "1"]),
        ("decode", ["--packet-frames", "2"]),
        ("encode", ["--wav"]),
    ],
)
def test_flags_of_the_other_direction_are_refused(direction: str, flags: list[str]) -> None:
    result = CliRunner().invoke(app, ["stream", direction, "--model", "causal", *flags])

    assert isinstance(result.exception, CommandError)


def test_other_sound_and_other_models_are_refused(codec: Codec) -> None:
    wav = bytearray(make_wav(make_pcm(400)))
    wav[20] = 0x11  # IMA ADPCM
    with pytest.raises(ValueError, match="WAV of format 17 with 16 bits"):
        encode_stream(codec, io.BytesIO(bytes(wav)), io.BytesIO(), None, 1)
    wav = bytearray(make_wav(make_pcm(400), rate=1))
    with pytest.raises(ValueError, match="1 channels at 1 Hz; needs 1 or more at 1000 to"):
        encode_stream(codec, io.BytesIO(bytes(wav)), io.BytesIO(), None, 1)
    with pytest.raises(ValueError, match="no WAV that can be read"):
        encode_stream(codec, io.BytesIO(b"RIFF nonsense"), io.BytesIO(), None, 1)
    with pytest.raises(ValueError, match="another kind than WAV"):
        encode_stream(codec, io.BytesIO(b"fLaC and so on"), io.BytesIO(), None, 1)
    writer = PacketWriter(HEADER)
    with pytest.raises(ValueError, match="its codes are of model 'other'"):
        decode_stream(codec, io.BytesIO(writer.start), io.BytesIO(), is_wav=False)


HEADER = Header(
    sample_rate=RATE,
    hop_length=320,
    num_codebooks=2,
    codebook_size=4,
    num_samples=1,
    model_id="other",
    model_hash="0011223344556677",
)


def test_the_example_in_the_format_document_is_what_is_written() -> None:
    writer = PacketWriter(HEADER)
    data = writer.start + writer.packet(np.array([[0, 1], [3, 2]]), missing_samples=5)
    text = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
    block = text.split("version 2: codes of a stream")[1].split("```hex\n")[1].split("```")[0]
    assert (data + writer.end()).hex(" ") == " ".join(block.split())


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    writer = PacketWriter(HEADER)
    data = writer.start + writer.packet(np.array([[0, 1], [3, 2]])) + writer.end()
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(BitstreamError):
            read_all(bytes(damaged))
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            read_all(data[:size])
    assert [packet.num_samples for packet in read_all(data)] == [640]


def read_all(data: bytes) -> list:
    reader, packets = PacketReader(io.BytesIO(data)), []
    while (packet := reader.read()) is not None:
        packets.append(packet)
    return packets


def test_packets_that_a_hostile_writer_makes_are_refused() -> None:
    for codes, missing, message in (
        (np.array([[0], [4]]), 0, "codes must be 0 to 3"),
        (np.array([[0], [1]]), 320, "less than a frame missing"),
        (np.zeros((3, 1), np.int64), 0, r"codes must be \[2, m\]"),
    ):
        with pytest.raises(ValueError, match=message):
            PacketWriter(HEADER).packet(codes, missing_samples=missing)
    reader = PacketReader(io.BytesIO(PacketWriter(HEADER).start + os.urandom(64)))
    with pytest.raises(BitstreamError, match="packet 0"):
        reader.read()
