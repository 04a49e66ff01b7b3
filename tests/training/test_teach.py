"""`dmcodec teach`, then a run that learns from what it stored."""

import json
from pathlib import Path

import pytest
from tests.teachers.conftest import language_model, transformers
from typer.testing import CliRunner

from dmcodec.cli import app
from dmcodec.config import ConfigError
from dmcodec.corpus.manifest import read_manifests
from dmcodec.teachers.store import FeatureStore
from dmcodec.teachers.words import read_word_times
from dmcodec.training.loop import train
from dmcodec.training.teach import teach
from dmcodec.training.validation import _listed_clips, check_clips

TINY = Path(__file__).parents[2] / "configs" / "tiny.toml"

__all__ = ["language_model", "transformers"]


@pytest.fixture
def assignments(speech, language_model, tmp_path) -> list[str]:
    """What makes configs/tiny.toml an experiment with words that are given."""
    manifests = [speech / "train.jsonl", speech / "valid.jsonl"]
    words = [
        {"text": text, "start_s": 0.2 * i, "end_s": 0.2 * i + 0.15}
        for i, text in enumerate(["hello", "world", "again", "trade"])
    ]
    lines = [json.dumps({"id": each.id, "words": words}) for each in read_manifests(manifests)]
    (tmp_path / "words.jsonl").write_text("\n".join(lines) + "\n")
    return [
        f'data.train_manifests=["{manifests[0]}"]',
        f'data.valid_manifest="{manifests[1]}"',
        "num_steps=2",
        "validation.num_logged_clips=0",
        "codec.feature_dim=12",
        f"distillation.text.teacher.language_model={language_model}",
        "distillation.text.teacher.stt.kind=given",
        f"distillation.text.teacher.stt.word_times={tmp_path / 'words.jsonl'}",
        f"distillation.text.store={tmp_path / 'store'}",
    ]


def test_taught_run_learns_from_its_store(tiny, assignments, tmp_path):
    flags = [flag for each in assignments for flag in ("--set", each)]

    first = CliRunner().invoke(app, ["teach", str(TINY), *flags])
    second = CliRunner().invoke(app, ["teach", str(TINY), *flags])

    assert first.exit_code == 0, first.output
    assert "12 done, 0 failed; 0 without any feature" in first.output
    assert "0 done, 12 were there, 0 failed" in second.output
    assert len(FeatureStore(tmp_path / "store")) == 12
    given = read_word_times(tmp_path / "words.jsonl")
    assert read_word_times(tmp_path / "store" / "words.jsonl") == {
        key: [word for word in words if word.end_samples <= 16_000] for key, words in given.items()
    }
    scores = train(tiny(*assignments), tmp_path / "run", device="cpu").scores
    assert 0.2 < scores["loss_distill_text"] < 1.3


def test_columns_of_the_lists_are_named_in_the_configuration(tiny, speech, tmp_path):
    lines = [json.loads(line) for line in (speech / "valid.jsonl").read_text().splitlines()]
    renamed = [{"snd": str(speech / each["audio"]), "said": "hello"} for each in lines]
    for name in ("train", "valid"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in renamed))
    lists = [
        f'data.train_manifests=["{tmp_path / "train.jsonl"}"]',
        f'data.valid_manifest="{tmp_path / "valid.jsonl"}"',
    ]
    columns = ["data.columns.audio=snd", "data.columns.text=said"]

    check_clips(tiny(*lists, *columns))

    assert [each.text for each in _listed_clips(tiny(*lists, *columns))] == ["hello"] * 4
    with pytest.raises(ValueError, match="--column audio=NAME"):
        check_clips(tiny(*lists))
    with pytest.raises(ValueError, match="has no column words; there are"):
        check_clips(tiny(*lists, *columns, "data.columns.text=words"))
    with pytest.raises(ConfigError, match="there is no key txt to give a column to"):
        tiny("data.columns.txt=said")
    scores = train(tiny(*lists, *columns, "num_steps=1"), tmp_path / "run", device="cpu").scores
    assert "mel_distance" in scores


def test_experiment_without_a_store_has_nothing_to_teach(tiny):
    with pytest.raises(ValueError, match="no teacher of this experiment names a store"):
        teach(tiny())
