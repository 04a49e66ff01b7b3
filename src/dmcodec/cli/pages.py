"""Commands that open a page in the browser: demo."""

from typing import Annotated

import typer

from dmcodec.cli.options import Device, Threads, open_device, parse_seconds
from dmcodec.cli.terminal import say


def demo(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="MODEL", help="Codec folder or Hugging Face id; repeat it for more."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: reached from other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860.")
    ] = None,
    max_seconds: Annotated[float, typer.Option(help="Longer recordings are refused.")] = 60.0,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Open a page to hear a codec: record or upload, 1 to 8 books, pictures, .dmc files."""
    import torch

    from dmcodec.demo.serve import serve

    parse_seconds("--max-seconds", max_seconds)
    target = open_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    serve(
        models or (),
        host=host,
        port=port,
        max_seconds=max_seconds,
        device=target,
        on_ready=lambda address: say(f"open {address} in a browser; Ctrl-C ends it"),
    )
