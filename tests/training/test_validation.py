import json
import logging
import math

import numpy as np
import pytest
import torch

from dmcodec.audio import read_audio, write_audio
from dmcodec.metrics.intelligibility import stoi
from dmcodec.metrics.opinion import pesq_wb
from dmcodec.metrics.signal import mel_distance
from dmcodec.training.checkpoint import list_checkpoints, load_checkpoint
from dmcodec.training.state import new_state, state_tensors
from dmcodec.training.validation import is_better, mean_scores, validate


@pytest.fixture
def trained(tiny, finished_run):
    state = new_state(tiny())
    load_checkpoint(state, tiny(), list_checkpoints(finished_run / "checkpoints")[-1])
    return state


class Recorder:
    """Stands for the tracker."""

    def __init__(self) -> None:
        self.values, self.clips = {}, []

    def scalars(self, step, values):
        self.values |= values

    def clip(self, step, name, waveform, log_mel):
        self.clips.append((name, len(waveform), log_mel.shape[0]))


def test_scores_are_means_over_the_clips_of_the_manifest(tiny, speech, trained, accelerator):
    scores = validate(trained, tiny("validation.max_clips=3"), accelerator, None)

    expected = {"mel_distance": [], "stoi": [], "pesq_wb": []}
    entries = (speech / "valid.jsonl").read_text().splitlines()[:3]
    for entry in entries:
        waveform = read_audio(speech / json.loads(entry)["audio"])[:16_000]
        waveform = waveform - waveform.mean(dtype=np.float64).astype(np.float32)
        codec = trained.averaged_codec
        decoded = codec.decode(codec.encode(waveform))[0].numpy()
        for measure in (mel_distance, stoi, pesq_wb):
            expected[measure.__name__].append(measure(waveform, decoded, 16_000))
    assert scores == pytest.approx({name: np.mean(values) for name, values in expected.items()})


def test_scores_depend_on_validation_data_only(tiny, trained, accelerator, tmp_path):
    experiment = tiny()
    scores = validate(trained, experiment, accelerator, None)
    elsewhere = experiment.data.model_copy(update={"train_manifests": (tmp_path / "none.jsonl",)})
    other_seed = experiment.model_copy(update={"seed": 77, "data": elsewhere, "batch_size": 1})

    assert validate(trained, other_seed, accelerator, None) == scores

    swapped = experiment.data.model_copy(
        update={"valid_manifest": experiment.data.train_manifests[0]}
    )
    swapped = experiment.model_copy(update={"data": swapped})
    assert validate(trained, swapped, accelerator, None) != scores


def test_validation_leaves_everything_as_it_was(tiny, trained, accelerator):
    before = {
        f"{name}/{key}": value.clone()
        for name, tensors in state_tensors(trained).items()
        for key, value in tensors.items()
    }
    random_state = torch.get_rng_state()

    validate(trained, tiny(), accelerator, None)

    for name, tensors in state_tensors(trained).items():
        for key, value in tensors.items():
            assert torch.equal(value, before[f"{name}/{key}"])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert trained.codec.training
    assert not trained.averaged_codec.training
    assert all(parameter.grad is None for parameter in trained.averaged_codec.parameters())
    assert all(parameter.requires_grad for parameter in trained.codec.parameters())


def test_first_clips_are_logged_with_sound_and_picture(tiny, trained, accelerator):
    recorder = Recorder()

    scores = validate(trained, tiny("validation.num_logged_clips=2"), accelerator, recorder)

    assert recorder.clips == [
        (f"valid/valid-110-{take}/{kind}", 16_000, 80)
        for take in (0, 1)
        for kind in ("original", "decoded")
    ]
    assert recorder.values == {f"valid/{name}": value for name, value in scores.items()}


def test_without_a_manifest_nothing_is_scored(tiny, trained, accelerator):
    experiment = tiny()
    data = experiment.data.model_copy(update={"valid_manifest": None})
    experiment = experiment.model_copy(update={"data": data})

    assert validate(trained, experiment, accelerator, None) == {}


def test_clip_that_cannot_be_measured_is_left_out_and_told(
    tiny, trained, accelerator, tmp_path, caplog
):
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 20_000).astype(np.float32)
    write_audio(tmp_path / "long.wav", noise)
    write_audio(tmp_path / "short.wav", noise[:2_000])
    experiment = tiny()
    data = experiment.data.model_copy(update={"valid_manifest": tmp_path})
    experiment = experiment.model_copy(update={"data": data})

    with caplog.at_level(logging.INFO):
        scores = validate(trained, experiment, accelerator, None)

    assert scores.keys() == {"mel_distance", "stoi", "pesq_wb"}
    assert "stoi has no value for 1 of 2 clips" in caplog.text
    assert "mel_distance" not in caplog.text


def test_codec_that_is_not_finite_has_no_score(tiny, trained, accelerator):
    with torch.no_grad():
        next(trained.averaged_codec.decoder.parameters())[0] = torch.nan

    assert validate(trained, tiny(), accelerator, None) == {}


def test_means_are_of_the_clips_that_have_a_value(accelerator):
    scores = mean_scores([{"stoi": 0.5, "mel_distance": 1.0}, {"mel_distance": 2.0}])

    assert scores == {"stoi": 0.5, "mel_distance": 1.5}


@pytest.mark.parametrize(
    ("measure", "value", "best", "expected"),
    [
        ("mel_distance", 1.0, 2.0, True),
        ("mel_distance", 2.0, 1.0, False),
        ("stoi", 1.0, 0.5, True),
        ("pesq_wb", 1.0, 1.0, False),
        ("stoi", 0.0, None, True),
        ("stoi", math.nan, 0.5, False),
    ],
)
def test_better_is_less_for_distances_and_more_for_scores(measure, value, best, expected):
    assert is_better(measure, value, best) == expected
