import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dmcodec.audio import write_audio
from dmcodec.evaluation.systems.baselines import ogg_packet_bits
from dmcodec.evaluation.systems.opening import open_system
from dmcodec.evaluation.systems.parsing import parse_system
from dmcodec.evaluation.systems.system import System
from dmcodec.metrics.signal import delay_ms

needs_opus = pytest.mark.skipif(shutil.which("opusenc") is None, reason="no opus-tools")
needs_codec2 = pytest.mark.skipif(shutil.which("c2enc") is None, reason="no codec2")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")


def open_text(text: str) -> System:
    return open_system(parse_system(text))


def ogg_page(*segments: int) -> bytes:
    return b"OggS" + bytes(22) + bytes([len(segments)]) + bytes(segments) + bytes(sum(segments))


def test_bits_of_ogg_packets_leave_out_headers_and_pages() -> None:
    # Two headers of 19 and 255 + 5 bytes; then packets of 60, 255 + 0, and 255 + 10 over a page.
    stream = ogg_page(19) + ogg_page(255, 5) + ogg_page(60, 255, 0, 255) + ogg_page(10)

    assert ogg_packet_bits(stream, num_headers=2) == 8 * (60 + 255 + 265)


def test_damaged_ogg_is_refused() -> None:
    with pytest.raises(ValueError, match="not an Ogg stream"):
        ogg_packet_bits(ogg_page(19) + b"RIFF", num_headers=2)


@needs_opus
def test_opus_keeps_time_and_spends_about_its_bitrate(speech: np.ndarray) -> None:
    system = open_text("x=opus:12")

    result = system.reconstruct(speech, 16_000, "clip")

    seconds = len(speech) / 16_000
    assert len(result.waveform) == len(speech)
    assert abs(delay_ms(speech, result.waveform, 16_000)) < 0.2
    assert result.num_bits is not None
    assert 9.0 < result.num_bits / seconds / 1000 < 14.0
    assert "libopus" in system.facts.identity


@needs_codec2
def test_codec2_spends_exactly_its_bitrate(speech: np.ndarray) -> None:
    clip = speech[:32_000]  # 2 s: whole frames

    result = open_text("x=codec2:1600").reconstruct(clip, 16_000, "clip")

    assert result.num_bits == 3_200
    assert result.sample_rate == 8_000
    # Long enough to cut the delay of 320 samples at 16 kHz and still cover the clip.
    assert 2 * len(result.waveform) >= len(clip) + 320


@needs_codec2
def test_codec2_is_in_time_after_its_declared_delay(speech: np.ndarray) -> None:
    """Envelopes are compared: codec2 does not keep phases."""
    system = open_text("x=codec2:3200")
    result = system.reconstruct(speech, 16_000, "clip")
    decoded = np.repeat(result.waveform, 2)[system.facts.delay_samples :][: len(speech)]

    envelopes = [np.convolve(np.abs(w), np.ones(160), "same") for w in (speech, decoded)]
    centred = [(e - e.mean()).astype(np.float32) for e in envelopes]

    assert abs(delay_ms(*centred, 16_000)) < 5.0


@needs_ffmpeg
def test_any_encoder_of_ffmpeg_can_be_named(speech: np.ndarray) -> None:
    result = open_text("x=ffmpeg:aac,24").reconstruct(speech, 16_000, "clip")

    assert result.num_bits is not None
    assert 16 < result.num_bits / (len(speech) / 16_000) / 1000 < 32
    assert np.corrcoef(result.waveform[: len(speech)], speech)[0, 1] > 0.9


def test_folder_gives_the_file_with_the_id_of_the_clip(tmp_path: Path, speech: np.ndarray) -> None:
    (tmp_path / "a").mkdir()
    write_audio(tmp_path / "a" / "one.wav", speech[:800])
    system = open_text(f"x=folder:{tmp_path}")

    result = system.reconstruct(speech, 16_000, "a/one")

    np.testing.assert_array_equal(result.waveform, speech[:800])
    assert result.num_bits is None
    with pytest.raises(FileNotFoundError, match="a/two"):
        system.reconstruct(speech, 16_000, "a/two")


def test_command_reads_in_and_writes_out(speech: np.ndarray) -> None:
    result = open_text("x=command:cp {in} {out}").reconstruct(speech, 16_000, "clip")

    np.testing.assert_array_equal(result.waveform, speech)


def test_failing_command_is_reported_with_its_message(speech: np.ndarray) -> None:
    code = "import sys; sys.exit('no such codec')"
    system = open_text(f'x=command:{sys.executable} -c "{code}" {{in}} {{out}}')

    with pytest.raises(RuntimeError, match=r"exit code 1: no such codec"):
        system.reconstruct(speech, 16_000, "clip")
    with pytest.raises(ValueError, match="without writing the file"):
        open_text("x=command:true {in} {out}").reconstruct(speech, 16_000, "clip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=opus:fast", "needs kilobits a second"),
        ("x=codec2:8", "the modes are 3200"),
        ("x=command:cp {in}", "must hold {in} and {out}"),
        ("x=command:no-such-program {in} {out}", "no program 'no-such-program'"),
        ("x=folder:no-such-folder", "no such folder"),
    ],
)
def test_wrong_argument_is_explained(text: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_text(text)


def test_missing_program_says_which_package_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(FileNotFoundError, match="program opusenc: apt-get install opus-tools"):
        open_text("x=opus:8")
    with pytest.raises(FileNotFoundError, match="program c2enc: apt-get install codec2"):
        open_text("x=codec2:3200")
