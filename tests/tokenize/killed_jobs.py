"""Runs one tokenizing job again and again, killing it at random moments; test_job.py asks.

A process of its own, because the jobs are forks: forking a process that runs tests is not safe,
and starting Python for each of dozens of jobs takes a minute.

    python killed_jobs.py MODEL MANIFEST OUT SEED NUM_KILLS

Prints JSON lines: {"killed": bool, "shards": {name: [inode, modification time]}} after each job.
A folder that is finished before enough jobs were killed is followed by another: OUT/0, OUT/1 ...
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dmcodec.codec.model import Codec, load
from dmcodec.corpus.manifest import Utterance, read_manifest
from dmcodec.tokenize.job import describe_corpus, tokenize
from dmcodec.tokens.shards import CorpusInfo

WATCH = os.WEXITED | os.WNOHANG | os.WNOWAIT  # looks whether a process has ended, and leaves it


def start_job(codec: Codec, utterances: list[Utterance], output: Path, info: CorpusInfo) -> int:
    """Begins to tokenize in a process of its own; gives its number."""
    child = os.fork()
    if child == 0:
        tokenize(codec, utterances, output, info)
        os._exit(0)
    return child


def count_shards(output: Path) -> int:
    """Finished shards in a folder."""
    return len(list(output.glob("shard-*.parquet")))


def main() -> None:
    model, manifest, out, seed, num_kills = sys.argv[1:]
    torch.set_num_threads(1)
    codec = load(model)
    utterances = read_manifest(manifest)
    info = describe_corpus(codec, utterances, shard_size=2, has_dmc=True)
    rng = random.Random(int(seed))
    kills, folder = 0, 0
    while kills < int(num_kills):
        output = Path(out) / str(folder)
        child = start_job(codec, utterances, output, info)
        # At a random moment after none, one or two more shards: a clock alone would kill all jobs
        # before their first shard on a busy machine, and none on an idle one.
        goal = count_shards(output) + rng.randrange(3)
        while count_shards(output) < goal and os.waitid(os.P_PID, child, WATCH) is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        was_killed = os.WIFSIGNALED(status)
        kills += was_killed
        shards = {
            path.name: [path.stat().st_ino, path.stat().st_mtime_ns]
            for path in sorted(output.glob("shard-*.parquet"))
        }
        report = {"killed": was_killed, "folder": str(output), "shards": shards}
        print(json.dumps(report), flush=True)  # noqa: T201
        if len(shards) == info.num_shards:
            folder += 1


if __name__ == "__main__":
    main()
