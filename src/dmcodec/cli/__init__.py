"""The command line: parse, call one function, show progress and a table.

Heavy packages are imported inside the commands: `dmcodec --help` needs none of them.
"""

import atexit
import gc
import sys
from typing import Annotated

import typer

from dmcodec.cli import evaluate, export, files, pages, reconstruct, streams, tokenize, training
from dmcodec.cli.options import CommandError, describe_problem, is_out_of_memory
from dmcodec.cli.terminal import complain, printable, say, show_logs

app = typer.Typer(
    name="dmcodec",
    help="Speech to eight sequences of 50 codes a second, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from dmcodec import __version__

        say(f"dmcodec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


for _command in (
    files.encode,
    files.decode,
    reconstruct.reconstruct,
    files.info,
    training.train,
    training.teach,
    tokenize.tokenize,
    evaluate.evaluate,
    training.ablate,
    streams.stream,
    export.export,
    pages.demo,
):
    app.command()(_command)


def _showable(argument: str) -> str:
    """An option that there is none of, made by `*` of a file's name, is shown in the error."""
    is_known = not argument.startswith("-") or argument[1:2].isalnum()
    name, equals, value = argument.partition("=")
    return argument if is_known else f"{printable(name)}{equals}{value}"


def main() -> None:
    """Runs the command line; expected errors end it with one sentence and exit code 1."""
    # What is left dies with the process; looking for garbage in it takes a quarter of a second.
    atexit.register(gc.freeze)
    show_logs()
    try:
        app([_showable(argument) for argument in sys.argv[1:]])
    except (CommandError, ValueError, OSError, ModuleNotFoundError) as problem:
        complain(describe_problem(problem))
        sys.exit(1)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        text = str(problem).partition("\n")[0]
        complain(f"not enough memory for these sizes: make them smaller ({text})")
        sys.exit(1)
    except KeyboardInterrupt:
        complain("stopped")
        sys.exit(130)
