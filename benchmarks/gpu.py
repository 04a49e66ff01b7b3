"""What a GPU gives: the same codes, and how many hours of speech an hour, in calls of few minutes.

    python benchmarks/gpu.py --minutes 9 --output gpu.json --markdown gpu.md
    python benchmarks/gpu.py --device cpu --models tiny --batches 1 2 --seconds 1    # a rehearsal

Needs torch, this repository's source (`PYTHONPATH=src`), pydantic, safetensors, soundfile and soxr;
rows of training need accelerate, rows of STOI pystoi (else: SI-SDR). A row that cannot be made says
why. The JSON file is written after every row, and the next call with the same file on the same
kind of machine makes what is missing: a long list may be cut into short calls. The most telling
rows come first.

Models: `small` is the bundled codec, trained by configs/small.toml; `full` the paper's network with
random weights, trained by configs/release.toml; `tiny` is configs/tiny.toml, for rehearsals.

Checks (float32 on this machine's CPU is the reference, speech are the recordings of the
repository):

codes    share of codes that differ, and in the frames that do how much farther, relative to the
         squared distance, the entry is that was taken: nothing but near ties is right for float32
sound    what a measure against the original changes by, encoded and decoded in this precision
step     losses and gradient norm of one training step, from the same state on the same batch

Speed: the median of repeated runs after a warm-up, and the peak memory that torch took. Work:
encode and decode as users call them; train: a step with discriminators as often as the experiment
has them, and reconstruct: without; load: batches of training data from memory, no network. Ways:
plain layers; compiled by torch.compile; graph: layers replayed from a CUDA graph.
"""
# ruff: noqa: T201

import argparse
import contextlib
import copy
import functools
import gc
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcodec.audio import read_audio
from dmcodec.codec.long import encode_long
from dmcodec.codec.model import Codec, CodecConfig, load
from dmcodec.codec.precision import Precision, check_precision, computing_in
from dmcodec.config import load_config
from dmcodec.corpus.manifest import Utterance
from dmcodec.data.dataset import DataConfig, SegmentDataset
from dmcodec.data.loader import SegmentBatch, make_train_loader
from dmcodec.storage import write_whole

ROOT = Path(__file__).parents[1]
CLIPS = [ROOT / "examples" / "4077-13754-0000.flac"]
CLIPS += [ROOT / "src/dmcodec/demo/clips" / f"{name}-voice.flac" for name in ("high", "low")]
RATE = 16_000
CONFIGS = {"small": "small", "full": "release", "tiny": "tiny"}
TRAINING_BATCHES = {"small": (8, 64, 256), "full": (8, 20, 40), "tiny": (2,)}
NEAR_TIE = 1e-3
"""The most that an entry may be farther, relative to the squared distance, and be as good."""
LEAST_S = {"compile": 90.0, "train": 15.0}
"""Seconds that must be left for a row of that way or work to begin; others: 5."""
COLUMNS = {
    "check": "model precision of codes differ_percent worst_gap is_right measure reference change",
    "speed": "model work load precision way hours_per_hour ms peak_gb first_s",
}

Result = dict[str, Any]
Row = tuple[dict[str, str], Callable[[], Result]]


class Skipped(Exception):
    """A row that this machine cannot make; the message says why."""


def main(words: list[str] | None = None) -> int:
    """Makes the rows that are missing; 1 when one of them failed or is wrong."""
    arguments = parse_arguments(words)
    report = Report(arguments.output, describe_machine(arguments.device), arguments.minutes)
    for case, make in plan(arguments):
        report.add(case, make)
    text = report.markdown()
    if arguments.markdown is not None:
        arguments.markdown.write_text(text, "utf-8")
    print(text)
    return int(any("failed" in row or not row.get("is_right", True) for row in report.rows))


def plan(arguments: argparse.Namespace) -> Iterator[Row]:
    """Every row, the most telling first."""
    if not arguments.no_checks:
        for model, precision in itertools.product(arguments.models, arguments.precisions):
            yield from check_codes(arguments, model, precision)
        for model in arguments.models:
            yield check_step(arguments, model)
    if "plain" in arguments.ways:
        yield from plan_plain(arguments)
    ways = [way for way in arguments.ways if way != "plain"]
    for way, model, precision in itertools.product(
        ways, arguments.models, arguments.precisions[::-1]
    ):
        for work in ("encode", "decode"):
            yield speed_of(arguments, model, work, precision, middle(arguments.batches), way)
        batch = middle(TRAINING_BATCHES[model])
        yield training_speed(arguments, model, "train", precision, batch, way)


