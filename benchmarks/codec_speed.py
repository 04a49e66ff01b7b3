"""How fast and how hungry encoding and decoding are, as ratios to the straightforward network.

    python benchmarks/codec_speed.py speed --model full --threads 1
    python benchmarks/codec_speed.py memory --model full --minutes 1 10 60
    python benchmarks/codec_speed.py windows --speech a.flac b.flac

`speed` runs the straightforward implementation (weight normalization left in place, the plain
layers) and the shipped one in turn, so that other load meets both alike, and takes the shortest of
each. The floor is the network's multiplications at the rate of a large matrix product, timed in
turn with them. With one thread the clock is that thread's CPU time, otherwise wall time.
`memory` works on noise of these lengths, each in a process of its own: peak of the process.
`windows` joins the files into one waveform and compares the codes of windows of one second, with
context of several lengths, and the sound that is decoded from them, with those of the whole.
`--model full` is the paper's architecture with random weights, whose speed is that of trained ones.
"""
# ruff: noqa: T201

import argparse
import copy
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dmcodec.audio import read_audio
from dmcodec.codec.conv import add_weight_norm
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec, CodecConfig, Encoded, load
from dmcodec.export.windows import encode_windows
from dmcodec.metrics.pair import score_pair

# (seconds, items in the batch)
LOADS = ((1, 1), (10, 1), (60, 1), (10, 8))


def main() -> None:
    """Measures and prints a table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "speed":
        measure_speed(arguments)
    elif arguments.what == "windows":
        measure_windows(load_codec(arguments.model), arguments.speech)
    elif arguments.what == "memory":
        print("| minutes | peak memory, MB | wall, s |\n|---|---|---|")
        for minutes in arguments.minutes:
            command = [sys.executable, __file__, "one", "--model", arguments.model]
            command += ["--threads", str(arguments.threads), "--minutes", str(minutes)]
            print(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout, end=""
            )
    else:
        measure_memory(load_codec(arguments.model), arguments.minutes[0])


@torch.no_grad()
def measure_speed(arguments: argparse.Namespace) -> None:
    """A row for each load and direction."""
    codec = load_codec(arguments.model)
    plain = copy.deepcopy(codec)
    add_weight_norm(plain)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    kind = "CPU" if arguments.threads == 1 else "wall"
    print(f"{arguments.model}, {arguments.threads} threads, seconds of {kind} time as RTF\n")
    print(
        "| speech | way | straightforward | shipped | ratio | floor | shipped/floor | codes equal |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for seconds, batch_size in arguments.loads:
        total_s = seconds * batch_size
        noise = torch.randn(batch_size, seconds * 16000, generator=torch.Generator().manual_seed(1))
        waveform = 0.1 * noise
        encoded = codec.encode(waveform)
        expected = plain.quantizer.encode(plain.encoder(waveform[:, None]))
        equal = f"{float((encoded.codes == expected).double().mean()):.4%}"
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "encode": (
                lambda w=waveform: plain.quantizer.encode(plain.encoder(w[:, None])),  # type: ignore[misc]
                lambda w=waveform: codec.encode(w),  # type: ignore[misc]
            ),
            "decode": (
                lambda e=encoded: plain.decoder(plain.quantizer.decode(e.codes)),  # type: ignore[misc]
                lambda e=encoded: codec.decode(e),  # type: ignore[misc]
            ),
        }
        for way, (slow, fast) in ways.items():
            seconds_each, rate = interleaved(slow, fast, clock, arguments.repeats)
            floor_s = multiplications(codec, way) * total_s / rate
            slow_rtf, fast_rtf, floor = (s / total_s for s in (*seconds_each, floor_s))
            print(
                f"| {batch_size} x {seconds} s | {way} | {slow_rtf:.3f} | {fast_rtf:.3f} | "
                f"{slow_rtf / fast_rtf:.2f} | {floor:.3f} | {fast_rtf / floor:.2f} | {equal} |",
                flush=True,
            )


def interleaved(
    slow: Callable[[], object],
    fast: Callable[[], object],
    clock: Callable[[], float],
    repeats: int,
) -> tuple[list[float], float]:
    """Shortest seconds of both, and multiplications a second of a large matrix product."""
    a = torch.randn(1024, 1024)
    best = [float("inf")] * 3
    for _ in range(repeats):
        for number, function in enumerate((slow, fast, lambda: a @ a)):
            started = clock()
            function()
            best[number] = min(best[number], clock() - started)
    return best[:2], 1024**3 / best[2]


def multiplications(codec: Codec, way: str) -> float:
    """Of one second of audio in a direction; the quantizer's distances are with the encoder."""
    config = codec.config
    network = codec.encoder if way == "encode" else codec.decoder
    total = 0.0
    handles = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv1d):
            total += output.shape[-1] * module.weight.numel()
        elif isinstance(module, nn.ConvTranspose1d):
            total += inputs[0].shape[-1] * module.weight.numel()
        elif isinstance(module, nn.LSTM):
            weights = sum(p.numel() for n, p in module.named_parameters() if "weight" in n)
            total += inputs[0].shape[1] * weights

    for module in network.modules():
        handles.append(module.register_forward_hook(count))
    frames = round(config.frame_rate)
    if way == "encode":
        codec.encoder(torch.zeros(1, 1, frames * config.hop_length))
        total += frames * codec.quantizer.codebooks.numel()
    else:
        codec.decoder(torch.zeros(1, config.seanet.latent_dim, frames))
    for handle in handles:
        handle.remove()
    return total


