"""How fast corpora become tokens, against a plain loop over files, and how cost grows with size.

    python benchmarks/tokenize_speed.py ways speech/train.jsonl --minutes 20
    python benchmarks/tokenize_speed.py growth speech/train.jsonl --minutes 10 100 1000

`ways` works on the same speech in a plain loop over files, with `dmcodec tokenize` on one and two
threads, and with Ray on one and two workers of one thread; `growth` lets the amount of speech grow.
Each run is a process of its own; recordings are repeated under new ids where the manifest has too
few. Prints a Markdown table; ratios are what to compare between machines, and on a machine with
other work the sums over `--rounds` in turn. `--model full` is the paper's architecture with random
weights, whose speed is that of trained ones.

"network" is the time the network was at work, added over the workers; what Ray's wall time has
beyond it is the start of Ray and the workers, and the end, where one waits for the other. "CPU" is
processor time of all processes, memory the peak of the largest one.
"""
# ruff: noqa: T201

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from codec_speed import load_codec

from dmcodec.audio import SAMPLE_RATE
from dmcodec.corpus.manifest import Utterance, read_manifest
from dmcodec.corpus.sources import measure
from dmcodec.tokenize.cluster import Cluster
from dmcodec.tokenize.job import describe_corpus, tokenize

# Name -> threads of this process, Ray workers of one thread each (0: without Ray).
WAYS = {
    "loop 1 thread": (1, 0),
    "loop 2 threads": (2, 0),
    "1 thread": (1, 0),
    "2 threads": (2, 0),
    "Ray 1 worker": (1, 1),
    "Ray 2 workers": (1, 2),
}


def main() -> None:
    """Starts a process for each run and prints the table, or is one of these processes."""
    arguments = parse_arguments()
    if arguments.what == "one":
        print(json.dumps(run_once(arguments)))
        return
    runs = (
        [(way, arguments.minutes[0]) for way in arguments.ways]
        if arguments.what == "ways"
        else [(arguments.ways[-1], minutes) for minutes in arguments.minutes]
    )
    totals: dict[tuple[str, float], dict[str, float]] = {}
    for run in runs * arguments.rounds:
        report = start_run(arguments, *run)
        total = totals.setdefault(run, dict.fromkeys(report, 0.0))
        for name, value in report.items():
            is_peak = name == "peak_mb"
            total[name] = max(total[name], value) if is_peak else total[name] + value
    print(
        "| way | speech, min | wall, s | hours an hour | to the first | network, s | CPU, s | MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    first = next(iter(totals.values()))
    for (way, _), total in totals.items():
        rate = total["speech_s"] / total["wall_s"]
        print(
            f"| {way} | {total['speech_s'] / 60:.1f} | {total['wall_s']:.1f} | {rate:.1f} | "
            f"{rate * first['wall_s'] / first['speech_s']:.2f} | {total['network_s']:.1f} | "
            f"{total['cpu_s']:.1f} | {total['peak_mb']:.0f} |"
        )


def start_run(arguments: argparse.Namespace, way: str, minutes: float) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "one", str(arguments.manifest)]
    command += ["--ways", way, "--minutes", str(minutes), "--model", arguments.model]
    command += ["--shard-size", str(arguments.shard_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    print(f"{way}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_once(arguments: argparse.Namespace) -> dict[str, float]:
    """Works on the speech once; the clock starts when the model is loaded."""
    (way,) = arguments.ways
    num_threads, num_workers = WAYS[way]
    torch.set_num_threads(num_threads)
    codec = load_codec(arguments.model)
    utterances = take(read_manifest(arguments.manifest), arguments.minutes[0])
    codec.encode(torch.zeros(SAMPLE_RATE))
    usage = Usage()
    started = time.perf_counter()
    if way.startswith("loop"):
        num_samples = sum(int(codec.encode(each.sound_file).num_samples[0]) for each in utterances)
        network_s = time.perf_counter() - started
    else:
        with tempfile.TemporaryDirectory() as folder:
            job = tokenize(
                codec,
                utterances,
                Path(folder),
                describe_corpus(codec, utterances, shard_size=arguments.shard_size),
                cluster=Cluster(address="local", num_workers=num_workers, threads_per_worker=1)
                if num_workers
                else None,
                max_failures=0,
            )
        assert job.num_done == len(utterances)
        num_samples, network_s = job.times.num_samples, job.times.network_s
    wall_s = time.perf_counter() - started
    return {
        "wall_s": wall_s,
        "speech_s": num_samples / codec.config.sample_rate,
        "network_s": network_s,
        **usage.stop(),
    }


class Usage:
    """Processor time and peak memory of this process and its children, some of which end early."""

    def __init__(self) -> None:
        self._cpu_s: dict[int, float] = {}
        self._peak_bytes = 0
        self._is_over = threading.Event()
        self._look()
        self._cpu_s_before = sum(self._cpu_s.values())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Processor seconds since the beginning; the largest process's peak in MB."""
        self._is_over.set()
        self._thread.join()
        self._look()
        used_s = sum(self._cpu_s.values()) - self._cpu_s_before
        return {"cpu_s": used_s, "peak_mb": self._peak_bytes / 1e6}

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu_s[process.pid] = times.user + times.system
                self._peak_bytes = max(self._peak_bytes, process.memory_info().rss)


def take(utterances: list[Utterance], minutes: float) -> list[Utterance]:
    """Utterances until these minutes are full; repeated under new ids when there are too few."""
    taken: list[Utterance] = []
    missing = minutes * 60 * SAMPLE_RATE
    while missing > 0:
        each = utterances[len(taken) % len(utterances)]
        taken.append(each.model_copy(update={"id": f"{len(taken)}/{each.id}"}))
        missing -= each.num_samples or measure(each)
    return taken


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["ways", "growth", "one"])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[20.0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all, growth: 2 threads")
    parser.add_argument("--model", default="bundled", help="bundled, full, or a codec folder")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--shard-size", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.ways is None:
        arguments.ways = ["2 threads"] if arguments.what == "growth" else list(WAYS)
    return arguments


if __name__ == "__main__":
    main()
