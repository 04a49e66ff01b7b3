"""Commands that take long and go on where they stopped: train, teach, tokenize, evaluate..."""

import errno
import logging
from collections.abc import Sequence
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
    open_device,
    parse_columns,
    parse_seconds,
)
from dmcodec.cli.terminal import (
    complain,
    plain_console,
    say,
    show_logs,
    show_progress,
    show_reports,
)
from dmcodec.processes import MAX_WORKERS

if TYPE_CHECKING:
    from dmcodec.corpus.manifest import Utterance
    from dmcodec.evaluation.summary import Summary

TrainingDevice = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")]


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The experiment.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder of the run; default: runs/NAME."
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set losses.mel_weight=2."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    stop_after_minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="N",
            help="After so many minutes save a checkpoint and end, to go on later.",
        ),
    ] = None,
    device: TrainingDevice = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, max=MAX_WORKERS, help="CPU threads of each process.")
    ] = None,
) -> None:
    """Train a codec as an experiment file says; several processes: start with torchrun."""
    from dmcodec.packages import import_package

    for package in ("accelerate", "tensorboard"):
        import_package(package, "training")
    import torch

    from dmcodec.config import load_config
    from dmcodec.training.experiment import Experiment
    from dmcodec.training.loop import train as train_codec
    from dmcodec.training.step import TrainingDiverged

    stop_after_s = None if stop_after_minutes is None else 60 * stop_after_minutes
    show_logs(logging.INFO)
    if threads is not None:
        torch.set_num_threads(threads)
    experiment = load_config(config, Experiment, assignments)
    folder = output if output is not None else Path("runs") / config.stem
    try:
        step, scores = train_codec(
            experiment, folder, resume=resume, device=device, stop_after_s=stop_after_s
        )
    except TrainingDiverged as problem:
        raise CommandError(str(problem)) from problem
    if step < experiment.num_steps:
        say(
            f"stopped at step {step} of {experiment.num_steps}, as asked; it is saved in "
            f"{folder / 'checkpoints'}: give the same command with --resume to go on"
        )
        return
    figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.items()) or "no validation"
    say(f"finished: {figures}. The codec is in {folder / 'codec'}")


def teach(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The experiment.")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as for train."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=MAX_WORKERS, help="Processes, each with its models.")
    ] = 1,
    device: Device = "cpu",
    max_failures: MaxFailures = "1%",
) -> None:
    """Compute the teachers' features of an experiment once; run again to go on where it stopped."""
    from dmcodec.config import load_config
    from dmcodec.training.experiment import Experiment
    from dmcodec.training.teach import teach as teach_stores

    experiment = load_config(config, Experiment, assignments)
    open_device(device)
    with show_progress() as progress:
        reports = teach_stores(
            experiment, num_processes=processes, device=device, progress=progress
        )
    show_reports({str(folder): report for folder, report in reports.items()}, max_failures)


