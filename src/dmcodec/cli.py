"""The command line: parse, call one function, show progress and a table.

Heavy packages are imported inside the commands: `dmcodec --help` needs none of them.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmcodec import cli_codec

if TYPE_CHECKING:
    from dmcodec.codec.model import Codec
    from dmcodec.evaluation.summary import Summary
    from dmcodec.files import Reconstruction

app = typer.Typer(
    name="dmcodec",
    help="Speech to eight streams of 50 codes a second, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Inputs = Annotated[list[Path], typer.Argument(metavar="IN...", help="Files or folders.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Folder for results; default: beside IN."),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="Codec folder or Hugging Face id; default: the bundled one."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
NumCodebooks = Annotated[
    int | None, typer.Option(min=1, help="Use the first N books only; default: all.")
]
Backend = Annotated[
    cli_codec.Runtime, typer.Option(help="onnx: MODEL is a folder of dmcodec export, no torch.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace results that exist.")]


_SCORES = {"stoi": "STOI", "pesq_wb": "PESQ-WB"}


class CommandError(Exception):
    """Ends the command with one sentence and exit code 1."""


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from dmcodec import __version__

        typer.echo(f"dmcodec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def encode(
    inputs: Inputs,
    output: Output = None,
    num_codebooks: NumCodebooks = None,
    model: Model = None,
    device: Device = "cpu",
    force: Force = False,
    backend: Backend = cli_codec.Runtime.TORCH,
) -> None:
    """Encode sound files (wav, flac, ogg, mp3, any rate and channels) to .dmc files."""
    from dmcodec.paths import find_inputs, plan_outputs, write_bytes

    paths = find_inputs(inputs)
    targets = plan_outputs(inputs, paths, output, ".dmc")
    if backend == cli_codec.Runtime.ONNX:
        encode_onnx = cli_codec.onnx_encoder(model, num_codebooks)
        _for_each("encoding", paths, targets, lambda a, b: write_bytes(b, encode_onnx(a)), force)
        return
    from dmcodec.files import encode_file, identify

    codec = _load_codec(model, device)
    identity = identify(codec)

    def work(path: Path, target: Path) -> None:
        write_bytes(target, encode_file(codec, identity, path, num_codebooks=num_codebooks))

    _for_each("encoding", paths, targets, work, force)


@app.command()
def decode(
    inputs: Inputs,
    output: Output = None,
    num_codebooks: NumCodebooks = None,
    model: Model = None,
    device: Device = "cpu",
    force: Force = False,
    skip_damage: Annotated[
        bool, typer.Option("--skip-damage", help="Read around damaged chunks; they are silent.")
    ] = False,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Decode codes that another model made.")
    ] = False,
    backend: Backend = cli_codec.Runtime.TORCH,
) -> None:
    """Decode .dmc files to 16-bit WAV files."""
    from dmcodec.audio import write_audio_blocks
    from dmcodec.paths import find_inputs, plan_outputs

    paths = find_inputs(inputs, [".dmc"])
    targets = plan_outputs(inputs, paths, output, ".wav")
    if backend == cli_codec.Runtime.ONNX:
        decode_onnx = cli_codec.onnx_decoder(model, num_codebooks, any_model=any_model)
        _for_each("decoding", paths, targets, lambda a, b: decode_onnx(_read_bytes(a), b), force)
        return
    from dmcodec.files import decode_blocks, identify

    codec = _load_codec(model, device)
    identity = None if any_model else identify(codec)

    def work(path: Path, target: Path) -> None:
        blocks, damaged = decode_blocks(
            codec,
            identity,
            _read_bytes(path),
            num_codebooks=num_codebooks,
            on_damage="skip" if skip_damage else "raise",
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        write_audio_blocks(target, blocks, codec.config.sample_rate)
        if damaged:
            typer.echo(f"{path}: chunks {', '.join(map(str, damaged))} are damaged and silent")

    _for_each("decoding", paths, targets, work, force)


@app.command()
def reconstruct(
    inputs: Inputs,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Writes WAV, .dmc and PNG; default: measure only."
        ),
    ] = None,
    num_codebooks: NumCodebooks = None,
    model: Model = None,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Encode and decode sound files (or a .jsonl manifest), and measure what is left of them."""
    import torch

    from dmcodec.audio import write_audio
    from dmcodec.files import identify, plot_reconstruction
    from dmcodec.files import reconstruct as reconstruct_file
    from dmcodec.paths import plan_outputs, write_bytes

    paths = _find_speech(inputs)
    folder = output if output is not None else Path()
    targets = plan_outputs(inputs, paths, folder, ".wav")
    codec = _load_codec(model, device)
    identity = identify(codec)
    codec.decode(codec.encode(torch.zeros(codec.config.sample_rate)))  # the first pass sets up
    results: dict[Path, Reconstruction] = {}

    def work(path: Path, target: Path) -> None:
        result = reconstruct_file(codec, identity, path, num_codebooks=num_codebooks)
        results[path] = result
        if output is not None:
            write_bytes(target.with_suffix(".dmc"), result.data)
            write_audio(target, result.decoded, codec.config.sample_rate)
            plot_reconstruction(
                result, codec.config.sample_rate, path.name, target.with_suffix(".png")
            )

    failed = _for_each("reconstructing", paths, targets, work, force or output is None, end=False)
    _show_reconstructions(codec, results)
    if output is not None and results:
        typer.echo(f"wrote WAV, .dmc and PNG of {len(results)} file(s) to {output}")
    if failed:
        raise typer.Exit(1)


