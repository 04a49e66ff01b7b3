"""The command for live sound, whose end is not known: stream."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, BinaryIO, cast

import typer

from dmcodec.cli.options import CommandError, SearchWidth
from dmcodec.cli.terminal import say

if TYPE_CHECKING:
    import numpy as np

    from dmcodec.codec.model import Codec

StreamModel = Annotated[
    str, typer.Option(metavar="MODEL", help="Folder or Hub id of a causal codec.")
]


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

    Sound is WAV of any rate, channels and bits, or raw little-endian PCM, 16-bit mono at the
    codec's rate; what comes back is the latter. Codes are .dmc packets (docs/formats.md). At the
    end stderr says how long the first packet took.
    """
    import torch

    from dmcodec.codec.model import load

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
    say(f"dmcodec: {report}", is_aside=True)


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

    from dmcodec.codec.engine import TorchCodec
    from dmcodec.codec.streaming import StreamEncoder, StreamState
    from dmcodec.tokens.bitstream import make_header
    from dmcodec.tokens.packets import PacketWriter

    config = codec.config
    encoder = StreamEncoder(codec, num_codebooks=num_codebooks, search_width=search_width)
    books = num_codebooks or config.quantizer.num_codebooks
    writer = PacketWriter(make_header(TorchCodec(codec), 1, books))
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

    from dmcodec.audio import dump_pcm_16, wav_head_16
    from dmcodec.codec.streaming import StreamDecoder, StreamState
    from dmcodec.tokens.packets import PacketReader

    config = codec.config
    decoder, reader = StreamDecoder(codec), PacketReader(source)
    reader.header.check_model(codec.model_id, codec.fingerprint())
    warm_up = torch.zeros(reader.header.num_codebooks, 1, dtype=torch.int64)
    decoder.push([warm_up], [StreamState()])  # the first pass sets up
    if is_wav:
        sink.write(wav_head_16(config.sample_rate))
        sink.flush()
    clock, state = _Clock(), StreamState()
    while (packet := reader.read()) is not None:
        started = time.perf_counter()
        codes = torch.from_numpy(packet.codes.astype(np.int64))
        (waveform,), (state,) = decoder.push([codes], [state])
        samples = waveform[: packet.num_samples].cpu().numpy()
        sink.write(dump_pcm_16(samples))
        sink.flush()
        clock.count(started, packet.num_samples)
    return clock.describe(config.sample_rate)


def _read_sound(source: BinaryIO, sample_rate: int, size: int) -> "Iterator[np.ndarray]":
    """Float32 chunks [size] at `sample_rate`; the last, always there, is shorter, perhaps empty."""
    import numpy as np

    from dmcodec.audio import StreamResampler, find_problem
    from dmcodec.sound.live import LiveSound

    sound = LiveSound(source, sample_rate)
    resampler = StreamResampler(sound.sample_rate, sample_rate)
    wanted = -(-size * sound.sample_rate // sample_rate)
    buffer = np.zeros(0, np.float32)
    for block in sound.chunks(wanted):
        problem = find_problem(block) if len(block) else None
        if problem is not None:
            raise ValueError(f"stdin {problem}")
        ready = resampler.push(block, is_last=len(block) < wanted)
        buffer = np.concatenate([buffer, ready])
        while len(buffer) >= size:
            yield buffer[:size]
            buffer = buffer[size:]
    yield buffer