@torch.no_grad()
def measure_memory(codec: Codec, minutes: float) -> None:
    """Encodes and decodes noise that comes in blocks; prints a row."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(1)

    def blocks() -> Iterator[Tensor]:
        for _ in range(round(minutes * 60)):
            yield 0.1 * torch.randn(codec.config.sample_rate, generator=generator)

    codes, num_samples = encode_long(codec, blocks())
    Encoded(codes[None], torch.tensor([codes.shape[1]]), torch.tensor([num_samples]))
    decoded = sum(len(block) for block in decode_long(codec, codes, num_samples))
    assert decoded == num_samples
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {minutes:g} | {peak_mb:.0f} | {time.perf_counter() - started:.0f} |")


def measure_windows(codec: Codec, speech: list[Path]) -> None:
    """A row for each length of context."""
    rate = codec.config.sample_rate
    waveform = torch.cat([torch.from_numpy(read_audio(p, sample_rate=rate)) for p in speech])
    whole, _ = encode_long(codec, [waveform])
    window = round(codec.config.frame_rate)
    print(f"{len(waveform) / rate:.1f} s in windows of {window} frames\n")
    print("| context on either side, s | equal codes | of book 1 | STOI | PESQ-WB |")
    print("|---|---|---|---|---|")
    for context_s in (0, 0.2, 0.5, 1, 2, 4, 8, 12, None):
        codes = whole.numpy()
        if context_s is not None:
            parts = encode_windows(
                lambda part: codec.encode(part).item(0).numpy(),
                [waveform.numpy()],
                hop_length=codec.config.hop_length,
                window_frames=window,
                context_frames=round(context_s * window),
            )
            codes = np.concatenate(list(parts), axis=1)
        is_equal = torch.from_numpy(codes) == whole
        decoded = codec.decode(codes)[0, : len(waveform)]
        heard = score_pair(waveform.numpy(), decoded.numpy(), rate).values
        print(
            f"| {'the whole' if context_s is None else context_s} "
            f"| {is_equal.double().mean():.2%} | {is_equal[0].double().mean():.2%} "
            f"| {heard['stoi']:.4f} | {heard['pesq_wb']:.3f} |",
            flush=True,
        )


def load_codec(name: str) -> Codec:
    """The bundled model, a folder, or the full-size architecture with random weights."""
    if name == "full":
        torch.default_generator.manual_seed(0)
        return Codec(CodecConfig()).eval()
    return load(None if name == "bundled" else name)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["speed", "memory", "windows", "one"])
    parser.add_argument("--model", default="bundled", help="bundled, full, or a codec folder")
    parser.add_argument("--speech", type=Path, nargs="+", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument(
        "--loads",
        nargs="+",
        default=LOADS,
        type=lambda s: tuple(map(int, s.split("x")))[::-1],
        help="items x seconds: 1x10 8x10",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