@app.command()
def info(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[FILE|MODEL]", help="A .dmc file, a codec folder or a Hub id."),
    ] = None,
) -> None:
    """Say what a .dmc file or a model is; without argument, the bundled model."""
    if what is not None and Path(what).is_file():
        _show_table(Path(what).name, _describe_file(Path(what)))
    else:
        codec = _load_codec(what, "cpu")
        _show_table(codec.model_id, _describe_codec(codec))


@app.command()
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
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")] = None,
) -> None:
    """Train a codec as an experiment file says; several processes: start with torchrun."""
    try:
        import accelerate  # noqa: F401
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise CommandError(f"training needs {error.name}: pip install 'dmcodec[train]'") from error
    import torch

    from dmcodec.config import load_config
    from dmcodec.training.experiment import Experiment
    from dmcodec.training.loop import train as train_codec
    from dmcodec.training.step import TrainingDiverged

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    experiment = load_config(config, Experiment, assignments)
    folder = output if output is not None else Path("runs") / config.stem
    try:
        scores = train_codec(experiment, folder, resume=resume, device=device)
    except TrainingDiverged as problem:
        raise CommandError(str(problem)) from problem
    figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.items()) or "no validation"
    typer.echo(f"finished: {figures}. The codec is in {folder / 'codec'}")


@app.command()
def teach(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The experiment.")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as for train."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, each with its models.")] = 1,
    device: Device = "cpu",
    max_failed_percent: Annotated[
        float, typer.Option(min=0, help="More failed utterances than this end with exit code 1.")
    ] = 1.0,
) -> None:
    """Compute the teachers' features of an experiment once; run again to go on where it stopped."""
    from dmcodec.config import load_config
    from dmcodec.training.experiment import Experiment
    from dmcodec.training.teach import teach as teach_stores

    experiment = load_config(config, Experiment, assignments)
    with _stage_progress() as progress:
        summaries = teach_stores(
            experiment, num_processes=processes, device=device, on_progress=progress
        )
    for folder, summary in summaries.items():
        for name, reason in list(summary.failed.items())[:20]:
            typer.secho(f"dmcodec: {name}: {reason}", fg="red", err=True)
        typer.echo(
            f"{folder}: {summary.num_done} done ({summary.num_without_features} of them without "
            f"any feature), {summary.num_skipped} there before, {len(summary.failed)} failed"
        )
    if any(100 * each.failed_share > max_failed_percent for each in summaries.values()):
        raise typer.Exit(1)


