"""The content of codes as a measure of whole systems; the probe itself is tested in test_probe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmcodec.audio import write_audio
from dmcodec.corpus.manifest import read_manifest
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.content import choose_training, pronounce_all
from dmcodec.evaluation.run import evaluate
from dmcodec.metrics import probe
from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.phones import PhoneAligner

pytest.importorskip("pocketsphinx", reason="pip install 'dmcodec[eval]'")
pytest.importorskip("jiwer", reason="pip install 'dmcodec[eval]'")


@pytest.fixture(scope="module")
def training_list(tmp_path_factory: pytest.TempPathFactory, speech: np.ndarray) -> Path:
    """Eight recordings: six of speaker x, one of y, one of the evaluated speaker a."""
    folder = tmp_path_factory.mktemp("training")
    lines = []
    for number, speaker in enumerate("xxxxxxya"):
        path = folder / f"{number}.flac"
        write_audio(path, speech[number * 4_000 :][:24_000])
        text = "the qwxzt of it" if number == 0 else "some people of the army"
        lines.append({"audio": path.name, "speaker": speaker, "text": text, "duration_s": 1.5})
    manifest = folder / "train.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    return manifest


def test_pronunciations_are_those_of_the_dictionary() -> None:
    aligner = PhoneAligner()

    assert aligner.pronounce("The army, it's") == (
        *("DH", "AH"),
        *("AA", "R", "M", "IY"),
        *("IH", "T", "S"),
    )
    with pytest.raises(Unmeasurable, match="qwxzt"):
        aligner.pronounce("the qwxzt")
    with pytest.raises(Unmeasurable, match="empty text"):
        aligner.pronounce(" ... ")


def test_what_cannot_be_pronounced_is_left_out(training_list: Path) -> None:
    spoken = list(pronounce_all(read_manifest(training_list)))

    assert [each.utterance.id for each in spoken] == list("1234567")
    assert spoken[0].phones[:4] == ("S", "AH", "M", "P")


def test_training_takes_turns_between_speakers_and_leaves_the_evaluated_ones_out(
    training_list: Path, manifest: Path
) -> None:
    held_out = read_manifest(manifest)  # of speakers a and b

    few = choose_training([training_list], 3.1 / 60, held_out)
    all_of_them = choose_training([training_list], 30, held_out)

    assert sorted(each.utterance.speaker or "" for each in few) == ["x", "y"]
    assert sorted(each.utterance.id for each in all_of_them) == list("123456")


def test_lists_of_the_probe_may_name_their_columns(training_list: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in training_list.read_text().splitlines()]
    for each in lines:
        each |= {"audio": str(training_list.parent / each["audio"]), "spoken": each.pop("text")}
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text("\n".join(map(json.dumps, lines)))

    expected = choose_training([training_list], 30, [])
    found = choose_training([renamed], 30, [], {"text": "spoken"})

    assert choose_training([renamed], 30, []) == []
    assert [each.phones for each in found] == [each.phones for each in expected]


@pytest.fixture
def config(
    training_list: Path,
    tmp_path: Path,
    speech: np.ndarray,
    codec_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> EvaluationConfig:
    """Two clips of speaker a, the second with an unknown word; probes of a few steps."""
    monkeypatch.setattr(probe, "_NUM_STEPS", 3)
    lines = []
    for clip, text in (("one", "the army found the people"), ("two", "the qwxzt")):
        write_audio(tmp_path / f"{clip}.flac", speech[:32_000])
        lines.append({"id": clip, "audio": f"{clip}.flac", "speaker": "a", "text": text})
    path = tmp_path / "clips.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    settings: dict[str, Any] = {
        "manifests": (path,),
        "systems": (f"tiny=dmcodec:{codec_folder}@1", "copy=command:cp {in} {out}"),
        "measures": ("content",),
        "scoring": {"content_train": (training_list,)},
        "num_resamples": 100,
        "num_processes": 0,
    }
    return EvaluationConfig(**settings)


def test_evaluation_gives_phone_errors_of_systems_with_codes_and_of_the_original(
    config: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = evaluate(config, tmp_path / "out")

    rows = {(row.system, row.id): row for row in evaluation.rows}
    num_phones = len(PhoneAligner().pronounce("the army found the people"))
    for system in ("original", "tiny"):
        hits, substitutions, deletions, _ = rows[system, "one"].counts["content_per"]
        assert hits + substitutions + deletions == num_phones
        assert "known phones" in rows[system, "two"].missing["content_per"]
    assert rows["copy", "one"].missing == {"content_per": "content: no codes"}
    tiny = evaluation.summary.systems[1].estimate("content_per")
    assert tiny is not None
    assert tiny.num_clips == 1
    assert probe.RECIPE in evaluation.summary.about["probe of codes"]

    monkeypatch.setattr(
        "dmcodec.evaluation.content.train_probe", lambda *a, **k: pytest.fail("trained again")
    )
    assert evaluate(config, tmp_path / "out").rows == evaluation.rows


def test_without_a_list_to_learn_from_the_measure_is_missing_with_what_to_name(
    config: EvaluationConfig, tmp_path: Path
) -> None:
    scoring = config.scoring.model_copy(update={"content_train": ()})

    evaluation = evaluate(config.model_copy(update={"scoring": scoring}), tmp_path / "out")

    reason = evaluation.summary.measures_without_values()["content_per"]
    assert "--set 'scoring.content_train=" in reason


def test_a_list_of_evaluated_speakers_only_is_refused(
    config: EvaluationConfig, tmp_path: Path
) -> None:
    scoring = config.scoring.model_copy(update={"content_train": config.manifests})

    with pytest.raises(ValueError, match="by a speaker who is not evaluated"):
        evaluate(config.model_copy(update={"scoring": scoring}), tmp_path / "out")
