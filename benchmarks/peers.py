"""Speed, arithmetic, memory and start beside other codecs, in one run on the same sound.

    python benchmarks/peers.py --threads 1 --markdown peers.md
    python benchmarks/peers.py --peers bundled encodec opus --loads 1x1 2x3 --repeats 1   # short

Peers: our bundled model and the paper's size (`full`); EnCodec 24 kHz, Mimi, DAC 16 kHz and X-Codec
as transformers has them; Opus as opus-tools has it. Sizes are the published ones (transformers'
defaults, or written down here); weights but those of the bundled model are random, which changes
neither time nor arithmetic, and books are filled with what the encoder gives. Each codec gets the
example recording, repeated to fill the length, at its own rate, and encodes at the bitrate in its
row.

All peers take turns, so that other load meets them alike; the shortest of `--repeats` counts. With
one thread the clock is CPU time, programs included; otherwise wall time. Opus is timed with the
start of its programs and its files. GMAC are what torch counts of the plain network, LSTMs too,
both ways, for a second of sound. Start and memory are of a fresh process each: wall time until one
second went both ways, imports and loading included; and the peak of one that sends
`--memory-seconds` both ways. The programs of Opus have neither.

"Changed by a batch": codes of four cuts of different lengths, together in a zero-padded batch with
a padding mask where the codec takes one, against each alone. "Changed by a cut": 8 s in two pieces
of 4 s, joined, against the whole; ours with `encode_long`, others piece by piece. Of random weights
these shares say that codes change, less how many a trained codec's would be.
"""
# ruff: noqa: T201

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from codec_speed import LOADS, load_codec
from torch import Tensor, nn

from dmcodec.audio import Waveform, read_audio, write_audio
from dmcodec.codec.long import encode_long
from dmcodec.codec.model import Encoded

EXAMPLE = Path(__file__).parents[1] / "examples" / "4077-13754-0000.flac"
OPUS_KBPS = 6


@dataclass(frozen=True)
class Peer:
    """A codec as it is called here.

    prepare: waveforms [T_i] at `sample_rate` to what `encode` takes; not timed.
    encode: to what `decode` takes. codes: [K, L_i] of each item of that; None where there are none.
    cut: codes [K, L] of a waveform that comes in two pieces; None: each piece alone.
    network: what has the parameters; run_plain: one pass of it both ways, to count its arithmetic.
    """

    about: str
    sample_rate: int
    prepare: Callable[[list[Waveform]], Any]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    codes: Callable[[Any], list[Tensor]] | None = None
    cut: Callable[[list[Waveform]], Tensor] | None = None
    network: nn.Module | None = None
    run_plain: Callable[[Any], Any] | None = None


def main() -> None:
    """Measures and prints the tables."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        if arguments.one is not None:
            print(json.dumps(run_alone(arguments)))
            return
        peers = {name: PEERS[name](folder / name) for name in arguments.peers}
        report = [*speed_table(peers, arguments), "", *facts_table(peers, folder, arguments)]
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join(report) + "\n", "utf-8")


def open_ours(name: str) -> Peer:
    """The bundled model, or the paper's architecture with random weights."""
    codec = load_codec(name)
    config = codec.config

    def run_plain(waveforms: list[Tensor]) -> None:
        latents = codec.encoder(torch.stack(waveforms)[:, None])
        codec.decoder(codec.quantizer.decode(codec.quantizer.encode(latents)))

    def items(encoded: Encoded) -> list[Tensor]:
        return [encoded.item(n) for n in range(len(encoded))]

    return Peer(
        f"dmcodec, {config.bitrate_kbps:g} kbps" + (", random" if name == "full" else ""),
        config.sample_rate,
        lambda waveforms: [torch.from_numpy(w) for w in waveforms],
        codec.encode,
        codec.decode,
        items,
        lambda pieces: encode_long(
            codec, map(torch.from_numpy, pieces), chunk_frames=len(pieces[0]) // config.hop_length
        )[0],
        codec,
        run_plain,
    )


