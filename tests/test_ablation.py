"""`dmcodec ablate`: a table of runs, trained, measured and written."""

import json
import runpy
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import speech
from typer.testing import CliRunner

from dmcodec.ablation import (
    AblationConfig,
    ContentConfig,
    _by_seed,
    _last_validation,
    _pooled,
    _prepare_process,
    _train_apart,
    ablate,
)
from dmcodec.cli import app
from dmcodec.config import ConfigError, build_record, load_config
from dmcodec.evaluation.rows import Row
from dmcodec.metrics import probe
from dmcodec.metrics.measure import Group
from dmcodec.training.step import TrainingDiverged

pytest.importorskip("PIL", reason="the report of an evaluation needs dmcodec[eval]")

__all__ = ["speech"]

TINY = Path(__file__).parents[1] / "configs" / "tiny.toml"
EXAMPLES = Path(__file__).parents[1] / "examples"


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


def test_runs_at_once_are_the_runs_one_after_the_other(table, tmp_path):
    config = load_config(table, AblationConfig, ["seeds=[3]"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of several processes has
    try:
        alone = ablate(config, tmp_path / "alone", device="cpu", num_processes=0)
    finally:
        torch.set_num_threads(threads)

    together = ablate(config, tmp_path / "together", device="cpu", num_processes=2)

    assert together == alone
    for name in ("slow-seed3", "fast-seed3"):
        first, second = (
            load_file(tmp_path / each / "runs" / name / "codec" / "model.safetensors")
            for each in ("alone", "together")
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert "step 1/1" in (tmp_path / "together" / "runs" / f"{name}.log").read_text()


def test_a_row_that_diverges_among_others_is_named(table, tmp_path):
    config = load_config(table, AblationConfig, ["seeds=[3]"])
    fast = config.rows[1].model_copy(update={"assignments": ("losses.mel_weight=1e38",)})
    config = config.model_copy(update={"rows": (config.rows[0], fast)})

    with pytest.raises(TrainingDiverged, match="row fast, seed 3"):
        ablate(config, tmp_path / "out", device="cpu", num_processes=2)


def test_runs_at_once_share_the_memory_of_a_gpu(table, tmp_path, monkeypatch):
    shares, trained = [], []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr("dmcodec.ablation.use_one_thread", lambda: None)  # not here
    monkeypatch.setattr("dmcodec.ablation.train", lambda *_, device, **__: trained.append(device))
    config = load_config(table, AblationConfig, ["seeds=[3]"])
    experiment = config.experiment_of(config.rows[0], 3)

    for device in ("cpu", "cuda"):
        _prepare_process(device, 0.125)
        _train_apart(("slow", 3), experiment, tmp_path / "runs" / "slow-seed3", device)

    assert trained == ["cpu", "cuda"]
    assert shares == [0.125]


def test_a_process_that_was_interrupted_begins_no_other_run(table, tmp_path, monkeypatch):
    def interrupted(experiment, folder, **_):
        begun.append(folder.name)
        raise KeyboardInterrupt

    begun = []
    monkeypatch.setattr("dmcodec.ablation._is_interrupted", Event())
    monkeypatch.setattr("dmcodec.ablation.train", interrupted)
    config = load_config(table, AblationConfig, ["seeds=[3]"])

    for row in config.rows:
        experiment = config.experiment_of(row, 3)
        with pytest.raises(KeyboardInterrupt):
            _train_apart((row.name, 3), experiment, tmp_path / f"{row.name}-seed3", "cpu")

    assert begun == ["slow-seed3"]


def test_content_of_book_one_and_of_all_books_is_in_the_table_for_each_list(
    table, speech, tmp_path, monkeypatch
):
    pytest.importorskip("pocketsphinx", reason="pip install 'dmcodec[eval]'")
    monkeypatch.setattr(probe, "_NUM_STEPS", 2)
    lines = [json.loads(line) for line in (speech / "valid.jsonl").read_text().splitlines()]
    for name, some in (("seen", lines[:2]), ("new", lines[2:])):
        spoken = [
            {**each, "audio": str(speech / each["audio"]), "spoken": "the army"} for each in some
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, spoken)))
    training = [
        {**json.loads(line), "spoken": "some people"}
        for line in (speech / "train.jsonl").read_text().splitlines()
    ]
    for each in training:
        each["audio"] = str(speech / each["audio"])
    (tmp_path / "probe.jsonl").write_text("\n".join(map(json.dumps, training)))
    content = {
        "train": [tmp_path / "probe.jsonl"],
        "clips": {name: tmp_path / f"{name}.jsonl" for name in ("seen", "new")},
        "columns": {"text": "spoken"},
    }
    config = load_config(table, AblationConfig, ["seeds=[3]", "measures=[]"])
    config = config.model_copy(update={"content": ContentConfig.model_validate(content)})

    text = ablate(config, tmp_path / "out", device="cpu", num_processes=0)

    head, _, *rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    columns = [place for place, name in enumerate(head) if name.startswith("PER of")]
    assert [head[place] for place in columns] == [
        "PER of book 1, seen, %",
        "PER of book 1, new, %",
        "PER of all books, seen, %",
        "PER of all books, new, %",
    ]
    assert len(rows) == 2
    for row in rows:
        for place in columns:
            assert 0 < float(row[place].split()[0]) <= 200
    assert "STOI" not in head
    assert "phone CTC" in text


def test_a_measure_that_cannot_be_computed_stops_the_table_before_its_first_run(
    table, tmp_path, monkeypatch
):
    monkeypatch.setattr(Group, "why_not", lambda group, config: f"{group.name}: not here")
    config = load_config(table, AblationConfig, ['measures=["visqol"]'])

    with pytest.raises(ValueError, match="visqol: not here"):
        ablate(config, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_probe_that_cannot_be_computed_stops_the_table_before_its_first_run(
    table, speech, tmp_path, monkeypatch
):
    monkeypatch.setattr(Group, "why_not", lambda group, config: f"{group.name}: not here")
    path = speech / "valid.jsonl"
    content = ContentConfig(train=(path,), clips={"all": path})
    config = load_config(table, AblationConfig, ["measures=[]"])
    config = config.model_copy(update={"content": content})

    with pytest.raises(ValueError, match="content: not here"):
        ablate(config, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


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


def test_sentence_lists_keep_the_held_out_voice_and_the_new_sentences_out_of_training(
    tmp_path, monkeypatch
):
    entries = [
        {"id": f"{speaker}_arctic_{part}000{n}", "audio": "x.flac", "speaker": speaker}
        for speaker in ("one", "two")
        for part in "ab"
        for n in (1, 2)
    ]
    entries.append({"id": "other", "audio": "y.flac", "speaker": "three"})
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, entries)))
    arguments = [tmp_path / "all.jsonl", "-o", tmp_path / "lists", "--speaker", "two", "--clips", 1]
    monkeypatch.setattr("sys.argv", ["sentence_lists.py", *map(str, arguments)])

    runpy.run_path(str(EXAMPLES / "sentence_lists.py"), run_name="__main__")

    ids = {
        path.stem: [json.loads(line)["id"] for line in path.read_text().splitlines()]
        for path in (tmp_path / "lists").iterdir()
    }
    assert ids == {
        "train": ["one_arctic_a0001", "one_arctic_a0002", "other"],
        "probe": ["other"],
        "seen": ["two_arctic_a0001"],
        "new": ["two_arctic_b0001"],
    }
    first = json.loads((tmp_path / "lists" / "train.jsonl").read_text().splitlines()[0])
    assert first["audio"] == str(tmp_path / "x.flac")
