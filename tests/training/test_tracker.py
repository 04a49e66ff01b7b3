import json

import numpy as np

from dmcodec.training.tracker import Tracker


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_the_step_and_the_values(tmp_path):
    tracker = Tracker(tmp_path / "run", 16_000)
    tracker.scalars(1, {"train/loss_mel": 0.5})
    tracker.scalars(2, {"train/loss_mel": float("inf"), "valid/stoi": float("nan")})
    tracker.close()

    assert read_lines(tmp_path / "run") == [
        {"step": 1, "train/loss_mel": 0.5},
        {"step": 2, "train/loss_mel": None, "valid/stoi": None},
    ]


def test_resumed_tracker_drops_lost_steps_and_a_torn_line(tmp_path):
    first = Tracker(tmp_path, 16_000)
    for step in (5, 10, 15):
        first.scalars(step, {"train/loss_mel": step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "train/lo')

    resumed = Tracker(tmp_path, 16_000, first_step=10)
    resumed.scalars(15, {"train/loss_mel": 0})
    resumed.close()

    assert [line["step"] for line in read_lines(tmp_path)] == [5, 10, 15]
    assert read_lines(tmp_path)[2]["train/loss_mel"] == 0


def test_clip_beyond_full_scale_is_cut_without_a_word(tmp_path, capsys):
    tracker = Tracker(tmp_path, 16_000)

    tracker.clip(1, "loud", np.full(100, 2, np.float32), np.zeros((4, 3), np.float32))
    tracker.close()

    assert capsys.readouterr().out == ""