def open_transformers(
    about: str,
    kind: str,
    folder: Path,
    settings: dict[str, Any],
    *,
    rate: int,
    hop_length: int,
    call: dict[str, Any],
    has_mask: bool = False,
) -> Peer:
    """A codec of transformers by its class name, random when the folder is not there yet.

    Args:
        about: for the table.
        kind: such as "Mimi": MimiConfig, MimiModel.
        folder: of its weights: made, for the processes that start with it.
        settings: of the configuration, where the published model has not the defaults.
        rate: Hz.
        hop_length: samples a frame.
        call: what chooses the bitrate in `encode`.
        has_mask: whether `encode` takes a padding mask.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_class = getattr(transformers, f"{kind}Model")
    if not folder.is_dir():
        torch.default_generator.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**settings)
        model = model_class(config).eval()
        sound = torch.from_numpy(speech(rate, 4))[None, None]
        fill_books(model, lambda: model.encode(sound, **call))
        model.save_pretrained(folder)
    model = model_class.from_pretrained(folder).eval()

    def prepare(waveforms: list[Waveform]) -> tuple[Tensor, Tensor, list[int]]:
        sizes = [len(w) for w in waveforms]
        longest = -(-max(sizes) // hop_length) * hop_length
        batch = torch.stack([F.pad(torch.from_numpy(w), (0, longest - len(w))) for w in waveforms])
        mask = torch.arange(longest) < torch.tensor(sizes)[:, None]
        return batch[:, None], mask, sizes

    def encode(prepared: tuple[Tensor, Tensor, list[int]]) -> tuple[Any, Tensor, list[int]]:
        batch, mask, sizes = prepared
        given = {"padding_mask": mask} if has_mask else {}
        return model.encode(batch, **given, **call), mask, sizes

    def decode(state: tuple[Any, Tensor, list[int]]) -> Any:
        output, mask, _ = state
        if kind == "Encodec":
            return model.decode(output.audio_codes, output.audio_scales, mask)
        return model.decode(audio_codes=output.audio_codes)

    def codes(state: tuple[Any, Tensor, list[int]]) -> list[Tensor]:
        output, _, sizes = state
        found = output.audio_codes[0] if kind == "Encodec" else output.audio_codes  # [B, K, L]
        return [row[:, : -(-size // hop_length)] for row, size in zip(found, sizes, strict=True)]

    def run_plain(prepared: Any) -> Any:
        return decode(encode(prepared))

    return Peer(about, rate, prepare, encode, decode, codes, network=model, run_plain=run_plain)


def fill_books(model: nn.Module, encode: Callable[[], object]) -> None:
    """Fills codebooks that a new model leaves empty, with what its encoder gives of a recording.

    In empty ones, all entries zero, every code is 0: of those no batch and no cut changes any.
    """
    generator = torch.Generator().manual_seed(1)
    books = [m for m in model.modules() if type(m).__name__.endswith("EuclideanCodebook")]

    def fill(book: Any, quantize: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        entries = book.embed_sum if hasattr(book, "embed_sum") else book.embed  # [V, D]
        chosen = vectors[torch.randint(len(vectors), (len(entries),), generator=generator)]
        noise = torch.randn(entries.shape, generator=generator)
        entries.copy_(chosen + 0.01 * vectors.std() * noise)
        book._embed = None  # Mimi keeps the quotient of sums and counts
        return quantize(vectors)

    for book in books:
        book.quantize = partial(fill, book, book.quantize)
    encode()
    for book in books:
        del book.quantize


def open_opus(folder: Path) -> Peer:
    """Calls opusenc and opusdec, once for each item."""
    from dmcodec.packages import find_program

    encoder, decoder = (find_program(p, "Opus", "opus-tools") for p in ("opusenc", "opusdec"))
    options = ["--quiet", "--speech", "--comp", "10", "--bitrate", str(OPUS_KBPS)]
    folder.mkdir(parents=True, exist_ok=True)

    def prepare(waveforms: list[Waveform]) -> list[Path]:
        paths = [folder / f"{number}.wav" for number in range(len(waveforms))]
        for path, waveform in zip(paths, waveforms, strict=True):
            write_audio(path, waveform, 16_000)
        return paths

    def encode(paths: list[Path]) -> list[Path]:
        coded = [path.with_suffix(".opus") for path in paths]
        for path, result in zip(paths, coded, strict=True):
            subprocess.run([encoder, *options, path, result], check=True)
        return coded

    def decode(paths: list[Path]) -> None:
        for path in paths:
            command = [decoder, "--quiet", "--rate", "16000", path, path.with_suffix(".out.wav")]
            subprocess.run(command, check=True)

    return Peer(f"Opus, {OPUS_KBPS} kbps, two programs", 16_000, prepare, encode, decode)


PEERS: dict[str, Callable[[Path], Peer]] = {
    "bundled": lambda folder: open_ours("bundled"),
    "full": lambda folder: open_ours("full"),
    "encodec": lambda folder: open_transformers(
        "EnCodec 24 kHz, 6 kbps, random",
        "Encodec",
        folder,
        {},
        rate=24_000,
        hop_length=320,
        call={"bandwidth": 6.0},
        has_mask=True,
    ),
    "mimi": lambda folder: open_transformers(
        "Mimi, 1.1 kbps, random",
        "Mimi",
        folder,
        {},
        rate=24_000,
        hop_length=1920,
        call={"num_quantizers": 8},
        has_mask=True,
    ),
    "dac": lambda folder: open_transformers(
        "DAC 16 kHz, 6 kbps, random",
        "Dac",
        folder,
        {"downsampling_ratios": [2, 4, 5, 8], "upsampling_ratios": [8, 5, 4, 2], "n_codebooks": 12},
        rate=16_000,
        hop_length=320,
        call={},
    ),
    "xcodec": lambda folder: open_transformers(
        "X-Codec, 4 kbps, random",
        "Xcodec",
        folder,
        {},
        rate=16_000,
        hop_length=320,
        call={"bandwidth": 4},
    ),
    "opus": open_opus,
}


def speed_table(peers: dict[str, Peer], arguments: argparse.Namespace) -> list[str]:
    """A row for each load, peer and direction, with its time over ours."""
    ours = [name for name in ("bundled", "full") if name in peers]
    kind = "CPU" if arguments.threads == 1 else "wall"
    head = ["sound", "codec", "way", f"{kind} s a second", "times real time"]
    lines = say([f"{arguments.threads} threads, torch {torch.__version__}", ""])
    lines += say(table_head([*head, *(f"time / {name}" for name in ours)]))
    for seconds, batch_size in arguments.loads:
        best: dict[tuple[str, str], float] = {}
        given = {
            n: p.prepare([speech(p.sample_rate, seconds)] * batch_size) for n, p in peers.items()
        }
        states = {}
        for _ in range(arguments.repeats):
            for name, peer in peers.items():
                states[name], taken_s = timed(peer.encode, given[name], arguments.threads)
                best[name, "encode"] = min(best.get((name, "encode"), np.inf), taken_s)
            for name, peer in peers.items():
                _, taken_s = timed(peer.decode, states[name], arguments.threads)
                best[name, "decode"] = min(best.get((name, "decode"), np.inf), taken_s)
        for (name, way), taken_s in sorted(best.items(), key=lambda pair: pair[0][1], reverse=True):
            each = taken_s / (seconds * batch_size)
            cells = [f"{batch_size} x {seconds} s", peers[name].about, way, f"{each:.4f}"]
            cells += [f"{1 / each:.1f}", *(f"{taken_s / best[o, way]:.2f}" for o in ours)]
            lines += say([f"| {' | '.join(cells)} |"])
    return lines


def facts_table(peers: dict[str, Peer], folder: Path, arguments: argparse.Namespace) -> list[str]:
    """A row for each peer: what it is made of, needs, and whether its codes stay."""
    head = [
        "codec",
        "parameters, M",
        "GMAC a second",
        "start, s",
        f"memory, {arguments.memory_seconds:g} s, MB",
    ]
    lines = say(["", *table_head([*head, "changed by a batch", "changed by a cut"])])
    for name, peer in peers.items():
        size = "-" if peer.network is None else f"{count_parameters(peer.network) / 1e6:.1f}"
        start = ["-", "-"]
        if peer.network is not None:
            alone = start_alone(name, folder, arguments)
            start = [f"{alone['start_s']:.1f}", f"{alone['peak_mb']:.0f}"]
        cells = [peer.about, size, count_gmac(peer), *start]
        cells += [changed_by_a_batch(peer), changed_by_a_cut(peer)]
        lines += say([f"| {' | '.join(cells)} |"])
    return lines


def timed(function: Callable[[Any], Any], given: Any, num_threads: int) -> tuple[Any, float]:
    """A result and its seconds: of CPU, programs included, with one thread; else of the clock."""

    def now() -> float:
        if num_threads > 1:
            return time.perf_counter()
        usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    started = now()
    result = function(given)
    return result, now() - started


def speech(sample_rate: int, seconds: float) -> Waveform:
    """The example recording, repeated to fill the length."""
    return np.resize(read_audio(EXAMPLE, sample_rate=sample_rate), round(seconds * sample_rate))


def count_parameters(network: nn.Module) -> int:
    """Weights and codebooks; statistics that only training uses are left out."""
    ends = ("codebooks", ".embed", ".embed_sum")
    books = [buffer for name, buffer in network.named_buffers() if name.endswith(ends)]
    return sum(each.numel() for each in (*network.parameters(), *books))


def count_gmac(peer: Peer) -> str:
    """Thousand millions of multiplications of a second of sound, both ways, over four seconds."""
    from torch.utils.flop_counter import FlopCounterMode  # its imports would count as memory

    if peer.run_plain is None:
        return "-"

    def of_lstm(x: Any, w_in: Any, w: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * x[0] * x[1] * (w_in[0] * w_in[1] + w[0] * w[1])  # steps, items, weights

    seconds = 4
    given = peer.prepare([speech(peer.sample_rate, seconds)])
    rnn = torch.ops.aten.mkldnn_rnn_layer
    with FlopCounterMode(display=False, custom_mapping={rnn: of_lstm}) as counter:
        peer.run_plain(given)
    return f"{counter.get_total_flops() / 2 / seconds / 1e9:.2f}"


def changed_by_a_batch(peer: Peer) -> str:
    """Share of codes of four cuts that differ in a batch from those of each alone."""
    if peer.codes is None:
        return "-"
    cuts = [speech(peer.sample_rate, seconds) for seconds in (10, 7.3, 4.1, 2.2)]
    together = peer.codes(peer.encode(peer.prepare(cuts)))
    alone = [peer.codes(peer.encode(peer.prepare([cut])))[0] for cut in cuts]
    return share_different(together, alone)


def changed_by_a_cut(peer: Peer) -> str:
    """Share of codes of 8 s that differ when it comes in two pieces."""
    if peer.codes is None:
        return "-"
    whole = speech(peer.sample_rate, 8)
    halves = np.split(whole, 2)
    if peer.cut is not None:
        joined = peer.cut(halves)
    else:
        found = [peer.codes(peer.encode(peer.prepare([half])))[0] for half in halves]
        joined = torch.cat(found, dim=1)
    return share_different([joined], peer.codes(peer.encode(peer.prepare([whole]))))


def share_different(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Of all codes [K, L_i] of all items."""
    differ = torch.cat([(a != b).flatten() for a, b in zip(found, expected, strict=True)])
    return f"{differ.double().mean():.2%}"


