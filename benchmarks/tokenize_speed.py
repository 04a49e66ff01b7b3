"""How fast corpora become tokens, against a plain loop over files, and how cost grows with size.

    python benchmarks/tokenize_speed.py ways speech/train.jsonl --minutes 20
    python benchmarks/tokenize_speed.py growth speech/train.jsonl --minutes 10 100 1000

`ways` works on the same speech in a plain loop over files, with `dmcodec tokenize` on one and two
threads, and with Ray on one and two workers; `growth` lets the amount of speech grow. Each run is a
process of its own; recordings are repeated under new ids where the manifest has too few. Prints
a Markdown table; ratios are what to compare between machines. `--model full` is the paper's
architecture with random weights, whose speed is that of trained ones.
"""
# ruff: noqa: T201

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dmcodec.audio import SAMPLE_RATE
from dmcodec.codec.checkpoint import load
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.manifest import Utterance, read_manifest
from dmcodec.sources import measure
from dmcodec.tokens.corpus import Cluster, describe_corpus, tokenize
from dmcodec.tokens.pipeline import Speed
from dmcodec.tokens.shards import read_rows

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
    print(
        "| way | speech, min | wall, s | hours an hour | to the first | peak memory, MB | details |"
    )
    print("|---|---|---|---|---|---|---|")
    first: float | None = None
    for way, minutes in runs:
        report = start_run(arguments, way, minutes)
        rate = report["speech_s"] / report["wall_s"]
        first = first or rate
        print(
            f"| {way} | {report['speech_s'] / 60:.1f} | {report['wall_s']:.1f} | {rate:.1f} | "
            f"{rate / first:.2f} | {report['peak_mb']:.0f} | {report['details']} |",
            flush=True,
        )


def start_run(arguments: argparse.Namespace, way: str, minutes: float) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "one", str(arguments.manifest)]
    command += ["--ways", way, "--minutes", str(minutes), "--model", arguments.model]
    command += ["--shard-size", str(arguments.shard_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_once(arguments: argparse.Namespace) -> dict[str, object]:
    """Works on the speech once; the model is loaded and Ray is started before the clock."""
    (way,) = arguments.ways
    num_threads, num_workers = WAYS[way]
    torch.set_num_threads(num_threads)
    codec = load_codec(arguments.model)
    utterances = take(read_manifest(arguments.manifest), arguments.minutes[0])
    codec.encode(torch.zeros(SAMPLE_RATE))
    if num_workers:
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    started = time.perf_counter()
    details = ""
    if way.startswith("loop"):
        num_samples = sum(int(codec.encode(each.audio).num_samples[0]) for each in utterances)
    else:
        with tempfile.TemporaryDirectory() as folder:
            info = describe_corpus(codec, utterances, shard_size=arguments.shard_size)
            job = tokenize(
                codec,
                utterances,
                Path(folder),
                info,
                speed=Speed(num_readers=1 if num_workers else 2),
                cluster=Cluster(num_workers=num_workers) if num_workers else None,
                max_failures=0,
            )
            details = (
                f"waiting for files {job.times.wait_s:.1f} s, padding "
                f"{1 - job.times.num_samples / job.times.network_samples:.1%}"
            )
            num_samples = job.times.num_samples
            assert sum(1 for _ in read_rows(Path(folder))) == len(utterances)
    return {
        "wall_s": time.perf_counter() - started,
        "speech_s": num_samples / codec.config.sample_rate,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "details": details,
    }


def load_codec(name: str) -> Codec:
    """The bundled model, a folder, or the full-size architecture with random weights."""
    if name == "full":
        return Codec(CodecConfig()).eval()
    return load(None if name == "bundled" else name)


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
    parser.add_argument("--shard-size", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.ways is None:
        arguments.ways = ["2 threads"] if arguments.what == "growth" else list(WAYS)
    return arguments


if __name__ == "__main__":
    main()
