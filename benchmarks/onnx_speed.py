"""What an exported codec is worth beside torch: speed in turn, and what both make of speech.

    python benchmarks/onnx_speed.py --threads 2 --seconds 1 10 60
    python benchmarks/onnx_speed.py --seconds --speech a.flac b.flac

Exports the model to a temporary folder. Both run in turn, so that other load meets both alike, and
the shortest time of each counts: times real time, and the ratio of onnxruntime to torch. With one
thread the clock is that thread's CPU time, otherwise wall time. With `--speech`, codes and sound of
both are compared on those files, and their STOI and PESQ-WB are means.
"""
# ruff: noqa: T201

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from codec_speed import interleaved, load_codec

from dmcodec.audio import read_audio
from dmcodec.codec.model import Codec
from dmcodec.export.comparison import compare_export
from dmcodec.export.networks import export_onnx
from dmcodec.export.onnx_codec import OnnxCodec
from dmcodec.metrics.pair import STOI_AND_PESQ, score_pair


def main() -> None:
    """Exports, measures and prints."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    codec = load_codec(arguments.model)
    with tempfile.TemporaryDirectory(prefix="dmcodec_") as name:
        folder = Path(name)
        export_onnx(codec, folder, use_int8=arguments.int8)
        exported = OnnxCodec(folder, num_threads=arguments.threads)
        if arguments.speech:
            found = compare_export(codec, folder, arguments.speech)
            print(f"equal codes: {found.num_equal / found.num_codes:.3%} of {found.num_codes}")
            print(f"greatest waveform difference: {found.largest_difference:.1e}")
            measure_quality(codec, exported, arguments.speech)
        if arguments.seconds:
            measure_speed(codec, exported, arguments)


def measure_quality(codec: Codec, exported: OnnxCodec, speech: list[Path]) -> None:
    """A line for each measure: the means of torch both ways and of the export both ways."""
    rate = codec.config.sample_rate
    scores = []
    for path in speech:
        waveform = read_audio(path, sample_rate=rate)
        ways = (
            codec.decode(codec.encode(waveform))[0].numpy(),
            exported.decode(exported.encode(waveform), len(waveform)),
        )
        values = [score_pair(waveform, sound, rate).values for sound in ways]
        scores.append([[each.get(name, np.nan) for each in values] for name in STOI_AND_PESQ])
    means = np.nanmean(scores, axis=0)  # [measure, way]
    for name, (with_torch, with_onnx) in zip(STOI_AND_PESQ, means, strict=True):
        print(f"{name}: torch {with_torch:.4f}, exported {with_onnx:.4f}")


def measure_speed(codec: Codec, exported: OnnxCodec, arguments: argparse.Namespace) -> None:
    """A row for each length, of noise."""
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    print(f"{arguments.model}, {arguments.threads} threads, times real time\n")
    print("| speech | encode, torch | onnx | ratio | decode, torch | onnx | ratio |")
    print("|---|---|---|---|---|---|---|")
    for seconds in arguments.seconds:
        num_samples = round(seconds * codec.config.sample_rate)
        noise = np.random.default_rng(1).standard_normal(num_samples)
        waveform = (0.1 * noise).astype(np.float32)
        encoded = codec.encode(waveform)
        codes = encoded.item(0).numpy()
        cells = []
        for functions in (
            (lambda w=waveform: codec.encode(w), lambda w=waveform: exported.encode(w)),  # type: ignore[misc]
            (lambda e=encoded: codec.decode(e), lambda c=codes: exported.decode(c)),  # type: ignore[misc]
        ):
            (torch_s, onnx_s), _ = interleaved(*functions, clock, arguments.repeats)
            cells += [seconds / torch_s, seconds / onnx_s, torch_s / onnx_s]
        print(
            f"| {seconds:g} s | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True
        )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="bundled", help="bundled, full, or a codec folder")
    parser.add_argument("--int8", action="store_true", help="LSTM weights in 8 bits")
    parser.add_argument("--speech", type=Path, nargs="+", default=[])
    parser.add_argument("--seconds", type=float, nargs="*", default=[1.0, 10.0, 60.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
