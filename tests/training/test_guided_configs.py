"""The guided experiments in configs/ take their teachers' features and learn from them."""

from pathlib import Path

import numpy as np
import pytest
from tests.training.test_configs import SMALL

from dmcodec.corpus.manifest import read_manifests
from dmcodec.teachers.alignment import FeatureTrack
from dmcodec.teachers.extract import CodecFrames, teacher_settings
from dmcodec.teachers.store import StoredUtterance, StoreInfo, create_store, write_shard
from dmcodec.training.experiment import Experiment
from dmcodec.training.guidance import Guidance
from dmcodec.training.loop import train

GUIDED = ["dmcodec_lm", "dmcodec_lm_sm", "dmcodec_sm", "cls"]
FRAMES = CodecFrames(sample_rate=16_000, hop_length=320)
WIDTH = 12


def guided(tiny, name: str, folder: Path) -> Experiment:
    """The experiment, small, with stores of made-up features in a folder."""
    stores = [
        f'distillation.{teacher}.store="{folder / teacher}"'
        for teacher in ("text", "speech")
        if teacher in tiny(name=name).distillation.teachers
    ]
    few = ["num_steps=3", "validation.max_clips=1", "validation.num_logged_clips=0"]
    experiment = tiny(*SMALL, *few, *stores, f"codec.feature_dim={WIDTH}", name=name)
    data = experiment.data
    utterances = read_manifests([*data.train_manifests, data.valid_manifest])
    rng = np.random.default_rng(0)
    for guide in experiment.distillation.teachers.values():
        info = StoreInfo(teacher_settings(guide.teacher, FRAMES), {"model": "made up"}, WIDTH)
        create_store(guide.store, info)
        items = []
        for number, utterance in enumerate(utterances):
            num_frames = 50 if number % 2 == 0 else 54  # 16,000 and 17,000 samples
            rows = rng.normal(size=(num_frames, WIDTH)).astype(np.float32)
            track = FeatureTrack(rows, np.arange(num_frames, dtype=np.int32))
            items.append(StoredUtterance(utterance.id, track))
        write_shard(guide.store, 0, info, items)
    return experiment


@pytest.mark.parametrize("name", GUIDED)
def test_guided_experiment_trains_a_few_steps(tiny, tmp_path, name):
    experiment = guided(tiny, name, tmp_path)

    scores = train(experiment, tmp_path / "run", device="cpu").scores

    for teacher in experiment.distillation.teachers:
        assert 0.2 < scores[f"loss_distill_{teacher}"] < 1.3


def test_the_experiments_are_those_of_the_paper(tiny):
    both = tiny(name="dmcodec_lm_sm").distillation
    assert (both.text.books, both.speech.books) == ((1,), (1, 2, 3, 4, 5, 6, 7, 8))
    assert both.text.weight + both.speech.weight == 1
    assert both.weight == 120
    assert (both.text.loss, both.text.teacher.layers) == ("dimension_cosine", "mean")
    assert tiny(name="dmcodec_lm").distillation.text.weight == 1
    assert tiny(name="cls").distillation.text.loss == "frame_cosine"
    assert tiny(name="no_distillation").distillation is None


@pytest.mark.parametrize("name", [*GUIDED, "no_distillation"])
def test_the_experiments_differ_from_the_release_in_their_teachers_only(tiny, name):
    experiment, release = tiny(name=name), tiny(name="release")

    codec = experiment.codec.model_copy(update={"feature_dim": None})
    assert experiment.model_copy(update={"codec": codec, "distillation": None}) == release


def test_teacher_of_another_width_than_the_map_is_refused(tiny, tmp_path):
    experiment = guided(tiny, "dmcodec_lm", tmp_path)
    wrong = experiment.codec.model_copy(update={"feature_dim": WIDTH + 1})

    with pytest.raises(ValueError, match="have width 12, the linear map gives 13"):
        Guidance(experiment.distillation, wrong)
