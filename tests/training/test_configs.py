"""Every experiment in configs/ loads strictly and runs, made small."""

import tomllib
from pathlib import Path

import pytest
import torch

from dmcodec.losses.reconstruction import PAPER_MEL_SCALES, RELEASE_MEL_SCALES
from dmcodec.training.experiment import Experiment
from dmcodec.training.state import new_state
from dmcodec.training.step import train_step

CONFIGS = Path(__file__).parents[2] / "configs"
SECOND_STAGE = "small_decoder"  # needs codes: test_second_stage.py
NAMES = sorted(path.stem for path in CONFIGS.glob("*.toml") if path.stem != SECOND_STAGE)
SMALL = (
    "batch_size=2",
    "num_workers=0",
    "codec.seanet.num_filters=4",
    "codec.seanet.latent_dim=16",
    "codec.quantizer.codebook_size=16",
    "data.segment_samples=4800",
    "data.min_samples=1",
    "data.corpus_weights={}",
    "adversary.start_step=0",
    "adversary.update_every=1",
    "adversary.networks.period_channels=[4, 4]",
    "adversary.networks.scale_channels=[4, 4, 4, 4, 4, 4, 4]",
    "adversary.networks.stft_filters=2",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_a_step(tiny, make_batches, accelerator, name):
    experiment = tiny(*SMALL, name=name)
    (batch,) = make_batches(experiment, 1)
    state = new_state(experiment)
    before = {name: value.clone() for name, value in state.codec.named_parameters()}

    terms = train_step(state, experiment, batch, accelerator)

    names = {"time", "mel", "stft", "envelope", "commitment", "adversarial", "feature_matching"}
    weighted = {each for each in names if getattr(experiment.losses, f"{each}_weight")}
    assert terms.keys() == weighted | {"discriminator", "total", "gradient_norm"}
    assert all(bool(term.isfinite()) for term in terms.values())
    moved = [n for n, v in state.codec.named_parameters() if not torch.equal(v, before[n])]
    assert len(moved) > 0.9 * len(before)


@pytest.mark.parametrize("name", ["paper", "release", "tiny"])
def test_experiment_spells_out_every_key(name):
    table = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    complete = Experiment.model_validate(table).model_dump()

    # These have no value in TOML (None), or one for each scale.
    optional = {"init_from", "codec.feature_dim", "data.corpus_weights", "losses.mel_scales"}
    optional |= {"distillation", "data.codes", "data.cache", "checkpoint_max_file_mb"}
    optional |= {"adversary.window_samples"}
    optional |= {"losses.stft_scales"} if not complete["losses"]["stft_weight"] else set()
    assert missing_keys(complete, table) <= optional


def missing_keys(complete: dict, table: dict, prefix: str = "") -> set[str]:
    missing = set()
    for key, value in complete.items():
        if key not in table:
            missing.add(prefix + key)
        elif isinstance(value, dict):
            missing |= missing_keys(value, table[key], f"{prefix}{key}.")
    return missing


def test_both_columns_of_losses_are_the_named_ones(tiny):
    paper, release = tiny(name="paper").losses, tiny(name="release").losses

    assert paper.mel_scales == PAPER_MEL_SCALES
    assert paper.adversarial_kind == "hinge"
    assert paper.is_feature_matching_normalized
    assert release.mel_scales == RELEASE_MEL_SCALES
    assert release == type(release)()


def test_paper_and_release_are_the_codec_of_the_paper(tiny):
    for name in ("paper", "release"):
        experiment = tiny(name=name)
        assert experiment.codec.hop_length == 320
        assert experiment.codec.bitrate_kbps == 4.0
        assert experiment.codec == Experiment.model_fields["codec"].default
        assert experiment.adversary is not None
        assert experiment.adversary.networks == type(experiment.adversary.networks)()