def start_alone(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """What `run_alone` gives in a fresh process."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder / name)]
    command += ["--threads", str(arguments.threads), "--started", str(time.time())]
    command += ["--memory-seconds", str(arguments.memory_seconds)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def run_alone(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds from the start of the process to the first second both ways, and its peak memory."""
    peer = PEERS[arguments.one](arguments.folder)
    peer.decode(peer.encode(peer.prepare([speech(peer.sample_rate, 1)])))
    start_s = time.time() - arguments.started
    peer.decode(peer.encode(peer.prepare([speech(peer.sample_rate, arguments.memory_seconds)])))
    return {"start_s": start_s, "peak_mb": peak_memory_mb()}


def peak_memory_mb() -> float:
    """Of this process. ru_maxrss would do, if it did not begin with what the parent holds."""
    status = Path("/proc/self/status").read_text("utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def table_head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def say(lines: list[str]) -> list[str]:
    """Prints lines at once, and gives them for the file."""
    print("\n".join(lines), flush=True)
    return lines


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-seconds", type=float, default=60)
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    parser.add_argument(
        "--loads",
        nargs="+",
        default=LOADS,
        type=lambda s: tuple(map(int, s.split("x")))[::-1],
        help="items x seconds: 1x10 8x10",
    )
    for hidden, kind in (("--one", str), ("--folder", Path), ("--started", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
