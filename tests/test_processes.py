"""Worker processes end with the process that started them, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmcodec.processes import MAX_WORKERS, check_count

# Workers say their number in a file each, then wait for work that never comes.
_EVALUATE = """
import os, sys, time
from pathlib import Path
from dmcodec.evaluation.execution import open_executor

def prepare():
    (Path(sys.argv[1]) / str(os.getpid())).touch()

if __name__ == "__main__":
    with open_executor(2, prepare) as executor:
        executor.submit(time.sleep, 0).result()
        executor.submit(time.sleep, 3600)
        print("working", flush=True)
        time.sleep(3600)
"""
_TEACH = """
import os, sys, time
from pathlib import Path
from dmcodec.teachers import extract

def build(config, frames, device):
    (Path(sys.argv[1]) / str(os.getpid())).touch()

def do_shard(*job):
    time.sleep(3600)

extract.build_teacher, extract._do_shard = build, do_shard
if __name__ == "__main__":
    jobs = [(Path(), number, None, []) for number in range(4)]
    next(extract._run(jobs, (None, None, "cpu"), 2))
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition) -> bool:
    """Whether it came true within five minutes (a busy machine starts Python in one)."""
    end_s = time.monotonic() + 300
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("script", [_EVALUATE, _TEACH], ids=["evaluate", "teach"])
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc")
def test_workers_of_a_killed_job_end(tmp_path: Path, script: str) -> None:
    pytest.importorskip("torch")
    program, numbers = tmp_path / "job.py", tmp_path / "numbers"
    program.write_text(script)
    numbers.mkdir()
    # The spawned workers import the script, and so have its changes.
    with subprocess.Popen([sys.executable, program, numbers], stdout=subprocess.DEVNULL) as job:
        try:
            wait_until(lambda: any(numbers.iterdir()) or job.poll() is not None)
        finally:
            job.kill()
    workers = [int(path.name) for path in numbers.iterdir()]
    try:
        assert workers
        assert wait_until(lambda: not any(map(is_alive, workers)))
    finally:
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)


def test_counts_that_are_no_help_are_refused() -> None:
    assert check_count("threads", None) is None
    assert check_count("threads", MAX_WORKERS) == MAX_WORKERS
    for count in (0, MAX_WORKERS + 1, 100_000):
        with pytest.raises(ValueError, match=f"threads is {count}; this machine has"):
            check_count("threads", count)
