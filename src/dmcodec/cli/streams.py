"""Commands for what is beyond files: streams between pipes, and exports to other runtimes."""

import os
import signal
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from dmcodec.cli.options import CommandError, SearchWidth, read_bytes, say_damaged

if TYPE_CHECKING:
    import numpy as np

    from dmcodec.codec.model import Codec

_NOT_PCM = (b"fLaC", b"OggS", b"RF64", b"FORM")

StreamModel = Annotated[
    str, typer.Option(metavar="MODEL", help="Folder or Hub id of a causal codec.")
]


class Runtime(StrEnum):
    """What runs the network."""

    TORCH = "torch"
    ONNX = "onnx"


class Direction(StrEnum):
    """Which way a stream goes."""

    ENCODE = "encode"
    DECODE = "decode"


def stream(
    direction: Annotated[Direction, typer.Argument(help="encode: sound to .dmc; decode: back.")],
    model: StreamModel,
    num_codebooks: Annotated[
        int | None, typer.Option(min=1, help="Encode with the first N books only.")
    ] = None,
    search_width: SearchWidth = 1,
    packet_frames: Annotated[
        int, typer.Option(min=1, max=65535, help="Frames in a packet; more cost latency.")
    ] = 1,
    wav: Annotated[bool, typer.Option("--wav", help="Decode to WAV instead of raw PCM.")] = False,
) -> None:
    """Encode or decode a live stream from stdin to stdout.

    Sound is 16-bit mono at the codec's rate: WAV, or raw little-endian PCM. Codes are .dmc packets
    (docs/formats.md). At the end stderr says how long the first packet took.
    """
    import torch

    from dmcodec.codec.checkpoint import load

    of_encode = (num_codebooks, search_width, packet_frames)
    if direction == Direction.DECODE and of_encode != (None, 1, 1):
        raise CommandError(
            "--num-codebooks, --search-width and --packet-frames are of stream encode"
        )
    if direction == Direction.ENCODE and wav:
        raise CommandError("--wav is of stream decode; encode sees by itself whether it gets WAV")
    torch.set_num_threads(1)  # a frame is too small to share; threads would only add delay
    codec = load(model)
    source, sink = cast(BinaryIO, sys.stdin.buffer), cast(BinaryIO, sys.stdout.buffer)
    with _first_interrupt_ends(direction):
        if direction == Direction.ENCODE:
            report = encode_stream(
                codec, source, sink, num_codebooks, packet_frames, search_width=search_width
            )
        else:
            report = decode_stream(codec, source, sink, is_wav=wav)
    typer.echo(f"dmcodec: {report}", err=True)