def tokenize(  # noqa: PLR0913 (one for each flag)
    manifests: Annotated[
        list[Path],
        typer.Argument(
            metavar="MANIFEST...",
            help="Folder, .jsonl, .csv, .tsv, wav.scp, Lhotse, .parquet, .tar or saved dataset.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="Folder for the shards.")
    ],
    model: Model = None,
    device: Device = "cpu",
    precision: PrecisionName = "float32",
    num_codebooks: NumCodebooks = None,
    search_width: SearchWidth = 1,
    shard_size: Annotated[int, typer.Option(min=1, help="Utterances in a shard.")] = 256,
    max_seconds: Annotated[
        float | None, typer.Option(min=0.01, help="List longer ones as failed; default: no limit.")
    ] = None,
    batch_seconds: Annotated[
        float | None,
        typer.Option(min=0.01, help="Speech in a batch; default: 16 on the CPU, else 400."),
    ] = None,
    max_failures: MaxFailures = "100",
    readers: Annotated[
        int, typer.Option(min=1, max=MAX_WORKERS, help="Threads that read sound files.")
    ] = 2,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_WORKERS, help="CPU threads of the network, of each Ray worker."
        ),
    ] = None,
    webdataset: Annotated[
        bool, typer.Option("--webdataset", help="Write WebDataset tars too.")
    ] = False,
    dmc: Annotated[bool, typer.Option("--dmc", help="Write a .dmc file of each too.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Share the work on a Ray cluster.")] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="auto, local, HOST:PORT, ray://HOST:10001; default: find or start."),
    ] = None,
    ray_workers: Annotated[
        int, typer.Option(min=1, max=10_000, help="Ray workers with the model.")
    ] = 1,
    columns: ColumnNames = None,
) -> None:
    """Turn a corpus into Parquet shards of tokens; run again to go on where it stopped."""
    import torch

    from dmcodec.audio import seconds_to_samples
    from dmcodec.codec.precision import check_precision
    from dmcodec.tokenize.cluster import Cluster
    from dmcodec.tokenize.job import describe_corpus
    from dmcodec.tokenize.job import tokenize as tokenize_corpus
    from dmcodec.tokenize.pipeline import Speed

    if batch_seconds is None:
        batch_seconds = 16.0 if device == "cpu" else 400.0
    parse_seconds("--batch-seconds", batch_seconds)
    if max_seconds is not None:
        parse_seconds("--max-seconds", max_seconds, most=1e9)
    utterances, problems = _read_listed(manifests, columns)
    codec = load_codec(model, "cpu" if ray else device, threads=threads)
    try:
        codec.precision = check_precision(precision, torch.device(device))
    except RuntimeError as problem:
        raise CommandError(f"device {device!r} cannot be used: {problem}") from problem
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
        address=ray_address,
        num_workers=ray_workers,
        device=device,
        threads_per_worker=threads,
    )
    try:
        with show_progress() as progress:
            job = tokenize_corpus(
                codec,
                utterances,
                output,
                corpus,
                speed=Speed(
                    batch_samples=seconds_to_samples(batch_seconds, rate), num_readers=readers
                ),
                cluster=cluster if ray else None,
                max_failures=max_failures,
                progress=progress,
            )
    except OSError as problem:
        message = describe_problem(problem)
        if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            message += "; finished shards are kept: run the same command again to go on"
        raise CommandError(message) from problem
    except torch.OutOfMemoryError as problem:
        raise CommandError("out of memory: lower --batch-seconds") from problem
    show_reports({"tokenizing": job}, max_failures)
    if job.times.num_samples:
        say(job.describe_speed(rate))
    if not job.num_done + job.num_before:
        raise CommandError(f"none of the {len(utterances)} utterances could be tokenized")
    if problems:
        say(f"{len(problems)} lines or lists could not be read, see above", is_aside=True)
        raise typer.Exit(1)


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


