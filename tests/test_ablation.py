"""`dmcodec ablate`: a table of runs, trained, measured and written."""

import json
from pathlib import Path

import pytest
from tests.training.conftest import speech
from typer.testing import CliRunner

from dmcodec.ablation import AblationConfig, _by_seed, _last_validation, _pooled
from dmcodec.cli import app
from dmcodec.config import ConfigError, build_record
from dmcodec.evaluation.rows import Row

pytest.importorskip("PIL", reason="the report of an evaluation needs dmcodec[eval]")

__all__ = ["speech"]

TINY = Path(__file__).parents[1] / "configs" / "tiny.toml"


@pytest.fixture
def table(speech, tmp_path) -> Path:
    """Two rows of one step each that differ in their learning rate."""
    data = [
        f'data.train_manifests=["{speech / "train.jsonl"}"]',
        f'data.valid_manifest="{speech / "valid.jsonl"}"',
        "num_steps=1",
        "validation.num_logged_clips=0",
    ]
    text = f"experiment = {json.dumps(str(TINY))}\nassignments = {json.dumps(data)}\n"
    text += f"seeds = [3, 4]\nclips = [{json.dumps(str(speech / 'valid.jsonl'))}]\n"
    text += "num_word_clips = 0\n"
    text += '[[rows]]\nname = "slow"\nlabel = "slow start"\n'
    text += '[[rows]]\nname = "fast"\nassignments = ["optimizer.learning_rate=0.01"]\n'
    path = tmp_path / "table.toml"
    path.write_text(text)
    return path


def test_table_has_a_line_for_each_row_and_is_made_again_without_training(table, tmp_path):
    output = tmp_path / "out"

    first = CliRunner().invoke(app, ["ablate", str(table), "-o", str(output), "--device", "cpu"])

    assert first.exit_code == 0, first.output
    text = (output / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| slow start", "| fast"]
    assert all(len(line.split(" | ")) == len(lines[0].split(" | ")) for line in lines)
    assert "Seeds 3, 4." in text
    runs = sorted(path.name for path in (output / "runs").iterdir())
    assert runs == ["fast-seed3", "fast-seed4", "slow-seed3", "slow-seed4"]
    logs = {path: path.read_bytes() for path in output.glob("runs/*/metrics.jsonl")}
    assert len(set(logs.values())) == 4  # other seeds and other rates give other numbers

    second = CliRunner().invoke(app, ["ablate", str(table), "-o", str(output), "--device", "cpu"])

    assert second.exit_code == 0, second.output
    assert (output / "table.md").read_text() == text
    assert {path: path.read_bytes() for path in logs} == logs


def test_missing_lists_stop_the_table_before_its_first_run(table, tmp_path):
    text = table.read_text().replace('valid.jsonl"]', 'gone.jsonl"]')
    table.write_text(text)

    result = CliRunner().invoke(app, ["ablate", str(table), "-o", str(tmp_path / "out")])

    assert isinstance(result.exception, FileNotFoundError)
    assert "gone.jsonl" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["[" * 100_000, "[]", '{"valid/stoi'])
def test_damaged_line_in_the_log_of_a_run_is_named(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "valid/stoi": 0.5}\n{"step": 2}\n')
    assert _last_validation(tmp_path) == {"valid/stoi": 0.5}
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(line)

    with pytest.raises(ValueError, match=r"metrics\.jsonl:3: damaged: .*train the row again"):
        _last_validation(tmp_path)


def make_row(system: str, clip: str, errors: int, words: int) -> Row:
    return Row(
        system=system,
        id=clip,
        speaker=None,
        corpus=None,
        num_samples=16_000,
        scores={"wer": errors / words},
        missing={},
        counts={"wer": (words - errors, errors, 0, 0)},
    )


def test_pooled_rate_adds_errors_over_clips_and_seeds_and_marks_a_difference():
    rows = [make_row(f"a{seed}", f"{n}", 1, 10) for seed in (1, 2) for n in range(20)]
    rows += [make_row(f"b{seed}", f"{n}", 2 + seed, 10) for seed in (1, 2) for n in range(20)]

    assert _pooled(rows, ["a1", "a2"], ["a1", "a2"], "wer") == "10.00 [10.00, 10.00]"
    assert _pooled(rows, ["b1", "b2"], ["a1", "a2"], "wer") == "35.00 [35.00, 35.00] *"
    assert _pooled(rows, ["b1", "missing"], ["a1", "a2"], "wer") == "-"


def test_seeds_are_shown_with_their_range():
    assert _by_seed([0.5, 0.7], 2) == "0.60 [0.50, 0.70]"
    assert _by_seed([], 2) == "-"
    assert _by_seed([float("nan")], 2) == "-"


def test_two_rows_of_one_name_are_refused():
    row = {"name": "a"}

    with pytest.raises(ConfigError, match="rows must have different names"):
        build_record(
            AblationConfig,
            {"experiment": TINY, "clips": ["clips.jsonl"], "rows": [row, row]},
            source="test",
        )
