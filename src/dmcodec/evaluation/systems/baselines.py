"""Programs and folders as systems: Opus, Codec2, whatever ffmpeg encodes, DIR, and a command.

Bits are those of the coded packets; file headers and containers are not counted.
"""

import json
import shlex
import shutil
import subprocess
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dmcodec.audio import (
    Waveform,
    dump_pcm_16,
    find_audio_files,
    from_int16,
    read_audio,
    resample,
    write_audio,
)
from dmcodec.evaluation.systems.system import System, SystemFacts, SystemOutput, SystemSpec
from dmcodec.packages import find_program

_TIMEOUT_S = 600
_OPUS_FRAME_RATE = 50.0
_CODEC2_RATE = 8_000
_CODEC2_KBPS = {
    "3200": 3.2,
    "2400": 2.4,
    "1600": 1.6,
    "1400": 1.4,
    "1300": 1.3,
    "1200": 1.2,
    "700C": 0.7,
    "450": 0.45,
}
_CODEC2_FRAMES_MS = {"3200": 20, "2400": 20}  # all others: 40
# At 8 kHz; lag of the envelopes of 8 clips, median (docs/evaluation.md).
_CODEC2_DELAY = {"700C": 240, "450": 240}
_CODEC2_DELAY_DEFAULT = 160
_FFMPEG_CONTAINERS = {"aac": "mp4", "libmp3lame": "mp4"}  # Matroska does not keep their delay


def open_baseline(spec: SystemSpec) -> System:
    """The system of an `opus`, `codec2`, `ffmpeg`, `folder` or `command` specification."""
    match spec.kind:
        case "opus":
            return Opus(spec)
        case "codec2":
            return Codec2(spec)
        case "ffmpeg":
            return Ffmpeg(spec)
        case "folder":
            return Folder(spec)
        case "command":
            return Command(spec)
        case _:
            raise ValueError(f"{spec.kind!r} is not a program or folder")


class Opus:
    """`opus:KBPS`: opusenc (20 ms frames, variable bitrate, tuned for speech) and opusdec."""

    def __init__(self, spec: SystemSpec) -> None:
        kbps = _positive(spec)
        self._encoder = find_program("opusenc", "Opus", "opus-tools")
        self._decoder = find_program("opusdec", "Opus", "opus-tools")
        version = _run([self._encoder, "--version"]).decode().splitlines()[0].strip()
        self._options = ["--quiet", "--speech", "--comp", "10", "--bitrate", f"{kbps:g}"]
        self.facts = SystemFacts(
            identity=f"{version} {' '.join(self._options)}",
            family="Opus",
            description=f"Opus {kbps:g} kbps, {version}",
            nominal_kbps=kbps,
            sample_rate=48_000,
            frame_rate=_OPUS_FRAME_RATE,
            delay_samples=spec.delay_samples or 0,
        )

    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Through a temporary Ogg file; opusdec removes the codec's delay itself."""
        with tempfile.TemporaryDirectory() as folder:
            source, coded, result = (Path(folder) / n for n in ("in.wav", "x.opus", "out.wav"))
            write_audio(source, waveform, sample_rate)
            started = time.perf_counter()
            _run([self._encoder, *self._options, str(source), str(coded)])
            encoded = time.perf_counter()
            rate = ["--rate", str(sample_rate)]
            _run([self._decoder, "--quiet", "--float", *rate, str(coded), str(result)])
            decoded = time.perf_counter()
            return SystemOutput(
                read_audio(result, sample_rate=sample_rate),
                sample_rate,
                ogg_packet_bits(coded.read_bytes(), num_headers=2),
                None,
                encoded - started,
                decoded - encoded,
            )


