"""Results appear whole or not at all, under names that nobody can guess, and one job at a time."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from dmcodec import storage
from dmcodec.audio import write_audio
from dmcodec.storage import (
    FolderInUse,
    FolderLost,
    delete_leftovers,
    lock_folder,
    make_folder_whole,
    open_whole,
    replace_together,
    write_whole,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_file_appears_whole_and_a_failure_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_whole(path, "old")

    with suppress(KeyboardInterrupt), open_whole(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_link_is_followed_whatever_name_it_lies_at(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    pid = os.getpid()
    for name in (f".x.wav.{pid}.tmp", f".x.wav.{pid}.part", ".writing_x.wav", "x.wav.tmp", "x.wav"):
        (folder / name).symlink_to(victim)

    write_audio(folder / "x.wav", np.zeros(10))
    write_whole(folder / "y.txt", "text")

    assert victim.read_text() == "precious"
    assert not (folder / "x.wav").is_symlink()


def test_a_name_that_was_guessed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    guessed = tmp_path / storage._temporary_name()
    guessed.symlink_to(victim)

    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "x", "text")

    assert victim.read_text() == "precious"
    assert guessed.is_symlink()  # it is not ours to remove


def test_lock_file_and_cache_follow_no_link(tmp_path: Path) -> None:
    from dmcodec.evaluation.workspace import CachedScores, Workspace

    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".lock").symlink_to(victim)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{os.getpid()}.jsonl").symlink_to(victim)

    with pytest.raises(OSError, match="symbolic links"), lock_folder(tmp_path / "job"):
        pass
    with pytest.raises(OSError, match="symbolic links"):
        Workspace(tmp_path).append_to_cache(CachedScores(key="k", values={}, missing={}))

    assert victim.read_text() == "precious"


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    name = "x" * 251 + ".wav"  # 255 bytes, the most that file systems take

    write_audio(tmp_path / name, np.zeros(10))
    write_whole(tmp_path / ("y" * 255), b"data")

    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "y" * 255]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_audio(tmp_path / "x.flac", np.zeros(10))
        write_whole(tmp_path / "a" / "x.txt", "text")
        with make_folder_whole(tmp_path / "b") as folder:
            write_whole(folder / "y", b"")
        with lock_folder(tmp_path / "c"):
            write_whole(tmp_path / "c" / "z", b"")
    finally:
        os.umask(before)

    for name in ("x.flac", "a/x.txt", "b/y", "c/.lock"):
        assert mode_of(tmp_path / name) == 0o666 & ~mask
    for name in ("a", "b", "c"):
        assert mode_of(tmp_path / name) == 0o777 & ~mask


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "step"
    for text in ("old", "new"):
        with make_folder_whole(target) as folder:
            write_whole(folder / text, text)

    with suppress(KeyboardInterrupt), make_folder_whole(target) as folder:
        write_whole(folder / "newest", "")
        raise KeyboardInterrupt

    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_files_that_belong_together_are_replaced_when_all_are_complete(tmp_path: Path) -> None:
    for name in ("a", "b", "mine"):
        write_whole(tmp_path / name, "old")

    with suppress(KeyboardInterrupt), replace_together(tmp_path) as aside:
        write_whole(aside / "a", "new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a", "b", "mine"), "old"
    )
    with replace_together(tmp_path) as aside:
        for name in ("a", "b"):
            write_whole(aside / name, "new")

    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"a": "new", "b": "new", "mine": "old"}


def test_errors_of_files_aside_name_the_results(tmp_path: Path) -> None:
    for arguments in ((28, "full", "{}/x.wav"), ("{}/x.wav: full",)):
        with pytest.raises(OSError, match="full") as raised, replace_together(tmp_path) as aside:
            raise OSError(
                *(each.format(aside) if isinstance(each, str) else each for each in arguments)
            )
        assert str(tmp_path / "x.wav") in str(raised.value)
        assert ".part" not in str(raised.value)


_UNTIL_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from dmcodec.audio import write_audio
from dmcodec.storage import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
noise = np.random.default_rng(0).uniform(-0.5, 0.5, 400)
for name, write in {
    "x.wav": lambda p: write_audio(p, noise), "x.flac": lambda p: write_audio(p, noise),
    "x.bin": lambda p: write_whole(p, bytes(1000)),
}.items():
    try:
        write(folder / name)
    except OSError as error:
        print(name, str(folder / name) in str(error), "File too large" in str(error))
"""


@pytest.mark.parametrize("limit", [10, 100, 700])
def test_full_disk_is_an_error_that_names_the_result(tmp_path: Path, limit: int) -> None:
    # A small FLAC file is written when it is closed, and libsndfile passes over what goes wrong.
    done = subprocess.run(
        [sys.executable, "-c", _UNTIL_FULL, tmp_path, str(limit)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.splitlines() == [f"x.{kind} True True" for kind in ("wav", "flac", "bin")]
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_hold_one_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dmcodec.storage import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUse, match=f"another job is writing to {tmp_path}"):
            lock_folder(tmp_path).__enter__()
        other.send_signal(signal.SIGKILL)
    with lock_folder(tmp_path):
        pass


def test_forked_children_do_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path; from dmcodec.storage import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n"
        "    if os.fork() == 0: print(os.getpid(), flush=True); time.sleep(60); os._exit(0)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        child = int(job.stdout.readline())
        job.kill()
        job.wait()
        try:
            with lock_folder(tmp_path) as lock:
                lock.check()
        finally:
            os.kill(child, signal.SIGKILL)


def test_folder_that_is_deleted_or_replaced_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with lock_folder(folder) as lock:
        lock.check()
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(FolderLost, match="was deleted or replaced while the job was writing"):
            lock.check()
        folder.mkdir()
        (folder / ".lock").touch()
        with pytest.raises(FolderLost):
            lock.check()


def test_folder_in_which_nothing_was_done_goes_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        with lock_folder(tmp_path / name):
            pass

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("x.part", ".hidden", ".lock", "a/.b/c")]
    half = tmp_path / storage._temporary_name()
    left = [
        half / "x",
        half / storage._temporary_name(),
        tmp_path / "a" / storage._temporary_name(),
    ]
    for path in kept + left:
        write_whole(path, "")

    delete_leftovers(tmp_path)

    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_file_is_no_folder_for_results(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", "")

    with pytest.raises(NotADirectoryError, match="x is a file: name a folder"):
        lock_folder(tmp_path / "x").__enter__()
    with pytest.raises(NotADirectoryError, match="x is a file: name a folder"):
        replace_together(tmp_path / "x").__enter__()
