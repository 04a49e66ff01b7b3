"""What a training step on the CPU costs, and what was won: steps a second of variants, in turns.

    python benchmarks/training_speed.py --rounds 3

Every variant is `configs/small_guided.toml` without teachers, on noise, so that nothing but the
step is timed; each run is a process (or two) of its own. The variants take turns, and each gives
the median of its rounds. `plain` is two processes of one thread, memory kept by the process
(MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_), float32, discriminators that hear all; the others
differ from it in what they are called.
"""
# ruff: noqa: T201

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from dmcodec import spectral
from dmcodec.config import load_config
from dmcodec.data.loader import SegmentBatch
from dmcodec.training.experiment import Experiment
from dmcodec.training.state import new_state, place
from dmcodec.training.step import train_step

ROOT = Path(__file__).parents[1]
KEPT = "1000000000"  # bytes: more than a step ever frees at once
WARM_UP = 2


@dataclass(frozen=True)
class Variant:
    """In what a run differs from the plain one."""

    processes: int = 2
    threads: int = 1  # of each process
    keeps_memory: bool = True
    is_stft_gradient_torchs: bool = False
    mixed_precision: str = "no"
    window_samples: int | None = None  # of a segment, what discriminators hear


VARIANTS = {
    "plain": Variant(),
    "STFT with torch's gradient": Variant(is_stft_gradient_torchs=True),
    "memory given back": Variant(keeps_memory=False),
    "one process of two threads": Variant(processes=1, threads=2),
    "bfloat16": Variant(mixed_precision="bf16"),
    "bfloat16, discriminators hear half a second": Variant(
        mixed_precision="bf16", window_samples=8000
    ),
}


def main() -> None:
    """Prints a table: steps a second, and the ratio to `plain`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed, of every run")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "small_guided.toml")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--child", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--without-adversary", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options)
        return
    names = dict.fromkeys(("plain", *options.variants))  # ratios are to plain
    cases = [(name, alone) for alone in (False, True) for name in names]
    rates: dict[tuple[str, bool], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            rates[case].append(run(*case, options))
    print("| variant | steps/s, adversary | ratio | steps/s, none | ratio |")
    print("|---|---|---|---|---|")
    for name in names:
        cells = []
        for alone in (False, True):
            rate, plain = (statistics.median(rates[each, alone]) for each in (name, "plain"))
            cells += [f"{rate:.2f}", f"{rate / plain:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def run(name: str, without_adversary: bool, options: argparse.Namespace) -> float:
    """Steps a second of a variant, in processes of its own."""
    variant = VARIANTS[name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(variant.threads)}
    for key in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        environment.pop(key, None)
        if variant.keeps_memory:
            environment[key] = KEPT
    command = [sys.executable]
    if variant.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={variant.processes}"]
    command += [__file__, "--child", name, "--steps", str(options.steps)]
    command += ["--config", str(options.config)]
    command += [word for each in options.assignments for word in ("--set", each)]
    command += ["--without-adversary"] * without_adversary
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def run_child(options: argparse.Namespace) -> None:
    """Prints the steps a second of this process's part in a variant."""
    variant = VARIANTS[options.child]
    if variant.is_stft_gradient_torchs:
        spectral._RealFFT = _TorchFFT  # type: ignore[misc,assignment]
    torch.set_num_threads(variant.threads)
    experiment = load_config(options.config, Experiment, options.assignments)
    codec = experiment.codec.model_copy(update={"feature_dim": None})
    changes: dict[str, object] = {"distillation": None, "codec": codec, "init_from": None}
    if options.without_adversary or experiment.adversary is None:
        changes["adversary"] = None
    else:
        window = {"window_samples": variant.window_samples}
        changes["adversary"] = experiment.adversary.model_copy(update=window)
    experiment = experiment.model_copy(update=changes)
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(
        cpu=True, mixed_precision=variant.mixed_precision, kwargs_handlers=handlers
    )
    generator = torch.Generator().manual_seed(accelerator.process_index)
    state = new_state(experiment)
    place(state, accelerator)
    size = experiment.batch_size // accelerator.num_processes
    samples = experiment.data.segment_samples
    batch = SegmentBatch(
        waveform=0.1 * torch.randn(size, 1, samples, generator=generator),
        num_samples=torch.full((size,), samples),
        utterance_index=torch.zeros(size, dtype=torch.int64),
        start_samples=torch.zeros(size, dtype=torch.int64),
    )
    started = 0.0
    for step in range(WARM_UP + options.steps):
        if step == WARM_UP:
            accelerator.wait_for_everyone()
            started = time.perf_counter()
        train_step(state, experiment, batch, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(options.steps / (time.perf_counter() - started))


class _TorchFFT:
    """The transform with torch's own gradient, as it was before."""

    @staticmethod
    def apply(frames: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(frames)


if __name__ == "__main__":
    main()
