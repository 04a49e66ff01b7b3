"""The commands that train codecs: train, teach, ablate."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from dmcodec.cli.options import CommandError, Device, MaxFailures, open_device
from dmcodec.cli.terminal import say, show_logs, show_progress, show_reports
from dmcodec.processes import MAX_WORKERS

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
        int, typer.Option(min=1, max=MAX_WORKERS, help="For features and scores; and runs at once.")
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