class Codec2:
    """`codec2:MODE`: c2enc and c2dec at 8 kHz; the constant delay of the mode is removed."""

    def __init__(self, spec: SystemSpec) -> None:
        self._mode = spec.argument
        if self._mode not in _CODEC2_KBPS:
            raise ValueError(
                f"codec2:{self._mode}: the modes are {', '.join(_CODEC2_KBPS)} (bits a second)"
            )
        self._encoder = find_program("c2enc", "Codec2", "codec2")
        self._decoder = find_program("c2dec", "Codec2", "codec2")
        self._frame = _CODEC2_FRAMES_MS.get(self._mode, 40) * _CODEC2_RATE // 1000
        delay = _CODEC2_DELAY.get(self._mode, _CODEC2_DELAY_DEFAULT) * 2
        self.facts = SystemFacts(
            identity=f"codec2 {self._mode} {_file_hash(Path(self._encoder))}",
            family="Codec2",
            description=f"Codec2 mode {self._mode} (c2enc, c2dec)",
            nominal_kbps=_CODEC2_KBPS[self._mode],
            sample_rate=_CODEC2_RATE,
            frame_rate=_CODEC2_RATE / self._frame,
            delay_samples=delay if spec.delay_samples is None else spec.delay_samples,
        )

    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Through pipes; zeros at the end let the last samples come out after the delay."""
        signal = resample(waveform, sample_rate, _CODEC2_RATE)
        num_frames = -(-len(signal) // self._frame)
        flushed = num_frames + -(-self.facts.delay_samples // self._frame)
        padded = np.pad(signal, (0, flushed * self._frame - len(signal)))
        started = time.perf_counter()
        coded = _run([self._encoder, self._mode, "-", "-"], dump_pcm_16(padded))
        encoded = time.perf_counter()
        output = _run([self._decoder, self._mode, "-", "-"], coded)
        decoded = time.perf_counter()
        num_bits = round(len(coded) * 8 * num_frames / flushed)  # the flushing is not counted
        return SystemOutput(
            from_int16(np.frombuffer(output, "<i2")),
            _CODEC2_RATE,
            num_bits,
            None,
            encoded - started,
            decoded - encoded,
        )


class Ffmpeg:
    """`ffmpeg:ENCODER,KBPS`: any audio encoder of ffmpeg, through an MP4 or Matroska file.

    The file's declared delay is removed; an encoder that declares none (speex: 223 samples) needs
    `delay_samples`. The delay column of the table shows what is left.
    """

    def __init__(self, spec: SystemSpec) -> None:
        self._encoder, _, kbps_text = spec.argument.partition(",")
        kbps = _positive(spec, kbps_text)
        self._program = find_program("ffmpeg", "ffmpeg systems", "ffmpeg")
        self._probe = find_program("ffprobe", "ffmpeg systems", "ffmpeg")
        self._kbps = kbps
        version = _run([self._program, "-version"]).decode().splitlines()[0].partition(" Copy")[0]
        self.facts = SystemFacts(
            identity=f"{version} {spec.argument}",
            family=self._encoder,
            description=f"{self._encoder} {kbps:g} kbps, {version}",
            nominal_kbps=kbps,
            delay_samples=spec.delay_samples or 0,
        )

    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Through temporary files."""
        quiet = [self._program, "-nostdin", "-v", "error", "-y"]
        names = ("in.wav", f"x.{_FFMPEG_CONTAINERS.get(self._encoder, 'mka')}", "out.wav")
        with tempfile.TemporaryDirectory() as folder:
            source, coded, result = (Path(folder) / n for n in names)
            write_audio(source, waveform, sample_rate)
            encoding = ["-c:a", self._encoder, "-b:a", f"{self._kbps * 1000:.0f}"]
            started = time.perf_counter()
            _run([*quiet, "-i", str(source), *encoding, str(coded)])
            encoded = time.perf_counter()
            _run([*quiet, "-i", str(coded), "-ar", str(sample_rate), "-ac", "1", str(result)])
            decoded = time.perf_counter()
            entries = ["-v", "error", "-show_entries", "packet=size", "-of", "json"]
            packets = json.loads(_run([self._probe, *entries, str(coded)]))["packets"]
            return SystemOutput(
                read_audio(result, sample_rate=sample_rate),
                sample_rate,
                8 * sum(int(packet["size"]) for packet in packets),
                None,
                encoded - started,
                decoded - encoded,
            )


