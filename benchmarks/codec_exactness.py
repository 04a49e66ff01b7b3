"""Whether codes depend on how they were made: every way against each clip alone, on one thread.

    python benchmarks/codec_exactness.py speech/test.jsonl --model bundled
    python benchmarks/codec_exactness.py speech/test.jsonl --model full

Ways, on `--threads`: alone; mixed batches of 8 clips in random order; pieces (`encode_long`) of
1 s; the straightforward layers; and, with `--onnx FOLDER`, the exported network. A code may differ
only where two entries of a book are as good as equally near (and, after it, in the later books of
its frame): the last column says how near, as the relative difference of the two squared distances,
at most. `full` is the paper's architecture with random weights.
"""
# ruff: noqa: T201

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from codec_speed import load_codec
from torch import Tensor

from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec
from dmcodec.corpus.manifest import read_manifest
from dmcodec.corpus.sources import read_utterance
from dmcodec.export.onnx_codec import OnnxCodec

BATCH_SIZE = 8


@torch.no_grad()
def main() -> None:
    """Encodes all clips in every way and prints a table."""
    arguments = parse_arguments()
    codec = load_codec(arguments.model)
    rate = codec.config.sample_rate
    clips = read_manifest(arguments.manifest)[: arguments.clips]
    waveforms = [torch.from_numpy(read_utterance(u, sample_rate=rate)) for u in clips]
    torch.set_num_threads(1)
    alone = [codec.encode(waveform) for waveform in waveforms]
    torch.set_num_threads(arguments.threads)
    expected = [encoded.codes[0] for encoded in alone]

    def in_batches() -> list[Tensor]:
        order = np.random.default_rng(0).permutation(len(waveforms)).tolist()
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), BATCH_SIZE):
            numbers = order[start : start + BATCH_SIZE]
            encoded = codec.encode([waveforms[n] for n in numbers])
            found |= {n: encoded.item(place) for place, n in enumerate(numbers)}
        return [found[n] for n in range(len(waveforms))]

    def straightforward() -> list[Tensor]:
        return [codec.quantizer.encode(codec.encoder(w[None, None]))[0] for w in waveforms]

    ways: dict[str, Callable[[], list[Tensor]]] = {
        "alone": lambda: [codec.encode(w).codes[0] for w in waveforms],
        "mixed batches": in_batches,
        "pieces of 1 s": lambda: [encode_long(codec, [w], chunk_frames=50)[0] for w in waveforms],
        "straightforward layers": straightforward,
    }
    if arguments.onnx is not None:
        exported = OnnxCodec(arguments.onnx, num_threads=arguments.threads)
        ways["ONNX"] = lambda: [torch.from_numpy(exported.encode(w.numpy())) for w in waveforms]

    total_s = sum(map(len, waveforms)) / rate
    print(f"{arguments.model}, {len(clips)} clips, {total_s / 60:.1f} min\n")
    print("| way | codes | differ | frames with a difference | nearest two differ by at most |")
    print("|---|---|---|---|---|")
    for name, encode in ways.items():
        found = encode()
        differ = [a != b for a, b in zip(found, expected, strict=True)]  # [K, L] each
        num_codes, num_differ = (sum(int(f(d)) for d in differ) for f in (Tensor.numel, Tensor.sum))
        frames = sum(int(d.any(dim=0).sum()) for d in differ)
        margins = [
            margin(codec, waveform, codes, int(frame))
            for waveform, codes, d in zip(waveforms, expected, differ, strict=True)
            for frame in d.any(dim=0).nonzero()[:, 0]
        ]
        worst = f"{max(margins):.1e}" if margins else "-"
        print(f"| {name} | {num_codes} | {num_differ} | {frames} | {worst} |", flush=True)

    worst = 0.0
    for encoded, waveform in zip(alone, waveforms, strict=True):
        whole = codec.decode(encoded)[0]
        parts = decode_long(codec, encoded.codes[0], len(waveform), chunk_frames=50)
        worst = max(worst, float((torch.cat(list(parts)) - whole).abs().max()))
    print(f"\ndecoded in pieces of 1 s: waveforms differ by {worst:.1e} at most")


def margin(codec: Codec, waveform: Tensor, codes: Tensor, frame: int) -> float:
    """The least relative difference of a frame's two nearest entries, over the books."""
    residual = codec.encoder(waveform[None, None])[0, :, frame].double()
    least = float("inf")
    for book, code in zip(codec.quantizer.codebooks.double(), codes[:, frame], strict=True):
        nearest = (residual - book).square().sum(dim=1).topk(2, largest=False).values
        least = min(least, float((nearest[1] - nearest[0]) / nearest[0]))
        residual = residual - book[code]
    return least


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="bundled", help="bundled, full, or a codec folder")
    parser.add_argument("--onnx", type=Path, help="a folder of dmcodec export")
    parser.add_argument("--clips", type=int, help="the first of the manifest; default: all")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
