"""The command that gives a codec to other runtimes: export."""

from pathlib import Path
from typing import Annotated

import typer

from dmcodec.cli.options import CommandError, parse_seconds
from dmcodec.cli.terminal import say


def export(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the exported files.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Codec folder or Hub id; default: the bundled one."),
    ] = None,
    format: Annotated[str, typer.Option(metavar="onnx", help="The only format yet.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="LSTM weights in 8 bits: faster, other codes.")
    ] = False,
    speech: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Speech for the report; default: noise and tones."),
    ] = None,
    seconds: Annotated[str, typer.Option(help="Lengths that are timed against torch.")] = "1,10,60",
) -> None:
    """Export a codec to ONNX (waveform to codes, codes to waveform), and report what it is worth.

    `dmcodec encode --backend onnx --model DIR` and `decode` use the files without torch.
    """
    from dmcodec.codec.model import load
    from dmcodec.export.comparison import measure_export
    from dmcodec.export.networks import export_onnx

    if format != "onnx":
        raise CommandError(f"--format {format!r}: can export to onnx only")
    durations = [
        parse_seconds("--seconds", each.strip()) for each in seconds.split(",") if each.strip()
    ]
    codec = load(model)
    export_onnx(codec, output, use_int8=int8)
    for line in measure_export(codec, output, speech or [], durations):
        say(line)
