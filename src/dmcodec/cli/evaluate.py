"""The command that says how good codecs are: evaluate."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmcodec.cli.options import CommandError, Device, MaxFailures, SearchWidth, open_device
from dmcodec.cli.terminal import plain_console, say, show_logs, show_progress, show_reports
from dmcodec.processes import MAX_WORKERS

if TYPE_CHECKING:
    from dmcodec.evaluation.summary import Summary

Manifests = Annotated[
    list[Path],
    typer.Argument(metavar="MANIFEST...", help="Clips: .jsonl, .tsv, .scp, or folders."),
]
Systems = Annotated[
    list[str],
    typer.Option(
        "--system",
        metavar="NAME=KIND:ARG",
        help="dmcodec:bundled, dmcodec:FOLDER@1:4 (books), published:CONFIG,CHECKPOINT, "
        "transformers:MODEL, opus:KBPS, codec2:MODE, ffmpeg:ENCODER,KBPS, folder:DIR, "
        "command:'PROGRAM {in} {out}'. Repeat it for more.",
    ),
]
Results = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="DIR", help="Folder of results; goes on from it."),
]
ProtocolName = Annotated[
    str, typer.Option(help="full, or dmcodec-300: 300 clips of LibriSpeech test-clean.")
]
NumClips = Annotated[int | None, typer.Option(min=1, help="Draw this many clips of the list.")]
Measures = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Groups of measures; default: all.")
]
Recognizer = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="best: Whisper where one is at hand, else pocketsphinx; pocketsphinx; "
        "faster-whisper:MODEL; a CTC or Whisper MODEL: Hub name, folder, package:NAME.",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(min=0, max=MAX_WORKERS, help="Default: one for each processor; 0: no extra ones."),
]
Export = Annotated[
    str | None, typer.Option(metavar="versa", help="Also write the input lists of VERSA.")
]
Format = Annotated[str, typer.Option("--format", help="Of the table on screen: table or markdown.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Anything else: reference=NAME, resample=speaker, kbps.NAME=6, "
        "search_widths.NAME=16, "
        "scoring.speaker_model=MODEL ... (docs/evaluation.md).",
    ),
]


def evaluate(  # noqa: PLR0913 (one for each flag)
    manifests: Manifests,
    systems: Systems,
    output: Results = Path("evaluation"),
    protocol: ProtocolName = "full",
    num_clips: NumClips = None,
    measures: Measures = None,
    search_width: SearchWidth = 1,
    recognizer: Recognizer = "best",
    processes: Processes = None,
    device: Device = "cpu",
    max_failures: MaxFailures = "1%",
    export: Export = None,
    output_format: Format = "table",
    assignments: Assignments = None,
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
