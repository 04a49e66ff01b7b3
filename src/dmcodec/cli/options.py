"""What commands share: options, the loading of a codec, and errors that users see."""

import math
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmcodec.cli.terminal import say
from dmcodec.jobs import count_allowed
from dmcodec.processes import MAX_WORKERS

if TYPE_CHECKING:
    import torch

    from dmcodec.codec.model import Codec
    from dmcodec.files import Engine

Inputs = Annotated[
    list[Path], typer.Argument(metavar="IN...", help="Files or folders; -: stdin, then to stdout.")
]
ColumnNames = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="KEY=NAME", help="Column of a list for text, audio, speaker or id."
    ),
]
STDIN = Path("-")
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
    int | None,
    typer.Option(min=1, max=MAX_WORKERS, help="CPU threads; default: one for each core."),
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


def _check_max_failures(value: str) -> str:
    count_allowed(value, 0)
    return value


MaxFailures = Annotated[
    str,
    typer.Option(
        metavar="N|P%",
        callback=_check_max_failures,
        help="Exit code 1 when more than N, or P per cent, failed.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace results that exist.")]


class Runtime(StrEnum):
    """What runs the network."""

    TORCH = "torch"
    ONNX = "onnx"


Backend = Annotated[
    Runtime, typer.Option(help="onnx: MODEL is a folder of dmcodec export, no torch.")
]


class CommandError(Exception):
    """Ends the command with one sentence and exit code 1."""


def describe_problem(problem: Exception) -> str:
    """One sentence: of the system's errors the file and what happened to it, without numbers."""
    text = str(problem)
    if "\nOriginal Traceback" in text:  # so torch tells what a process that reads data raised
        name = re.escape(type(problem).__name__)
        *_, text = re.split(rf"\n(?:[\w.]+\.)?{name}: ", text.strip())
    if isinstance(problem, OSError) and problem.strerror:
        name = "" if problem.filename is None else f"{problem.filename}: "
        return f"{name}{problem.strerror}"
    return text or type(problem).__name__


def open_device(device: str) -> "torch.device":
    """The device, which computes and gives back; CommandError in one sentence otherwise."""
    import torch

    try:
        target = torch.device(device)
        if target.type != "cpu":
            torch.ones(1, device=target).add(1).cpu()  # "meta" takes everything and gives nothing
    except (RuntimeError, AssertionError) as problem:
        reason = re.split(r"(?<=[.:])\s|\n", str(problem), maxsplit=1)[0].rstrip(".:")
        raise CommandError(
            f"device {device!r} cannot be used: {reason[:200]}; give cpu, or cuda with a GPU"
        ) from problem
    return target


def parse_seconds(option: str, value: float | str, *, most: float = 86_400.0) -> float:
    """A duration; CommandError that names the option unless it is a number above 0, up to a day."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= most:
        raise CommandError(f"{option}: {value!r} is no number of seconds above 0 up to {most:g}")
    return seconds


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether it says that memory could not be had, in one of the ways of Python and torch."""
    text = str(problem)
    return isinstance(problem, MemoryError) or any(
        sign in text for sign in ("can't allocate memory", "out of memory", "Storage size calculat")
    )


def load_codec(
    model: str | None, device: str, precision: str = "float32", threads: int | None = None
) -> "Codec":
    """The codec on a device that works, or a CommandError; sets torch's threads."""
    import torch

    from dmcodec.codec.model import load
    from dmcodec.codec.precision import check_precision

    if threads is not None:
        torch.set_num_threads(threads)
    target = open_device(device)
    codec = load(model).to(target)
    codec.precision = check_precision(precision, target)
    return codec


def open_engine(
    backend: Runtime, model: str | None, device: str, precision: str, threads: int | None
) -> "Engine":
    """The codec on what runs it, or a CommandError; with onnx no torch is needed."""
    if backend == Runtime.TORCH:
        from dmcodec.codec.engine import TorchCodec

        return TorchCodec(load_codec(model, device, precision, threads))
    from dmcodec.export.onnx_codec import OnnxCodec

    if (device, precision) != ("cpu", "float32"):
        raise CommandError("--backend onnx is float32 on the CPU: leave out --device, --precision")
    if model is None:
        raise ValueError("--backend onnx needs --model DIR, a folder that dmcodec export wrote")
    return OnnxCodec(Path(model), num_threads=threads)


def parse_columns(assignments: Sequence[str] | None) -> dict[str, str]:
    """`text=sentence` ... as a dictionary; CommandError for anything else."""
    columns = {}
    for assignment in assignments or []:
        key, equals, name = assignment.partition("=")
        if not (key and equals and name):
            raise CommandError(f"--column {assignment!r} is not KEY=NAME, as in text=sentence")
        columns[key] = name
    return columns


def read_bytes(path: Path) -> bytes:
    """The content of a file or pipe; FileNotFoundError with one sentence."""
    if path.is_fifo():
        return path.read_bytes()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path.read_bytes()


def say_damaged(path: Path, damaged: Sequence[int]) -> None:
    """What `decode --skip-damage` left silent."""
    numbers = ", ".join(map(str, damaged))
    say(f"{path}: chunks {numbers} are damaged and silent", is_aside=True)
