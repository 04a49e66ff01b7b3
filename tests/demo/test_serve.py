"""The server: its address, what it lets browsers load, and what it leaves behind."""

import asyncio
import importlib.util
import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.demo.servers import running

from dmcodec.demo.serve import OwnHostOnly

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="no gradio")
SPACE = Path(__file__).parents[2] / "examples" / "space"


def _answer(kind: bytes, *bodies: bytes) -> list[dict[str, Any]]:
    """What `OwnHostOnly` sends of an application's answer."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        size = str(sum(map(len, bodies))).encode()
        headers = [(b"content-type", kind), (b"content-length", size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, body in enumerate(bodies, start=1):
            more = number < len(bodies)
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async def receive() -> dict[str, Any]:
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(OwnHostOnly(application)({"type": "http"}, receive, send))
    return sent


def test_pages_lose_what_lies_elsewhere_and_browsers_are_told() -> None:
    page = b'<meta name="a"\n content="https://b.example/c.png" /><p>text</p>'

    start, body = _answer(b"text/html; charset=utf-8", page[:20], page[20:])

    headers = dict(start["headers"])
    assert body["body"] == b"<p>text</p>"
    assert headers[b"content-length"] == b"11"
    assert headers[b"content-security-policy"].startswith(b"default-src 'self' ")
    assert b"http" not in headers[b"content-security-policy"]


def test_what_is_no_page_passes_as_it_is() -> None:
    bodies = [b'<meta content="https://b.example">', b"second"]

    start, *parts = _answer(b"audio/wav", *bodies)

    assert [part["body"] for part in parts] == bodies
    assert b"content-security-policy" not in dict(start["headers"])


@needs_gradio
def test_the_command_serves_this_machine_alone_and_leaves_nothing(
    model_folder: Path, tmp_path: Path
) -> None:
    command = ["-m", "dmcodec.cli", "demo", "--model", str(model_folder), "--threads", "1"]

    with running(command, tmp_path) as server:
        with urllib.request.urlopen(f"{server.address}/config", timeout=60) as answer:
            config = json.load(answer)
        port = int(server.address.rpartition(":")[2])
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
        for host in others - {"127.0.0.1", "::1"}:
            with pytest.raises(OSError, match=r"refused|unreachable"):
                socket.create_connection((host, port), timeout=5)
        had_files = any(tmp_path.iterdir())
        code = server.end()

    assert server.address.startswith("http://127.0.0.1:")
    assert config["analytics_enabled"] is False
    assert config["title"] == "dmcodec"
    assert (had_files, code, list(tmp_path.iterdir())) == (True, 0, [])


@needs_gradio
def test_the_space_starts_where_it_is_told_to(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    there = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}

    with (
        running([str(SPACE / "app.py")], tmp_path, **there) as server,
        urllib.request.urlopen(server.address, timeout=60) as answer,
    ):
        page = answer.read().decode()

    assert server.address == f"http://127.0.0.1:{port}"
    assert "<title>dmcodec</title>" in page or '"title":"dmcodec"' in page


def test_the_space_has_what_a_space_needs() -> None:
    header = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    settings = dict(line.split(": ", 1) for line in header.splitlines())

    assert settings["sdk"] == "gradio"
    assert (SPACE / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60  # the Hub's limit
    assert (SPACE / "requirements.txt").read_text() == "dmcodec[demo]\n"
