"""Files of one visit are nobody else's, and go."""

import os
import time
from pathlib import Path

import numpy as np

from dmcodec.audio import read_audio
from dmcodec.demo.visits import Visits, write_codes, write_sound


def test_a_visit_that_ends_takes_its_files_and_no_others(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    paths = [write_codes(visits.folder(who, "first"), "a", b"codes") for who in ("one", "two")]

    visits.end("one")

    assert [path.exists() for path in paths] == [False, True]


def test_a_new_recording_clears_one_room(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    paths = [write_codes(visits.folder("one", room), "a", b"x") for room in ("first", "mixed")]

    visits.clear("one", "first")
    visits.clear("one", "never there")

    assert [path.exists() for path in paths] == [False, True]


def test_names_of_sessions_lead_nowhere_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for session in ("../..", "/etc", "", "a" * 500, "ä/\0"):
        folder = Visits(root).folder(session, "first")
        assert folder.parent.parent == root
        assert len(folder.parent.name) == 32


def test_folders_cannot_be_told_from_names_of_sessions(tmp_path: Path) -> None:
    assert Visits(tmp_path).folder("a", "first") != Visits(tmp_path).folder("a", "first")


def test_what_is_old_is_swept(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    old, new = (visits.folder(who, "first") for who in ("old", "new"))
    for folder in (old, new):
        write_codes(folder, "a", b"x")
    an_hour_ago = time.time() - 3700
    os.utime(old.parent, (an_hour_ago, an_hour_ago))

    visits.sweep()

    assert [folder.exists() for folder in (old, new)] == [False, True]


def test_sounds_are_written_to_be_played(tmp_path: Path) -> None:
    waveform = np.float32([0.5, -0.25, 2.0])

    path = write_sound(tmp_path / "new" / "folder", "x", waveform, 16_000)

    np.testing.assert_allclose(read_audio(path), [0.5, -0.25, 32767 / 32768])
