"""Shards of a corpus shared among the workers of a Ray cluster, of one machine or many."""

import json
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from dmcodec.codec.model import Codec
from dmcodec.corpus.manifest import Utterance
from dmcodec.packages import import_package
from dmcodec.tokenize.pipeline import Shard, ShardResult, Speed, Times, tokenize_shards
from dmcodec.tokens.shards import CorpusInfo, ShardSummary

# Of a cluster on this machine, which may have other work: Ray's own niceness of 15 lets that starve
# the workers, and it gives up a worker that takes a minute to start, or a node silent for as long.
_PATIENT = {
    "worker_niceness": 0,
    "worker_register_timeout_seconds": 600,
    "health_check_timeout_ms": 120_000,
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Ray workers that share a job.

    address: of a running cluster ("auto", HOST:PORT, ray://HOST:10001); "local": a new one on
        this machine; None: one that the environment names or this machine runs, else a new one.
    num_workers: each holds the model and works on one shard at a time.
    device: of every worker; anything but cpu takes one GPU each.
    threads_per_worker: CPU cores that each takes. None: with a GPU 1, without as many as there
        are for each; readers are threads of their own, and mostly wait.
    """

    address: str | None = None
    num_workers: int = 1
    device: str = "cpu"
    threads_per_worker: int | None = None


def tokenize_with_ray(
    codec: Codec,
    shards: Iterable[Shard],
    info: CorpusInfo,
    speed: Speed,
    cluster: Cluster,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Generator[ShardResult, None, None]:
    """Works on shards with Ray Data; gives results as they come. As `tokenize_shards` otherwise.

    Sound files must be under the same paths on every machine. Results come back to this process,
    so the output folder need not.
    """
    ray = import_package("ray", "--ray")
    items = [
        {"number": number, "utterances": json.dumps([each.to_line() for each in utterances])}
        for number, utterances in shards
    ]
    if not items:
        return
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(cluster)
    try:
        num_workers = min(cluster.num_workers, len(items))
        num_threads = cluster.threads_per_worker or (
            1 if cluster.device != "cpu" else share_cores(_count_cores(), num_workers)
        )
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _RayWorker,
            batch_size=1,
            # One shard at a time: the first worker to start would queue those of the others.
            compute=ray.data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
            fn_constructor_args=(
                ray.put(deepcopy(codec).cpu()),
                info,
                speed,
                cluster.device,
                num_threads,
            ),
            num_cpus=num_threads,
            num_gpus=0 if cluster.device == "cpu" else 1,
        )
        for row in dataset.iter_rows():
            found = json.loads(row["about"])
            summary = ShardSummary(**found["summary"])
            on_progress(summary.num_rows + len(summary.failures))
            yield ShardResult(int(row["number"]), row["data"], summary, Times(**found["times"]))
    finally:
        if is_ours:
            ray.shutdown()


class _RayWorker:
    """Holds the codec on a Ray worker; a batch is one shard."""

    def __init__(
        self, codec: Any, info: CorpusInfo, speed: Speed, device: str, num_threads: int
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(num_threads)
        self.codec: Codec = ray.get(codec).to(device).eval()
        self.info = info
        self.speed = speed

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        number = int(batch["number"][0])
        said = json.loads(str(batch["utterances"][0]))
        shard = Shard(number, [Utterance.model_validate(each) for each in said])
        (result,) = tokenize_shards(self.codec, [shard], self.info, self.speed)
        about = {"summary": vars(result.summary), "times": vars(result.times)}
        return {"number": [number], "data": [result.data], "about": [json.dumps(about)]}


def _connect(cluster: Cluster) -> None:
    """Joins the cluster that was named or can be found, else starts one on this machine."""
    import ray

    try:
        if cluster.address != "local":
            ray.init(address=cluster.address or "auto", log_to_driver=False)
            return
    except ConnectionError:
        if cluster.address is not None:
            raise
    wanted = cluster.num_workers * (cluster.threads_per_worker or 1)
    ray.init(
        address="local",
        num_cpus=max(wanted, len(os.sched_getaffinity(0))),
        include_dashboard=False,
        log_to_driver=False,
        _system_config=_PATIENT,
    )


def _count_cores() -> list[int]:
    """CPU cores of each machine of the cluster."""
    import ray

    nodes: list[dict[str, Any]] = cast(Any, ray).nodes()
    return [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]


def share_cores(cores: Sequence[int], num_workers: int) -> int:
    """The most threads a worker may have so that all workers find a place; at least 1."""
    threads = max(cores, default=1)
    while threads > 1 and sum(each // threads for each in cores) < num_workers:
        threads -= 1
    return max(1, threads)