class Folder:
    """`folder:DIR`: sound files made elsewhere, named DIR/<id>.wav, .flac or another suffix."""

    def __init__(self, spec: SystemSpec) -> None:
        folder = Path(spec.argument)
        self._folder = folder
        self._paths = {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in find_audio_files(folder)
        }
        digest = blake2b(digest_size=8)
        for name, path in self._paths.items():
            digest.update(f"{name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
        self.facts = SystemFacts(
            identity=f"folder {digest.hexdigest()}",
            family=spec.name,
            description=f"sound files of folder {folder.name}",
            nominal_kbps=spec.kbps,
            delay_samples=spec.delay_samples or 0,
        )

    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Reads the file; nothing is encoded here."""
        path = self._paths.get(utterance_id)
        if path is None:
            raise FileNotFoundError(f"{self._folder / utterance_id}.*: no such sound file")
        return SystemOutput(read_audio(path, sample_rate=sample_rate), sample_rate)


class Command:
    """`command:TEMPLATE`: a command that reads the WAV file {in} and writes the sound file {out}.

    It is split into words as a shell would, but no shell runs it (pipes: `sh -c '...'`). Its
    results are kept by the text of the template, so change the text when the program changes.
    """

    def __init__(self, spec: SystemSpec) -> None:
        self._words = shlex.split(spec.argument)
        if not self._words or "{in}" not in spec.argument or "{out}" not in spec.argument:
            raise ValueError(f"command:{spec.argument}: the template must hold {{in}} and {{out}}")
        if shutil.which(self._words[0]) is None:
            raise FileNotFoundError(f"command:{spec.argument}: no program {self._words[0]!r}")
        self.facts = SystemFacts(
            identity=f"command {spec.argument}",
            family=spec.name,
            description=f"command {Path(self._words[0]).name}",
            nominal_kbps=spec.kbps,
            delay_samples=spec.delay_samples or 0,
        )

    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Runs the command on a temporary 16-bit WAV file; encoding and decoding are not apart."""
        with tempfile.TemporaryDirectory() as folder:
            source, result = Path(folder) / "in.wav", Path(folder) / "out.wav"
            write_audio(source, waveform, sample_rate)
            names = {"{in}": str(source), "{out}": str(result)}
            words = self._words
            for mark, name in names.items():
                words = [word.replace(mark, name) for word in words]
            _run(words)
            if not result.is_file():
                raise ValueError(f"{words[0]}: ended without writing the file {{out}}")
            return SystemOutput(read_audio(result, sample_rate=sample_rate), sample_rate)


def ogg_packet_bits(data: bytes, num_headers: int) -> int:
    """Bits of the packets of an Ogg stream, less its first `num_headers` packets.

    Reference: RFC 3533, sec. 6.
    """
    position, packet_number, num_bytes = 0, 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS" or position + 27 > len(data):
            raise ValueError("not an Ogg stream, or a damaged one")
        num_segments = data[position + 26]
        lacing = data[position + 27 : position + 27 + num_segments]
        for length in lacing:
            if packet_number >= num_headers:
                num_bytes += length
            packet_number += length < 255  # a shorter segment ends its packet
        position += 27 + num_segments + sum(lacing)
    return 8 * num_bytes


def _positive(spec: SystemSpec, text: str | None = None) -> float:
    try:
        kbps = float(spec.argument if text is None else text)
    except ValueError:
        kbps = 0.0
    if not 0 < kbps < 1000:
        example = "ffmpeg:libspeex,8" if spec.kind == "ffmpeg" else f"{spec.kind}:8"
        raise ValueError(f"{spec.kind}:{spec.argument}: needs kilobits a second, as in {example}")
    return kbps


def _run(words: list[str], data: bytes | None = None) -> bytes:
    """Standard output of a program; RuntimeError with the end of its messages when it fails."""
    try:
        done = subprocess.run(words, input=data, capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{words[0]}: not done after {_TIMEOUT_S} s") from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{Path(words[0]).name}: exit code {done.returncode}: {message[0]}")
    return done.stdout


def _file_hash(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=8).hexdigest()