@app.command()
def tokenize(  # noqa: PLR0913 (one for each flag)
    manifests: Annotated[
        list[Path],
        typer.Argument(
            metavar="MANIFEST...",
            help="Folder, .jsonl, .tsv, wav.scp, Lhotse cuts, .parquet, .tar or saved dataset.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="Folder for the shards.")
    ],
    model: Model = None,
    device: Device = "cpu",
    num_codebooks: NumCodebooks = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Utterances in a shard.")] = 256,
    max_seconds: Annotated[
        float | None, typer.Option(min=0.01, help="List longer ones as failed; default: no limit.")
    ] = None,
    batch_seconds: Annotated[
        float | None,
        typer.Option(min=0.01, help="Speech in a batch; default: 16 on the CPU, else 400."),
    ] = None,
    max_failures: Annotated[
        int, typer.Option(min=0, help="More failed utterances than this stop the job.")
    ] = 100,
    readers: Annotated[int, typer.Option(min=1, help="Threads that read sound files.")] = 2,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the network, of each Ray worker.")
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
    ray_workers: Annotated[int, typer.Option(min=1, help="Ray workers with the model.")] = 1,
) -> None:
    """Turn a corpus into Parquet shards of tokens; run again to go on where it stopped."""
    import torch

    from dmcodec.audio import seconds_to_samples
    from dmcodec.manifest import read_manifests
    from dmcodec.tokens.corpus import Cluster, describe_corpus
    from dmcodec.tokens.corpus import tokenize as tokenize_corpus
    from dmcodec.tokens.pipeline import Speed

    if batch_seconds is None:
        batch_seconds = 16.0 if device == "cpu" else 400.0
    utterances = read_manifests(manifests)
    codec = _load_codec(model, "cpu" if ray else device)
    if threads is not None:
        torch.set_num_threads(threads)
    rate = codec.config.sample_rate
    corpus = describe_corpus(
        codec,
        utterances,
        num_codebooks=num_codebooks,
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
        with _progress("tokenizing", len(utterances)) as advance:
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
                on_progress=advance,
            )
    except OSError as problem:
        raise CommandError(
            f"{output}: {problem.strerror or problem}; finished shards are kept: run the same "
            "command again to go on"
        ) from problem
    except torch.OutOfMemoryError as problem:
        raise CommandError("out of memory: lower --batch-seconds") from problem
    for failure in job.failures[:20]:
        typer.secho(f"dmcodec: {failure['id']}: {failure['reason']}", fg="red", err=True)
    typer.echo(job.describe(rate))


@app.command()
def evaluate(
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
    recognizer: Annotated[
        str, typer.Option(help="pocketsphinx, or a Hugging Face CTC or Whisper model.")
    ] = "pocketsphinx",
    processes: Annotated[
        int | None, typer.Option(min=0, help="Default: one for each processor; 0: no extra ones.")
    ] = None,
    device: Device = "cpu",
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
            "scoring.speaker_model=MODEL ... (docs/evaluation.md).",
        ),
    ] = None,
) -> None:
    """Say how good codecs are: every system on the same clips, with intervals and a report."""
    import os

    from dmcodec.config import apply_assignments, build_record
    from dmcodec.evaluation.about import EvaluationConfig
    from dmcodec.evaluation.run import evaluate as evaluate_systems

    if output_format not in ("table", "markdown"):
        raise CommandError(f"--format {output_format!r} is neither table nor markdown")
    table = {
        "manifests": manifests,
        "systems": systems,
        "protocol": protocol,
        "num_clips": num_clips,
        "num_processes": processes if processes is not None else os.cpu_count() or 1,
        "export": export,
        "scoring": {"recognizer": recognizer, "device": device},
    }
    if measures is not None:
        table["measures"] = measures.split(",")
    config = build_record(
        EvaluationConfig, apply_assignments(table, assignments or []), source="evaluate"
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with _stage_progress() as progress:
        evaluation = evaluate_systems(config, output, progress)
    _show_evaluation(evaluation.summary, as_markdown=output_format == "markdown")
    written = f"report: {output / 'report.html'}; tables: table.md, table.csv; rows: rows.jsonl"
    typer.echo(written, err=True)
    if evaluation.failed_share > config.max_failed_share:
        raise CommandError(
            f"{evaluation.failed_share:.1%} of the reconstructions failed, more than the "
            f"{config.max_failed_share:.1%} that are allowed (--set max_failed_share=...); "
            "summary.json names them"
        )


@app.command()
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
    processes: Annotated[int, typer.Option(min=1, help="For features and scores.")] = 1,
    device: Device = "auto",
) -> None:
    """Train and measure every row of a table of ablations; run again to go on."""
    from dmcodec.ablation import AblationConfig
    from dmcodec.ablation import ablate as run_table
    from dmcodec.config import load_config

    table = load_config(config, AblationConfig, assignments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with _stage_progress() as progress:
        text = run_table(table, output, device=device, num_processes=processes, progress=progress)
    typer.echo(text)
    typer.echo(f"the table is in {output / 'table.md'}")


app.command()(cli_codec.stream)
app.command()(cli_codec.export)


def main() -> None:
    """Runs the command line; expected errors end it with one sentence and exit code 1."""
    try:
        app()
    except (CommandError, ValueError, FileNotFoundError, ModuleNotFoundError) as problem:
        typer.secho(f"dmcodec: {problem}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("dmcodec: stopped", fg="red", err=True)
        sys.exit(130)


def _load_codec(model: str | None, device: str) -> "Codec":
    import torch

    from dmcodec.codec.checkpoint import load

    try:
        target = torch.device(device)
        if target.type != "cpu":
            torch.zeros(1, device=target)
    except (RuntimeError, AssertionError) as problem:
        raise CommandError(f"device {device!r} cannot be used: {problem}") from problem
    return load(model).to(target)


def _for_each(
    title: str,
    paths: Sequence[Path],
    targets: Sequence[Path],
    work: Callable[[Path, Path], None],
    force: bool,
    *,
    end: bool = True,
) -> bool:
    """Works on every file with a progress bar; what fails is named with its reason at the end.

    Gives whether any failed; with `end` the command ends with exit code 1 instead.
    """
    from rich.progress import Progress

    failures: list[str] = []
    with Progress(transient=True, disable=len(paths) < 2) as progress:
        for path, target in progress.track(
            list(zip(paths, targets, strict=True)), description=title
        ):
            try:
                if target.exists() and not force:
                    raise FileExistsError(f"{target} exists: give --force to replace it")
                work(path, target)
            except (ValueError, OSError) as problem:
                text = str(problem)
                failures.append(text if str(path) in text else f"{path}: {text}")
    for failure in failures:
        typer.secho(f"dmcodec: {failure}", fg="red", err=True)
    if failures or len(paths) > 1:
        typer.echo(f"{title}: {len(paths) - len(failures)} done, {len(failures)} failed", err=True)
    if failures and end:
        raise typer.Exit(1)
    return bool(failures)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; gives the function that moves it on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage of a job, as a function of (stage, done, total)."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=max(1, total))

        yield show


def _show_evaluation(summary: "Summary", *, as_markdown: bool) -> None:
    """The main measures of every system, without intervals: those are in the files."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from dmcodec.evaluation.tables import missing_notes, short_table, to_short_markdown

    if as_markdown:
        typer.echo(to_short_markdown(summary), nl=False)
        return
    headings, rows = short_table(summary)
    title = f"{summary.about['clips']}, hash {summary.about['hash of clips']}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for key in ("recognizer", "machine", "versions"):
        if key in summary.about:
            console.print(f"{key}: {summary.about[key]}", highlight=False)
    for note in missing_notes(summary):
        console.print(note, highlight=False)


def _find_speech(inputs: Sequence[Path]) -> list[Path]:
    """Sound files of files, folders and manifests."""
    from dmcodec.manifest import read_manifest
    from dmcodec.paths import find_inputs

    paths: list[Path] = []
    for path in inputs:
        if path.suffix in (".jsonl", ".tsv", ".scp"):
            paths += [utterance.sound_file for utterance in read_manifest(path)]
        else:
            paths += find_inputs([path])
    return paths


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path.read_bytes()


def _describe_file(path: Path) -> dict[str, str]:
    from dmcodec.audio import samples_to_seconds
    from dmcodec.tokens.bitstream import read_header

    data = path.read_bytes()
    header = read_header(data)
    state = "whole" if len(data) == header.file_bytes else f"cut or grown: {header.file_bytes} due"
    return {
        "duration": f"{samples_to_seconds(header.num_samples, header.sample_rate):.3f} s, "
        f"{header.num_samples} samples at {header.sample_rate} Hz",
        "codes": f"{header.num_codebooks} books of {header.codebook_size}, "
        f"{header.num_frames} frames of {header.hop_length} samples",
        "bitrate": f"{header.bitrate_kbps:g} kbps nominal",
        "size": f"{len(data)} bytes ({state}) in {header.num_chunks} chunks",
        "model": f"{header.model_id} ({header.model_hash})",
    }


def _describe_codec(codec: "Codec") -> dict[str, str]:
    config = codec.config
    num_parameters = sum(p.numel() for p in codec.parameters()) + codec.quantizer.codebooks.numel()
    return {
        "audio": f"{config.sample_rate} Hz mono, {config.frame_rate:g} frames/s",
        "codes": f"{config.quantizer.num_codebooks} books of {config.quantizer.codebook_size}, "
        f"{config.bitrate_kbps:g} kbps",
        "parameters": f"{num_parameters / 1e6:.2f} million, codebooks included",
        "network": f"{config.seanet.num_filters} filters, strides "
        f"{', '.join(map(str, config.seanet.strides))}, latent size {config.seanet.latent_dim}",
        "hash": codec.fingerprint(),
    }


def _show_reconstructions(codec: "Codec", results: "dict[Path, Reconstruction]") -> None:
    """One file in full, or a row for each of several and their means."""
    from rich.console import Console
    from rich.table import Table

    console, sample_rate = Console(), codec.config.sample_rate
    if len(results) == 1:
        ((path, result),) = results.items()
        _show_table(f"{path.name} through {codec.model_id}", _describe_result(codec, result))
    elif results:
        table = Table(title=codec.model_id)
        table.add_column("file", overflow="fold")
        for name in ("seconds", "STOI", "PESQ-WB", "encode", "decode"):
            table.add_column(name, justify="right", no_wrap=True)
        for path, result in list(results.items())[:20]:
            duration_s = len(result.original) / sample_rate
            table.add_row(
                path.name,
                f"{duration_s:.2f}",
                *(f"{result.scores[n]:.3f}" if n in result.scores else "-" for n in _SCORES),
                f"{duration_s / result.encode_s:.0f}x",
                f"{duration_s / result.decode_s:.0f}x",
            )
        console.print(table)
        if len(results) > 20:
            console.print(f"... and {len(results) - 20} more files")
        console.print(_summarize(list(results.values()), sample_rate), soft_wrap=True)
    for path, result in results.items():
        for reason in result.missing.values():
            console.print(f"{path.name}: {reason}", soft_wrap=True)


def _describe_result(codec: "Codec", result: "Reconstruction") -> dict[str, str]:
    """What one reconstruction cost and is worth."""
    from dmcodec.audio import samples_to_seconds

    num_samples, num_bytes = len(result.original), len(result.data)
    duration_s = samples_to_seconds(num_samples, codec.config.sample_rate)
    pcm_bytes = 2 * num_samples
    books = len(result.codes)
    rows = {
        "speech": f"{duration_s:.2f} s at {codec.config.sample_rate} Hz",
        "codes": f"{codec.config.frame_rate * books:.0f} a second ({codec.config.frame_rate:g} "
        f"frames/s x {books} books of {codec.config.quantizer.codebook_size})",
        "bitrate": f"{codec.config.bitrate_kbps * books / codec.config.quantizer.num_codebooks:g}"
        f" kbps of codes, {num_bytes * 8 / duration_s / 1000:.2f} kbps with header and checksums",
        "size": f"{num_bytes} bytes as .dmc, {pcm_bytes} as 16-bit PCM "
        f"({pcm_bytes / num_bytes:.0f} times less)",
        "speed": f"encode {duration_s / result.encode_s:.0f}x, decode "
        f"{duration_s / result.decode_s:.0f}x real time",
    }
    for name, title in _SCORES.items():
        if name in result.scores:
            rows[title] = f"{result.scores[name]:.3f} against the input"
    return rows


def _summarize(results: "list[Reconstruction]", sample_rate: int) -> str:
    """Means over files; speed over the total."""
    total_s = sum(len(r.original) for r in results) / sample_rate
    encode_s, decode_s = sum(r.encode_s for r in results), sum(r.decode_s for r in results)
    parts = [f"mean of {len(results)} files, {total_s / 60:.1f} min:"]
    for name, title in _SCORES.items():
        values = [r.scores[name] for r in results if name in r.scores]
        if values:
            parts.append(f"{title} {sum(values) / len(values):.3f} (n = {len(values)}),")
    size_bits = 8 * sum(len(r.data) for r in results)
    parts.append(f"{size_bits / total_s / 1000:.2f} kbps with headers,")
    parts.append(f"encode {total_s / encode_s:.0f}x, decode {total_s / decode_s:.0f}x real time")
    return " ".join(parts)


def _show_table(title: str, rows: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for key, value in rows.items():
        table.add_row(key, value)
    Console().print(table)


if __name__ == "__main__":
    main()
