"""The command line: parse, call one function, show progress and a table.

Heavy packages are imported inside the commands: `dmcodec --help` needs none of them.
"""

import atexit
import gc
import sys
from typing import Annotated

import typer

from dmcodec.cli import files, jobs, pages, streams
from dmcodec.cli.options import CommandError, describe, is_out_of_memory

app = typer.Typer(
    name="dmcodec",
    help="Speech to eight streams of 50 codes a second, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


for _command in (
    files.encode,
    files.decode,
    files.reconstruct,
    files.info,
    jobs.train,
    jobs.teach,
    jobs.tokenize,
    jobs.evaluate,
    jobs.ablate,
    streams.stream,
    streams.export,
    pages.demo,
):
    app.command()(_command)


def main() -> None:
    """Runs the command line; expected errors end it with one sentence and exit code 1."""
    # What is left dies with the process; looking for garbage in it takes a quarter of a second.
    atexit.register(gc.freeze)
    try:
        app()
    except (CommandError, ValueError, OSError, ModuleNotFoundError) as problem:
        typer.secho(f"dmcodec: {describe(problem)}", fg="red", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        text = str(problem).partition("\n")[0]
        typer.secho(
            f"dmcodec: not enough memory for these sizes: make them smaller ({text})",
            fg="red",
            err=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("dmcodec: stopped", fg="red", err=True)
        sys.exit(130)