def evaluate(  # noqa: PLR0913 (one for each flag)
    manifests: Annotated[
        list[Path],
        typer.Argument(metavar="MANIFEST...", help="Clips: .jsonl, .tsv, .scp, or folders."),
    ],
    systems: Annotated[
        list[str],
        typer.Option(
            "--system",
            metavar="NAME=KIND:ARG",
            help="dmcodec:bundled, dmcodec:FOLDER@1:4 (books), published:CONFIG,CHECKPOINT, "
            "transformers:MODEL, opus:KBPS, codec2:MODE, ffmpeg:ENCODER,KBPS, folder:DIR, "
            "command:'PROGRAM {in} {out}'. Repeat it for more.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of results; goes on from it."),
    ] = Path("evaluation"),
    protocol: Annotated[
        str, typer.Option(help="full, or dmcodec-300: 300 clips of LibriSpeech test-clean.")
    ] = "full",
    num_clips: Annotated[
        int | None, typer.Option(min=1, help="Draw this many clips of the list.")
    ] = None,
    measures: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Groups of measures; default: all.")
    ] = None,
    search_width: SearchWidth = 1,
    recognizer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="best: Whisper where one is at hand, else pocketsphinx; pocketsphinx; "
            "faster-whisper:MODEL; a CTC or Whisper MODEL: Hub name, folder, package:NAME.",
        ),
    ] = "best",
    processes: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_WORKERS, help="Default: one for each processor; 0: no extra ones."
        ),
    ] = None,
    device: Device = "cpu",
    max_failures: MaxFailures = "1%",
    export: Annotated[
        str | None, typer.Option(metavar="versa", help="Also write the input lists of VERSA.")
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", help="Of the table on screen: table or markdown.")
    ] = "table",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Anything else: reference=NAME, resample=speaker, kbps.NAME=6, "
            "search_widths.NAME=16, "
            "scoring.speaker_model=MODEL ... (docs/evaluation.md).",
        ),
    ] = None,
) -> None:
    """Say how good codecs are: every system on the same clips, with intervals and a report."""
    import os

    from dmcodec.config import apply_assignments, build_record
    from dmcodec.evaluation.config import EvaluationConfig
    from dmcodec.evaluation.run import evaluate as evaluate_systems

    if output_format not in ("table", "markdown"):
        raise CommandError(f"--format {output_format!r} is neither table nor markdown")
    open_device(device)
    table = {
        "manifests": manifests,
        "systems": systems,
        "protocol": protocol,
        "num_clips": num_clips,
        "search_width": search_width,
        "num_processes": processes if processes is not None else os.cpu_count() or 1,
        "export": export,
        "scoring": {"recognizer": recognizer, "device": device},
    }
    if measures is not None:
        table["measures"] = measures.split(",")
    config = build_record(
        EvaluationConfig, apply_assignments(table, assignments or []), source="evaluate"
    )
    show_logs(logging.WARNING)
    with show_progress() as progress:
        evaluation = evaluate_systems(config, output, progress)
    _show_evaluation(evaluation.summary, as_markdown=output_format == "markdown")
    written = f"report: {output / 'report.html'}; tables: table.md, table.csv; rows: rows.jsonl"
    say(written, is_aside=True)
    show_reports({"reconstructing": evaluation.report}, max_failures)


def ablate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A table of runs: configs/ablations/*.toml.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of runs and results.")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of the table: seeds=[1], num_word_clips=50 ..."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=MAX_WORKERS, help="For features and scores.")
    ] = 1,
    device: TrainingDevice = "auto",
) -> None:
    """Train and measure every row of a table of ablations; run again to go on."""
    from dmcodec.ablation import AblationConfig
    from dmcodec.ablation import ablate as run_table
    from dmcodec.config import load_config
    from dmcodec.training.step import TrainingDiverged

    table = load_config(config, AblationConfig, assignments)
    show_logs(logging.INFO)
    try:
        with show_progress() as progress:
            text = run_table(
                table, output, device=device, num_processes=processes, progress=progress
            )
    except TrainingDiverged as problem:
        raise CommandError(str(problem)) from problem
    say(*text.split("\n"))
    say(f"the table is in {output / 'table.md'}")


def _show_evaluation(summary: "Summary", *, as_markdown: bool) -> None:
    """The main measures of every system, without intervals: those are in the files."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from dmcodec.evaluation.report.tables import missing_notes, short_table, to_short_markdown

    if as_markdown:
        say(*to_short_markdown(summary).rstrip("\n").split("\n"))
        return
    headings, rows = short_table(summary)
    title = f"{summary.about['clips']}, hash {summary.about['hash of clips']}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console = plain_console()
    console.print(table)
    for key in ("recognizer", "machine", "versions"):
        if key in summary.about:
            console.print(f"{key}: {summary.about[key]}")
    for note in missing_notes(summary):
        console.print(note)
