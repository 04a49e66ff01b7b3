"""The command that gives a codec to other runtimes: export."""

from pathlib import Path
from typing import Annotated

import typer

from dmcodec.cli.options import CommandError
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
        typer.Option(metavar="FILE", help="Speech for the comparison; default: noise and tones."),
    ] = None,
) -> None:
    """Export a codec to ONNX (waveform to codes, codes to waveform), and compare it with torch.

    `dmcodec encode --backend onnx --model DIR` and `decode` use the files without torch.
    """
    from dmcodec.codec.model import load
    from dmcodec.export.comparison import compare_export
    from dmcodec.export.networks import export_onnx

    if format != "onnx":
        raise CommandError(f"--format {format!r}: can export to onnx only")
    codec = load(model)
    export_onnx(codec, output, use_int8=int8)
    found = compare_export(codec, output, speech or ())
    share = found.num_equal / found.num_codes
    say(f"equal codes: {found.num_equal} of {found.num_codes} ({share:.3%})")
    say(f"greatest waveform difference for equal codes: {found.largest_difference:.1e}")
