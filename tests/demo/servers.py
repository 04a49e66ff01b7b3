"""The page as its users start it: a process of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A page that answers: its address and the folder in which it makes its temporary files."""

    address: str
    temporary: Path
    process: "subprocess.Popen[str]"

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tells the process to end; gives its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextmanager
def running(command: list[str], temporary: Path, **environment: str) -> Iterator[Server]:
    """Starts a Python command and waits for the address that it prints."""
    variables = {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        cwd=temporary,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\w.:]+/?", line)
        assert found, f"no address in {line!r}"
        yield Server(found[0].rstrip("/"), temporary, process)
    finally:
        process.kill()
        process.wait(timeout=60)
