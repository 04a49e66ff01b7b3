"""Runs the page: its address, its folder of temporary files, and what a browser may load.

The page needs no network: everything comes from this machine, and the browser is told to load
nothing from elsewhere.
"""

import os
import re
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dmcodec.demo.models import Models
from dmcodec.demo.visits import Visits
from dmcodec.packages import import_package

LOOPBACK = "127.0.0.1"
MAX_UPLOAD_BYTES = 100 * 2**20
"""Six minutes of 48 kHz stereo in 24 bits; Gradio refuses more in its own words."""
_MAX_VISITS = 200
"""Whose recordings are remembered at a time; each may have megabytes."""
_SWEEP_S = 300.0
_FONTS = ("system-ui", "sans-serif")
_MONOSPACE_FONTS = ("ui-monospace", "monospace")
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_OUTSIDE_META = re.compile(rb'<meta[^>]*\bcontent="https?://[^>]*>')
_HEAD = """<script>
document.addEventListener("play", event => {
  for (const player of document.querySelectorAll("audio"))
    if (player !== event.target) player.pause();
}, true);
</script>"""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def serve(
    names: Sequence[str] = (),
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    max_seconds: float = 60.0,
    device: torch.device | None = None,
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves the page until the process is interrupted or told to end; in the main thread alone.

    Args:
        names: models to choose from, see `Models`. Others can be typed in only where `host` is a
            loopback address: strangers must not choose what this machine downloads.
        host: address to listen on; 0.0.0.0 for every one.
        port: None: the first free one from 7860 on.
        max_seconds: longer recordings are refused.
        device: where codecs run; None: the CPU.
        on_ready: called with the page's address once it answers.

    Raises:
        MissingPackage: Gradio or what it needs is not installed.
        OSError: the port is taken.
    """
    # Gradio reads these when it is imported or builds a page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="dmcodec-demo-") as folder, _until_ended() as ended:
        os.environ["GRADIO_TEMP_DIR"] = folder
        gradio = import_package("gradio", "the demo")
        for name in ("matplotlib", "PIL"):
            import_package(name, "the demo")
        middleware = import_package("starlette.middleware", "the demo").Middleware
        from dmcodec.demo.page import Page

        models = Models(names, device=device, is_open=_is_loopback(host))
        models.get(None)  # a name that leads nowhere is said now, not to the first visitor
        visits = Visits(Path(folder))
        blocks = Page(models, visits, max_seconds=max_seconds).blocks
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=False,
            max_file_size=MAX_UPLOAD_BYTES,
            footer_links=["settings"],
            run_history=False,
            state_session_capacity=_MAX_VISITS,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [middleware(OwnHostOnly)]},
            theme=gradio.themes.Default(font=_FONTS, font_mono=_MONOSPACE_FONTS),
            css_paths=Path(__file__).with_name("page.css"),
            head=_HEAD,
        )
        try:
            on_ready(address)
            while not ended.wait(_SWEEP_S):
                visits.sweep()
        finally:
            blocks.close()


class OwnHostOnly:
    """Makes pages load what they need from their own host alone.

    The browser is told so, and Gradio's pictures for link previews, which lie elsewhere, go.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        start: Message | None = None
        body = b""

        async def send_own(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                if kind.startswith(b"text/html"):
                    start = message  # its length is known once the body is
                    return
            elif start is not None and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                page = _OUTSIDE_META.sub(b"", body)
                kept = [h for h in start["headers"] if h[0] != b"content-length"]
                own = [
                    (b"content-length", b"%d" % len(page)),
                    (b"content-security-policy", _POLICY),
                ]
                await send({**start, "headers": [*kept, *own]})
                message, start = {**message, "body": page}, None
            await send(message)

        await self._app(scope, receive, send_own)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


@contextmanager
def _until_ended() -> Iterator[threading.Event]:
    """An event that comes when the process is interrupted or told to end, instead of its end."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
