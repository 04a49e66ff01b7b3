"""What commands share: options, the loading of a codec, and errors that users see."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from dmcodec.codec.model import Codec

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
PrecisionName = Annotated[
    str, typer.Option("--precision", help="float32, bfloat16, or tf32 (CUDA): faster, other codes.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; default: one for each core.")
]
NumCodebooks = Annotated[
    int | None, typer.Option(min=1, help="Use the first N books only; default: all.")
]
SearchWidth = Annotated[
    int,
    typer.Option(
        min=1, help="Choices followed from book to book: 16 sounds better and is slower; 1: greedy."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace results that exist.")]


class CommandError(Exception):
    """Ends the command with one sentence and exit code 1."""


def describe(problem: Exception) -> str:
    """One sentence: of the system's errors the file and what happened to it, without numbers."""
    text = str(problem)
    if "\nOriginal Traceback" in text:  # so torch tells what a process that reads data raised
        name = re.escape(type(problem).__name__)
        *_, text = re.split(rf"\n(?:[\w.]+\.)?{name}: ", text.strip())
    if isinstance(problem, OSError) and problem.strerror and problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return text or type(problem).__name__


def check_device(device: str) -> "torch.device":
    """The device, which works; CommandError otherwise."""
    import torch

    try:
        target = torch.device(device)
        if target.type != "cpu":
            torch.zeros(1, device=target)
    except (RuntimeError, AssertionError) as problem:
        raise CommandError(f"device {device!r} cannot be used: {problem}") from problem
    return target


def load_codec(
    model: str | None, device: str, precision: str = "float32", threads: int | None = None
) -> "Codec":
    """The codec on a device that works, or a CommandError; sets torch's threads."""
    import torch

    from dmcodec.codec.checkpoint import load
    from dmcodec.codec.precision import check_precision

    if threads is not None:
        torch.set_num_threads(threads)
    target = check_device(device)
    codec = load(model).to(target)
    codec.precision = check_precision(precision, target)
    return codec


def read_bytes(path: Path) -> bytes:
    """The content of a file; FileNotFoundError with one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path.read_bytes()


def say_damaged(path: Path, damaged: Sequence[int]) -> None:
    """What `decode --skip-damage` left silent."""
    typer.echo(f"{path}: chunks {', '.join(map(str, damaged))} are damaged and silent")
