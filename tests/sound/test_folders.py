import logging
import os
from pathlib import Path

import pytest

from dmcodec.sound.folders import find_audio_files, find_files


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_audio_files(folder)]


def test_links_are_followed_once_and_those_that_lead_nowhere_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "corpus"
    make(folder, "a.wav", "b/c.wav")
    make(tmp_path / "elsewhere", "d.flac")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "twice").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    (folder / "e.wav").symlink_to(tmp_path / "elsewhere" / "d.flac")
    (folder / "gone.wav").symlink_to(tmp_path / "nowhere.wav")

    names = found(folder)

    assert names in (
        ["a.wav", "b/c.wav", "e.wav", "link/d.flac"],
        ["a.wav", "b/c.wav", "e.wav", "twice/d.flac"],
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "4 files" in record.getMessage()
    assert "1 (a link that leads nowhere: gone.wav)" in record.getMessage()
    assert "2 (a folder that was read already: " in record.getMessage()


def test_all_that_can_be_read_when_named_is_found(tmp_path: Path) -> None:
    names = [f"x{suffix}" for suffix in (".W64", ".au", ".caf", ".rf64", ".snd", ".sph")]
    make(tmp_path, *names)

    assert found(tmp_path) == sorted(names)


def test_what_is_left_out_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmcodec.sound.folders.importlib.util.find_spec", lambda name: None)
    make(tmp_path, "a.wav", "m.m4a", ".hidden.wav", *(f"t{n}.txt" for n in range(7)))
    os.mkfifo(tmp_path / "pipe.wav")

    assert found(tmp_path) == ["a.wav"]

    message = caplog.records[0].getMessage()
    assert "1 (need pip install 'dmcodec[media]': m.m4a)" in message
    assert "7 (another suffix: t0.txt, t1.txt, t2.txt, t3.txt, t4.txt, ...)" in message
    assert "1 (hidden: .hidden.wav)" in message
    assert "1 (no file: pipe.wav)" in message


def test_nothing_is_said_of_a_folder_that_is_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "a.wav", "b/c.flac")
    found(tmp_path)
    assert caplog.records == []


def test_folders_of_codes_say_what_is_left_out_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "a.dmc", "b.DMC", "c.wav")
    (tmp_path / "gone.dmc").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in find_files(tmp_path, [".dmc"])] == ["a.dmc", "b.DMC"]
    assert "1 (a link that leads nowhere: gone.dmc); 1 (another suffix: c.wav)" in caplog.text