@contextmanager
def _first_interrupt_ends(direction: Direction) -> Iterator[None]:
    """Ctrl-C is the end of a live sound: what came before it is finished and written.

    The terminal sends it to every program between the pipes. The encoder's input becomes an empty
    file; the decoder's ends when the encoder has finished. A second Ctrl-C stops the program.
    """

    def end_input(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if direction == Direction.ENCODE:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # whoever started the program wants none of it
        yield
        return
    signal.signal(signal.SIGINT, end_input)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Clock:
    """Times of packets: what the first took, and how much faster than real time all went."""

    def __init__(self) -> None:
        self.first_ms, self.busy_s, self.num_packets, self.num_samples = 0.0, 0.0, 0, 0

    def count(self, started: float, num_samples: int) -> None:
        self.busy_s += time.perf_counter() - started
        if self.num_packets == 0:
            self.first_ms = 1000 * self.busy_s
        self.num_packets += 1
        self.num_samples += num_samples

    def describe(self, sample_rate: int) -> str:
        duration_s = self.num_samples / sample_rate
        speed = duration_s / self.busy_s if self.busy_s else 0.0
        return (
            f"{duration_s:.2f} s in {self.num_packets} packets; the first took "
            f"{self.first_ms:.1f} ms from its last input to its output, all {speed:.1f}x real time"
        )


def encode_stream(
    codec: "Codec",
    source: BinaryIO,
    sink: BinaryIO,
    num_codebooks: int | None,
    packet_frames: int,
    *,
    search_width: int = 1,
) -> str:
    """Sound to packets until the sound ends; gives a sentence about times."""
    import torch

    from dmcodec.codec.streaming import StreamEncoder, StreamState
    from dmcodec.files import identify, make_header
    from dmcodec.tokens.packets import PacketWriter

    config = codec.config
    encoder = StreamEncoder(codec, num_codebooks=num_codebooks, search_width=search_width)
    books = num_codebooks or config.quantizer.num_codebooks
    writer = PacketWriter(make_header(codec, identify(codec), 1, books))
    encoder.push([torch.zeros(config.hop_length)], [StreamState()])  # the first pass sets up
    sink.write(writer.start)
    sink.flush()
    clock, state = _Clock(), StreamState()
    size = packet_frames * config.hop_length
    for chunk in _read_sound(source, config.sample_rate, size):
        started = time.perf_counter()
        (codes,), (state,) = encoder.push([torch.from_numpy(chunk)], [state])
        missing = 0
        if len(chunk) < size:  # the end
            last, num_last = encoder.finish(state)
            codes = torch.cat([codes, last], dim=1)
            missing = (config.hop_length - num_last) % config.hop_length
        if codes.shape[1]:
            sink.write(writer.packet(codes.cpu().numpy(), missing_samples=missing))
            sink.flush()
            clock.count(started, len(chunk))
    sink.write(writer.end())
    sink.flush()
    return clock.describe(config.sample_rate)


def decode_stream(codec: "Codec", source: BinaryIO, sink: BinaryIO, *, is_wav: bool) -> str:
    """Packets to sound until they end; gives a sentence about times."""
    import numpy as np
    import torch

    from dmcodec.codec.streaming import StreamDecoder, StreamState
    from dmcodec.tokens.packets import PacketReader

    config = codec.config
    decoder, reader = StreamDecoder(codec), PacketReader(source)
    reader.header.check_model(codec.model_id, codec.fingerprint())
    warm_up = torch.zeros(reader.header.num_codebooks, 1, dtype=torch.int64)
    decoder.push([warm_up], [StreamState()])  # the first pass sets up
    if is_wav:
        sink.write(_wav_header(config.sample_rate))
        sink.flush()
    clock, state = _Clock(), StreamState()
    while (packet := reader.read()) is not None:
        started = time.perf_counter()
        codes = torch.from_numpy(packet.codes.astype(np.int64))
        (waveform,), (state,) = decoder.push([codes], [state])
        samples = waveform[: packet.num_samples].cpu().numpy()
        sink.write(np.clip(np.round(samples * 32768.0), -32768, 32767).astype("<i2").tobytes())
        sink.flush()
        clock.count(started, packet.num_samples)
    return clock.describe(config.sample_rate)


def _read_sound(source: BinaryIO, sample_rate: int, size: int) -> "Iterator[np.ndarray]":
    """Float32 chunks [size] of 16-bit sound; the last, always there, is shorter, perhaps empty."""
    import numpy as np

    head = source.read(4)
    if head in _NOT_PCM or head[:3] == b"ID3":
        raise ValueError(
            "stdin is a sound file of another kind than WAV; a stream is raw 16-bit PCM or WAV: "
            "convert it first, with sox or ffmpeg"
        )
    read = _read_wav(source, head, sample_rate) if head == b"RIFF" else None
    rest = b"" if read is not None else head
    while True:
        data = bytearray(rest)
        rest = b""
        while len(data) < 2 * size:
            missing = 2 * size - len(data)
            part = source.read(missing) if read is None else read.readframes(missing // 2)
            if not part:
                break
            data += part
        even = bytes(data[: len(data) // 2 * 2])
        yield np.frombuffer(even, "<i2").astype(np.float32) / 32768.0
        if len(data) < 2 * size:
            return


def _read_wav(source: BinaryIO, head: bytes, sample_rate: int) -> wave.Wave_read:
    try:
        file = wave.open(cast(BinaryIO, _Unread(head, source)), "rb")  # noqa: SIM115
    except (wave.Error, EOFError) as error:
        raise ValueError(f"stdin is no WAV that can be read: {error}") from error
    layout = (file.getframerate(), file.getnchannels(), file.getsampwidth())
    if layout != (sample_rate, 1, 2):
        raise ValueError(
            f"stdin is {layout[0]} Hz, {layout[1]} channels, {8 * layout[2]} bits; a stream must "
            f"be {sample_rate} Hz, mono, 16 bits: convert it first, with sox or ffmpeg"
        )
    return file


class _Unread:
    """A pipe from which a few bytes were read already: read again, then the rest."""

    def __init__(self, head: bytes, source: BinaryIO) -> None:
        self._head, self._source = head, source

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        if size < 0:
            data, self._head = self._head + self._source.read(), b""
            return data
        data, self._head = self._head[:size], self._head[size:]
        return data + self._source.read(size - len(data)) if len(data) < size else data


def _wav_header(sample_rate: int) -> bytes:
    """Of 16-bit mono whose size is not known: the largest, as programs write to pipes."""
    unknown = (0xFFFFFFFF).to_bytes(4, "little")
    rate, byte_rate = sample_rate.to_bytes(4, "little"), (2 * sample_rate).to_bytes(4, "little")
    shape = b"\x10\0\0\0\x01\0\x01\0" + rate + byte_rate + b"\x02\0\x10\0"
    return b"RIFF" + unknown + b"WAVEfmt " + shape + b"data" + unknown


def export(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the exported files.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Codec folder or Hub id; default: the bundled one."),
    ] = None,
    format: Annotated[str, typer.Option(metavar="onnx", help="The only format yet.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="LSTM weights in 8 bits: faster, other codes.")
    ] = False,
    speech: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Speech for the report; default: noise and tones."),
    ] = None,
    seconds: Annotated[str, typer.Option(help="Lengths that are timed against torch.")] = "1,10,60",
) -> None:
    """Export a codec to ONNX (waveform to codes, codes to waveform), and report what it is worth.

    `dmcodec encode --backend onnx --model DIR` and `decode` use the files without torch.
    """
    from dmcodec.codec.checkpoint import load
    from dmcodec.export import export_onnx, measure_export

    if format != "onnx":
        raise ValueError(f"can export to onnx, not to {format!r}")
    codec = load(model)
    export_onnx(codec, output, use_int8=int8)
    durations = [float(each) for each in seconds.split(",") if each]
    for line in measure_export(codec, output, speech or [], durations):
        typer.echo(line)


def onnx_encoder(
    model: str | None, num_codebooks: int | None, search_width: int, threads: int | None
) -> Callable[[Path], bytes]:
    """A function from a sound file to the bytes of its .dmc file; torch is not needed."""
    from dmcodec.audio import audio_info, read_parts
    from dmcodec.onnx_codec import OnnxCodec
    from dmcodec.tokens.bitstream import dumps

    codec = OnnxCodec(_export_folder(model), num_threads=threads)

    def encode(path: Path) -> bytes:
        parts = read_parts(
            path,
            sample_rate=codec.sample_rate,
            num_samples=audio_info(path).num_samples_at(codec.sample_rate),
        )
        codes, num_samples = codec.encode_long(
            parts, num_codebooks=num_codebooks, search_width=search_width
        )
        return dumps(codes, codec.header(num_samples, len(codes)))

    return encode


def onnx_decoder(
    model: str | None,
    num_codebooks: int | None,
    threads: int | None,
    *,
    any_model: bool,
    skip_damage: bool,
) -> Callable[[Path, Path], None]:
    """A function from a .dmc file to a WAV file; torch is not needed."""
    from dmcodec.audio import write_audio_blocks
    from dmcodec.onnx_codec import OnnxCodec
    from dmcodec.tokens.bitstream import loads, silence_lost_frames

    codec = OnnxCodec(_export_folder(model), num_threads=threads)

    def decode(path: Path, target: Path) -> None:
        file = loads(read_bytes(path), on_damage="skip" if skip_damage else "raise")
        header = file.header
        if not any_model:
            header.check_model(codec.model_id, codec.model_hash)
        header.check_layout(codec.sample_rate, codec.hop_length, codec.codebook_size)
        if num_codebooks is not None and num_codebooks > header.num_codebooks:
            raise ValueError(f"it has {header.num_codebooks} books, not {num_codebooks}")
        blocks = codec.decode_long(file.codes[:num_codebooks], header.num_samples)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_audio_blocks(target, silence_lost_frames(blocks, file), codec.sample_rate)
        if file.damaged_chunks:
            say_damaged(path, file.damaged_chunks)

    return decode


def _export_folder(model: str | None) -> Path:
    if model is None:
        raise ValueError("--backend onnx needs --model DIR, a folder that dmcodec export wrote")
    return Path(model)
