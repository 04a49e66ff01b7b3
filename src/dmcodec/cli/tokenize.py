"""The command that turns corpora into tokens: tokenize."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmcodec.cli.options import (
    ColumnNames,
    CommandError,
    Device,
    MaxFailures,
    Model,
    NumCodebooks,
    PrecisionName,
    SearchWidth,
    describe_problem,
    load_codec,
    parse_columns,
    parse_seconds,
)
from dmcodec.cli.terminal import complain, say, show_progress, show_reports
from dmcodec.processes import MAX_WORKERS

if TYPE_CHECKING:
    from dmcodec.codec.model import Codec
    from dmcodec.corpus.manifest import Utterance
    from dmcodec.tokenize.job import TokenizeReport

Manifests = Annotated[
    list[Path],
    typer.Argument(
        metavar="MANIFEST...",
        help="Folder, .jsonl, .csv, .tsv, wav.scp, Lhotse, .parquet, .tar or saved dataset.",
    ),
]
Shards = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", help="Folder for the shards.")
]
ShardSize = Annotated[int, typer.Option(min=1, help="Utterances in a shard.")]
MaxSeconds = Annotated[
    float | None, typer.Option(min=0.01, help="List longer ones as failed; default: no limit.")
]
BatchSeconds = Annotated[
    float | None,
    typer.Option(min=0.01, help="Speech in a batch; default: 16 on the CPU, else 400."),
]
Readers = Annotated[
    int, typer.Option(min=1, max=MAX_WORKERS, help="Threads that read sound files.")
]
WorkerThreads = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_WORKERS, help="CPU threads of the network, of each Ray worker."),
]
WebDataset = Annotated[bool, typer.Option("--webdataset", help="Write WebDataset tars too.")]
Dmc = Annotated[bool, typer.Option("--dmc", help="Write a .dmc file of each too.")]
OnRay = Annotated[bool, typer.Option("--ray", help="Share the work on a Ray cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option(help="auto, local, HOST:PORT, ray://HOST:10001; default: find or start."),
]
RayWorkers = Annotated[int, typer.Option(min=1, max=10_000, help="Ray workers with the model.")]


def tokenize(  # noqa: PLR0913 (one for each flag)
    manifests: Manifests,
    output: Shards,
    model: Model = None,
    device: Device = "cpu",
    precision: PrecisionName = "float32",
    num_codebooks: NumCodebooks = None,
    search_width: SearchWidth = 1,
    shard_size: ShardSize = 256,
    max_seconds: MaxSeconds = None,
    batch_seconds: BatchSeconds = None,
    max_failures: MaxFailures = "100",
    readers: Readers = 2,
    threads: WorkerThreads = None,
    webdataset: WebDataset = False,
    dmc: Dmc = False,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    ray_workers: RayWorkers = 1,
    columns: ColumnNames = None,
) -> None:
    """Turn a corpus into Parquet shards of tokens; run again to go on where it stopped."""
    from dmcodec.audio import seconds_to_samples
    from dmcodec.tokenize.cluster import Cluster
    from dmcodec.tokenize.job import describe_corpus
    from dmcodec.tokenize.job import tokenize as tokenize_corpus
    from dmcodec.tokenize.pipeline import Speed

    default_s = 16.0 if device == "cpu" else 400.0
    batch_s = parse_seconds("--batch-seconds", batch_seconds or default_s)
    if max_seconds is not None:
        parse_seconds("--max-seconds", max_seconds, most=1e9)
    utterances, problems = _read_listed(manifests, columns)
    codec = _load(model, device, precision, threads, on_ray=ray)
    rate = codec.config.sample_rate
    corpus = describe_corpus(
        codec,
        utterances,
        num_codebooks=num_codebooks,
        search_width=search_width,
        shard_size=shard_size,
        max_samples=None if max_seconds is None else seconds_to_samples(max_seconds, rate),
        has_webdataset=webdataset,
        has_dmc=dmc,
    )
    cluster = Cluster(
        address=ray_address, num_workers=ray_workers, device=device, threads_per_worker=threads
    )
    speed = Speed(batch_samples=seconds_to_samples(batch_s, rate), num_readers=readers)
    with _explained_errors(), show_progress() as progress:
        job = tokenize_corpus(
            codec,
            utterances,
            output,
            corpus,
            speed=speed,
            cluster=cluster if ray else None,
            max_failures=max_failures,
            progress=progress,
        )
    show_reports({"tokenizing": job}, max_failures)
    if job.times.num_samples:
        say(job.describe_speed(rate))
    _check_whole(job, problems)


def _read_listed(
    manifests: Sequence[Path], columns: list[str] | None
) -> tuple[list["Utterance"], list[str]]:
    """The utterances of manifests, and what of them could not be read, which is shown."""
    from dmcodec.corpus.manifest import read_manifests

    problems: list[str] = []
    utterances = read_manifests(
        manifests, columns=parse_columns(columns), on_problem=problems.append
    )
    for problem in problems:
        complain(problem)
    if not utterances:
        raise CommandError("no utterance could be read from the manifests")
    return utterances, problems


def _check_whole(job: "TokenizeReport", problems: Sequence[str]) -> None:
    """Ends the command with exit code 1 when there is no token, or a list was not read whole."""
    if not job.num_done + job.num_before:
        raise CommandError(f"none of the {job.total} utterances could be tokenized")
    if problems:
        say(f"{len(problems)} lines or lists could not be read, see above", is_aside=True)
        raise typer.Exit(1)


def _load(
    model: str | None, device: str, precision: str, threads: int | None, *, on_ray: bool
) -> "Codec":
    """The codec on its device, or for Ray, whose workers bring it to theirs, on the CPU."""
    import torch

    from dmcodec.codec.precision import check_precision

    if not on_ray:
        return load_codec(model, device, precision, threads)
    codec = load_codec(model, "cpu", threads=threads)
    try:
        codec.precision = check_precision(precision, torch.device(device))
    except RuntimeError as problem:
        raise CommandError(f"device {device!r} cannot be used: {problem}") from problem
    return codec


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Says what to do about errors of the disk and of memory."""
    import torch

    try:
        yield
    except OSError as problem:
        message = describe_problem(problem)
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            message += "; finished shards are kept: run the same command again to go on"
        raise CommandError(message) from problem
    except torch.OutOfMemoryError as problem:
        raise CommandError("out of memory: lower --batch-seconds") from problem