def plan_plain(arguments: argparse.Namespace) -> Iterator[Row]:
    """Speed of plain layers by batch, and of what feeds them."""
    first = middle(arguments.batches)
    for batch in (first, *(size for size in arguments.batches if size != first)):
        for case in itertools.product(arguments.models, ("encode", "decode"), arguments.precisions):
            yield speed_of(arguments, *case, batch, "plain")
    for model in arguments.models:
        works = ("train", "reconstruct")
        for case in itertools.product(works, arguments.precisions, TRAINING_BATCHES[model]):
            yield training_speed(arguments, model, *case, "plain")
        yield mixed_speed(arguments, model, first)
    for workers in arguments.workers:
        yield loading_speed(arguments, workers)


def middle(sizes: Sequence[int]) -> int:
    """The size that stands for all."""
    return sorted(sizes)[len(sizes) // 2]


class Report:
    """The rows so far, on disk after each of them.

    Args:
        path: of the JSON file: a list of machines and their rows. What is there is kept.
        machine: what the rows are of.
        minutes: after which no row begins.
    """

    def __init__(self, path: Path, machine: dict[str, str], minutes: float) -> None:
        self._path, self._end_s = path, time.monotonic() + 60 * minutes
        self._runs: list[Result] = json.loads(path.read_text("utf-8")) if path.is_file() else []
        mine = [run for run in self._runs if run["machine"] == machine]
        if not mine:
            mine = [{"machine": machine, "rows": []}]
            self._runs += mine
        mine[0]["rows"] = [row for row in mine[0]["rows"] if not {"skipped", "failed"} & row.keys()]
        self.rows: list[Result] = mine[0]["rows"]

    def add(self, case: dict[str, str], make: Callable[[], Result]) -> None:
        """Makes a row that is not there yet, whatever comes in its way."""
        if any(case.items() <= row.items() for row in self.rows):
            return
        least_s = max(LEAST_S.get(case.get(key, ""), 5.0) for key in ("way", "work"))
        try:
            if time.monotonic() + least_s > self._end_s:
                raise Skipped("no time was left")
            row = case | make()
        except Skipped as reason:
            row = case | {"skipped": str(reason)}
        except torch.OutOfMemoryError:
            row = case | {"skipped": "out of memory"}
        except Exception as problem:  # compilers and drivers raise anything; other rows go on
            row = case | {"failed": f"{type(problem).__name__}: {str(problem)[:300]}"}
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write_whole(self._path, json.dumps(self._runs, indent=1) + "\n")
        gc.collect()  # networks and their optimizers know each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def markdown(self) -> str:
        """The tables of checks and of speed of each machine."""
        lines = []
        for run, (kind, names) in itertools.product(self._runs, COLUMNS.items()):
            columns = names.split()
            about = ", ".join(f"{key} {value}" for key, value in run["machine"].items())
            lines += [f"{kind}, {about}", "", "| " + " | ".join([*columns, "note"]) + " |"]
            lines += ["|" + " --- |" * (len(columns) + 1)]
            for row in (row for row in run["rows"] if row["kind"] == kind):
                note = row.get("skipped", row.get("failed", ""))
                cells = [_cell(value) for value in (*(row.get(c, "") for c in columns), note)]
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
        return "\n".join(lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")


def check_codes(arguments: argparse.Namespace, model: str, precision: Precision) -> Iterator[Row]:
    """Codes of speech on the device, in several ways, against those of the CPU; and the sound."""
    device = arguments.device
    base = {"kind": "check", "model": model, "precision": precision}

    def compare(encode: Callable[[Codec, list[Tensor]], list[Tensor]]) -> Result:
        expected, waveforms = reference(model)
        with on_device(model, precision, device) as codec, torch.no_grad():
            found = [codes.cpu() for codes in encode(codec, [w.to(device) for w in waveforms])]
            differ = sum(int((a != b).sum()) for a, b in zip(found, expected, strict=True))
            num_codes = sum(codes.numel() for codes in expected)
            plain = codec_on(model, "cpu")
            gaps = [gaps_of(plain, *each) for each in zip(waveforms, expected, found, strict=True)]
        worst = max((float(gap.max()) for gap in gaps if len(gap)), default=0.0)
        result: Result = {"codes": num_codes, "differ_percent": 100 * differ / num_codes}
        result |= {"worst_gap": worst, "frames": sum(map(len, gaps))}
        return result | ({"is_right": worst < NEAR_TIE} if precision == "float32" else {})

    ways: dict[str, Callable[[Codec, list[Tensor]], list[Tensor]]] = {
        "clips alone": lambda codec, clips: [codec.encode(clip).item(0) for clip in clips],
        "a mixed batch": lambda codec, clips: list(
            map(codec.encode(clips).item, range(len(clips)))
        ),
        "pieces of 1 s": lambda codec, clips: [
            encode_long(codec, [clip], chunk_frames=50)[0] for clip in clips
        ],
    }
    for name, encode in ways.items():
        yield base | {"of": name}, functools.partial(compare, encode)

    def change() -> Result:
        expected, waveforms = reference(model)
        name, measure = sound_measure()
        plain = codec_on(model, "cpu")
        before, after = [], []
        with on_device(model, precision, device) as codec, torch.no_grad():
            for waveform, codes in zip(waveforms, expected, strict=True):
                decoded = codec.decode(codec.encode(waveform.to(device)))[0].cpu()
                exact = plain.decode(codes[None])[0, : len(waveform)]
                before.append(measure(waveform, exact))
                after.append(measure(waveform, decoded))
        means = statistics.fmean(before), statistics.fmean(after)
        return {"measure": name, "reference": means[0], "change": means[1] - means[0]}

    yield base | {"of": "sound"}, change


def gaps_of(codec: Codec, waveform: Tensor, expected: Tensor, found: Tensor) -> Tensor:
    """How much farther the entries of `found` are, in each frame that differs, [N].

    It counts where a frame first differs from `expected` (both [K, L]): later books follow from
    that. Squared distances of the CPU's residuals, relative to the expected entry's.
    """
    residual = codec.encoder(waveform[None, None])[0].t().double()  # [L, D]
    gaps, is_open = residual.new_zeros(len(residual)), torch.ones(len(residual), dtype=torch.bool)
    for book, right, other in zip(codec.quantizer.codebooks.double(), expected, found, strict=True):
        chosen = book[right]
        distance = (residual - chosen).square().sum(dim=1)
        farther = ((residual - book[other]).square().sum(dim=1) - distance) / distance.clamp(
            min=1e-12
        )
        is_first = is_open & (right != other)
        gaps[is_first] = farther[is_first].abs()
        is_open &= ~is_first
        residual = residual - chosen
    return gaps[~is_open]


def check_step(arguments: argparse.Namespace, model: str) -> Row:
    """One training step on the device and on the CPU."""
    case = {"kind": "check", "model": model, "precision": "float32", "of": "training step"}

    def make() -> Result:
        from dmcodec.training.state import load_state_tensors, state_tensors

        size = 1 if model == "full" else 2  # the CPU must not take minutes
        cpu = Training(model, "train", size, "float32", "cpu")
        cpu.step()  # starts the books: k-means would carry every rounding far
        tensors, step = copy.deepcopy(state_tensors(cpu.state)), cpu.state.step
        expected = cpu.step()
        there = Training(model, "train", size, "float32", arguments.device)
        load_state_tensors(there.state, tensors)
        there.state.step = step
        found = there.step()
        gaps = {
            name: abs(float(found[name]) - float(value)) / max(abs(float(value)), 1e-12)
            for name, value in expected.items()
        }
        worst = max(gaps, key=lambda name: gaps[name])
        result: Result = {"measure": f"{worst}, relative", "change": gaps[worst]}
        return result | {"is_right": gaps[worst] < 0.01}

    return case, needing("accelerate", make)


def speed_of(
    arguments: argparse.Namespace,
    model: str,
    work: str,
    precision: Precision,
    batch_size: int,
    way: str,
) -> Row:
    """Encoding or decoding a batch of equal lengths."""
    device, seconds = arguments.device, arguments.seconds
    case = {"kind": "speed", "model": model, "work": work, "load": f"{batch_size} x {seconds:g} s"}
    case |= {"precision": precision, "way": way}

    def make() -> Result:
        waveforms = speech(batch_size, seconds).to(device)
        with on_device(model, precision, device) as codec, torch.no_grad():
            encoded = codec.encode(waveforms)
            if work == "encode":
                network, example = codec.encoder, waveforms[:, None]
            else:
                network, example = codec.decoder, codec.quantizer.decode(encoded.codes)
            with changed(network, way, example, precision, arguments):
                run = (
                    functools.partial(codec.encode, waveforms)
                    if work == "encode"
                    else functools.partial(codec.decode, encoded)
                )
                return timed(run, batch_size * seconds, arguments)

    return case, make


def mixed_speed(arguments: argparse.Namespace, model: str, batch_size: int) -> Row:
    """Encoding clips of many lengths, as a corpus has them."""
    case = {"kind": "speed", "model": model, "work": "encode"}
    longest_s = 2 * arguments.seconds
    case |= {"load": f"{8 * batch_size} x 0.5 to {longest_s:g} s", "precision": "float32"}

    def make() -> Result:
        generator = torch.Generator().manual_seed(1)
        shares = torch.rand(8 * batch_size, generator=generator).tolist()
        clips = [
            speech(1, 0.5 + share * (longest_s - 0.5))[0].to(arguments.device) for share in shares
        ]
        with on_device(model, "float32", arguments.device) as codec:
            total_s = sum(map(len, clips)) / RATE
            return timed(functools.partial(codec.encode, clips), total_s, arguments)

    return case | {"way": "plain"}, make


def training_speed(
    arguments: argparse.Namespace,
    model: str,
    work: str,
    precision: Precision,
    batch_size: int,
    way: str,
) -> Row:
    """Steps of training on batches that are there already."""
    segment_s = load_experiment(model, "train", 1, "no").data.segment_samples / RATE
    case = {"kind": "speed", "model": model, "work": work}
    case |= {"load": f"{batch_size} x {segment_s:g} s", "precision": precision, "way": way}

    def make() -> Result:
        require(precision, arguments.device)
        if way == "graph":
            raise Skipped("a step looks at values on its way (books in use, finite losses)")
        training = Training(model, work, batch_size, precision, arguments.device)
        torch.compiler.reset()  # of another row
        if way == "compile":
            training.compile(arguments.compile_backend)

        def run() -> None:
            for _ in range(training.period):
                training.step()

        result = timed(run, training.period * batch_size * segment_s, arguments)
        result["ms"] /= training.period
        return result

    return case, needing("accelerate", make)


class Training:
    """An experiment at its first step, with a batch of speech.

    Args:
        model: whose experiment.
        work: "train", or "reconstruct" without discriminators.
        batch_size: segments.
        precision: bfloat16 is accelerate's mixed precision; the others set torch's switches.
        device: where.
    """

    def __init__(
        self, model: str, work: str, batch_size: int, precision: Precision, device: str
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        from dmcodec.training.state import new_state, place

        AcceleratorState._reset_state(reset_partial_state=True)  # of another row
        mixed = "bf16" if precision == "bfloat16" else "no"
        self._accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed)
        self._experiment = load_experiment(model, work, batch_size, mixed)
        self._precision: Precision = "float32" if precision == "bfloat16" else precision
        torch.default_generator.manual_seed(1)
        self.state = new_state(self._experiment)
        place(self.state, self._accelerator)
        waveforms = speech(batch_size, self._experiment.data.segment_samples / RATE)[:, None]
        numbers = torch.zeros(batch_size, dtype=torch.int64)
        self._batch = SegmentBatch(
            waveforms, torch.full_like(numbers, waveforms.shape[-1]), numbers, numbers
        ).to(torch.device(device))

    @property
    def period(self) -> int:
        """Steps after which the discriminators' turns repeat."""
        adversary = self._experiment.adversary
        return adversary.update_every if adversary is not None else 1

    def compile(self, backend: str) -> None:
        """Compiles what is run in a step, at the first one."""
        for network in (self.state.codec.encoder, self.state.codec.decoder):
            network.compile(backend=backend)
        if self.state.discriminators is not None:
            self.state.discriminators.compile(backend=backend)

    def step(self) -> dict[str, Tensor]:
        """One step; gives its losses."""
        from dmcodec.training.step import train_step

        with computing_in(self._precision, self._batch.waveform.device):
            return train_step(self.state, self._experiment, self._batch, self._accelerator)


def loading_speed(arguments: argparse.Namespace, workers: int) -> Row:
    """Batches of training data, decoded audio in memory, up to the device."""
    case = {"kind": "speed", "model": "-", "work": "load", "load": "64 x 1 s"}

    def make() -> Result:
        config = DataConfig(
            train_manifests=(Path("unused"),), segment_samples=RATE, use_preload=True
        )
        utterances = [Utterance(id=path.stem, audio=path) for path in CLIPS]
        dataset = SegmentDataset(utterances, config, seed=1)
        is_cuda = arguments.device.startswith("cuda")
        loader = make_train_loader(
            dataset, global_batch_size=64, num_workers=workers, use_pinned_memory=is_cuda
        )
        batches = iter(loader)

        def run() -> None:
            for _ in range(8):
                next(batches).to(torch.device(arguments.device))

        return timed(run, 8 * 64, arguments)

    return case | {"precision": "-", "way": f"{workers} workers"}, make


@contextlib.contextmanager
def changed(
    network: nn.Module,
    way: str,
    example: Tensor,
    precision: Precision,
    arguments: argparse.Namespace,
) -> Iterator[None]:
    """Inside, a network runs in this way on inputs of the example's shape."""
    is_cuda = example.device.type == "cuda"
    if way == "graph" and not is_cuda:
        raise Skipped(f"CUDA graphs are not for {example.device.type}")
    if way == "compile" and not is_cuda and precision == "float32":
        raise Skipped("float32 on the CPU does not run torch's layers (codec/fast.py)")
    try:
        if way == "compile":
            network.compile(backend=arguments.compile_backend)
        elif way == "graph":
            network.forward = captured(network, example, precision)  # type: ignore[method-assign]
        yield
    finally:
        network._compiled_call_impl = None
        vars(network).pop("forward", None)
        torch.compiler.reset()


def captured(network: nn.Module, example: Tensor, precision: Precision) -> Callable[..., Tensor]:
    """What replays the network's kernels on inputs of the example's shape."""
    inputs, side = example.clone(), torch.cuda.Stream()
    is_half = precision == "bfloat16"
    with (
        computing_in(precision, example.device),
        # Without the cache: a graph must not point to copies of weights that end with this block.
        torch.autocast("cuda", torch.bfloat16, enabled=is_half, cache_enabled=False),
    ):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                network(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = network(inputs)

    def replay(x: Tensor, lengths: Tensor | None = None) -> Tensor:
        assert lengths is None
        assert x.shape == inputs.shape
        inputs.copy_(x)
        graph.replay()
        return output

    return replay


def timed(run: Callable[[], object], audio_s: float, arguments: argparse.Namespace) -> Result:
    """Hours of speech an hour, ms a run and peak memory; the first run is apart."""
    is_cuda = arguments.device.startswith("cuda")

    def once() -> float:
        if is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    first_s = once()
    once()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < arguments.least_seconds and len(times) < 200):
        times.append(once())
    run_s = statistics.median(times)
    result = {"hours_per_hour": audio_s / run_s, "ms": 1000 * run_s, "first_s": first_s}
    return result | ({"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if is_cuda else {})


@functools.cache
def reference(model: str) -> tuple[list[Tensor], list[Tensor]]:
    """Codes [K, L_i] of the clips on the CPU, and the clips [T_i]."""
    waveforms = [torch.from_numpy(read_audio(path, sample_rate=RATE)) for path in CLIPS]
    if model != "small":
        waveforms = [waveform[: 2 * RATE + 37 * n] for n, waveform in enumerate(waveforms)]
    codec = codec_on(model, "cpu")
    return [codec.encode(waveform).item(0) for waveform in waveforms], waveforms


@contextlib.contextmanager
def on_device(model: str, precision: Precision, device: str) -> Iterator[Codec]:
    """The codec, computing in this precision; Skipped where the device has none such."""
    require(precision, device)
    codec = codec_on(model, device)
    codec.precision = precision
    try:
        yield codec
    finally:
        codec.precision = "float32"


def require(precision: Precision, device: str) -> None:
    """Raises Skipped where the device does not compute in this precision."""
    try:
        check_precision(precision, torch.device(device))
    except ValueError as problem:
        raise Skipped(str(problem)) from problem


@functools.cache
def codec_on(model: str, device: str) -> Codec:
    """The bundled codec, or one with random weights and books as wide as what its encoder gives."""
    if model == "small":
        return load().to(device)
    if device != "cpu":
        return copy.deepcopy(codec_on(model, "cpu")).to(device)
    torch.default_generator.manual_seed(0)
    config = CodecConfig() if model == "full" else load_experiment(model, "train", 1, "no").codec
    codec = Codec(config).eval()
    with torch.no_grad():
        latents = codec.encoder(speech(2, 2)[:, None])
        generator = torch.Generator().manual_seed(0)
        for number, book in enumerate(codec.quantizer.codebooks):
            noise = torch.randn(book.shape, generator=generator)
            book.copy_(0.8**number * latents.std() * noise + (number == 0) * latents.mean())
    return codec


def load_experiment(model: str, work: str, batch_size: int, mixed: str) -> Any:
    """The experiment of a model, its discriminators at work from the first step, or without."""
    from dmcodec.training.experiment import Experiment

    path = ROOT / "configs" / f"{CONFIGS[model]}.toml"
    changes = [f"batch_size={batch_size}", f"mixed_precision={mixed}", "adversary.start_step=0"]
    experiment = load_config(path, Experiment, changes)
    return experiment if work == "train" else experiment.model_copy(update={"adversary": None})


def needing(package: str, make: Callable[[], Result]) -> Callable[[], Result]:
    """The same, where the package is there."""

    def checked() -> Result:
        if importlib.util.find_spec(package) is None:
            raise Skipped(f"{package} is not installed")
        return make()

    return checked


def sound_measure() -> tuple[str, Callable[[Tensor, Tensor], float]]:
    """STOI where pystoi is there, or else SI-SDR in dB."""
    from dmcodec.metrics.intelligibility import stoi
    from dmcodec.metrics.signal import si_sdr

    if importlib.util.find_spec("pystoi") is not None:
        return "STOI", lambda a, b: stoi(a.numpy(), b.numpy(), RATE)
    return "SI-SDR, dB", lambda a, b: si_sdr(a.numpy(), b.numpy())


@functools.cache
def recordings() -> Tensor:
    """All clips, one behind the other, [T]."""
    return torch.cat([torch.from_numpy(read_audio(path, sample_rate=RATE)) for path in CLIPS])


def speech(batch_size: int, seconds: float) -> Tensor:
    """Waveforms [B, T]: the recordings over and over, from different places."""
    size = round(seconds * RATE)
    source = recordings()
    source = (
        F.pad(source[None], (0, size), mode="circular")[0]
        if size <= len(source)
        else (source.repeat(size // len(source) + 2))
    )
    starts = [n * 7919 % len(recordings()) for n in range(batch_size)]
    return torch.stack([source[start : start + size] for start in starts])


def describe_machine(device: str) -> dict[str, str]:
    """What figures depend on."""
    machine = {"torch": torch.__version__, "device": device}
    if device.startswith("cuda"):
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        machine["cudnn"] = str(torch.backends.cudnn.version())
    return machine


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no row begins")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--no-checks", action="store_true", help="speed only")
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=["small", "full"])
    names = ["float32", "tf32", "bfloat16"]
    parser.add_argument("--precisions", nargs="+", choices=names, default=names)
    ways = ["plain", "graph", "compile"]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=10.0, help="of speech in an item, to 60")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--least-seconds", type=float, default=1.0, help="of runs of a row")
    parser.add_argument("--compile-backend", default="inductor")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
