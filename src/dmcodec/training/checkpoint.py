"""Checkpoints, which hold everything a run needs to go on, and what is handed out of them.

A checkpoint is a folder of safetensors and JSON that appears whole (written under a temporary
name, then renamed), so a run killed at any moment goes on from the last one. It doubles as the
fine-tuning kit: generator, discriminators, averages and both optimizers. Where an experiment
bounds the size of its files, tensors lie in shards (codec/tensor_files.py).
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from dmcodec.codec.conv import add_weight_norm, remove_weight_norm
from dmcodec.codec.model import Codec
from dmcodec.codec.network import CodecConfig
from dmcodec.codec.tensor_files import TensorFileError, are_there, load_tensors, save_tensors
from dmcodec.config import ConfigError, Record, build_record, parse_json
from dmcodec.storage import delete_folder, delete_leftovers, make_folder_whole, write_whole
from dmcodec.training.experiment import Experiment
from dmcodec.training.state import (
    StateError,
    TrainingState,
    load_module,
    load_state_tensors,
    state_tensors,
    unwrapped,
)

logger = logging.getLogger(__name__)

_CHECKPOINT_NAME = re.compile(r"step_(\d{8})")

# What a resumed run may change: where and how often it reports, how it holds its data, and the
# course of its learning.
_FREE_ON_RESUME = (
    "num_steps",
    "num_workers",
    "init_from",
    "checkpoint_every_steps",
    "checkpoint_max_file_mb",
    "keep_last",
    "log_every_steps",
    "optimizer",
    "adversary.optimizer",
    "data.valid_manifest",
    "data.use_preload",
    "data.cache",
    "validation",
)
_FEATURE_MAP, _DECODER = "feature_map.", "decoder."


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or of another experiment."""


class _Progress(Record):
    """progress.json: how far the run was, its best scores, and the scale of its gradients."""

    step: int = Field(ge=0)
    best: dict[str, float]
    gradient_scaler: dict[str, int | float] | None = None

    @field_validator("best")
    @classmethod
    def _check_best(cls, best: dict[str, float]) -> dict[str, float]:
        if best and not best.get("step", math.nan).is_integer():
            raise ValueError("has scores, but not the step that they are of")
        return best


def save_checkpoint(state: TrainingState, experiment: Experiment, folder: Path) -> Path:
    """Writes `folder/step_00001234`; gives its path."""
    target = folder / f"step_{state.step:08d}"
    delete_leftovers(folder)
    with make_folder_whole(target) as temporary:
        for name, tensors in state_tensors(state).items():
            save_tensors(tensors, temporary, name, max_bytes=experiment.checkpoint_max_file_bytes)
        scaler = None if state.scaler is None else state.scaler.state_dict()
        progress = {"step": state.step, "best": state.best, "gradient_scaler": scaler}
        write_whole(temporary / "progress.json", json.dumps(progress, indent=2), is_durable=True)
        write_whole(
            temporary / "experiment.json", experiment.model_dump_json(indent=2), is_durable=True
        )
    return target


def load_checkpoint(state: TrainingState, experiment: Experiment, checkpoint: Path) -> None:
    """Puts a checkpoint or kit of the same experiment into `state`, in place.

    The experiment may differ in `num_steps` (schedules then end at the new end), in optimizers and
    in what is measured and kept; differences in the course of learning are logged. Scores on other
    clips do not compare: the best so far is then forgotten.

    Raises CheckpointError for a damaged or incomplete checkpoint and for one of another
    experiment; `state` is then not to be used.
    """
    saved = load_experiment(checkpoint)
    _check_same_run(saved, experiment, checkpoint)
    path = checkpoint / "progress.json"
    try:
        progress = build_record(_Progress, _read_json(path), source=str(path))
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint} is damaged: {error}") from error
    files = {name: _read_tensors(checkpoint, name) for name in state_tensors(state)}
    try:
        load_state_tensors(state, files)
    except StateError as error:
        raise CheckpointError(f"{checkpoint} is damaged: {error}") from error
    state.step, state.best = progress.step, dict(progress.best)
    if state.best and _validated_clips(saved) != _validated_clips(experiment):
        logger.info("validation is on other clips now: the best so far does not count")
        state.best = {}
    if state.scaler is not None and progress.gradient_scaler:
        try:
            state.scaler.load_state_dict(progress.gradient_scaler)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is damaged: gradient_scaler: {error!r}") from error


def _validated_clips(experiment: Experiment) -> tuple[object, ...]:
    """What decides which clips a validation scores."""
    config = experiment.validation
    return experiment.data.valid_manifest, config.max_clips, config.max_samples


def load_experiment(checkpoint: Path) -> Experiment:
    """The experiment saved with a checkpoint."""
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}")
    path = checkpoint / "experiment.json"
    try:
        return build_record(Experiment, _read_json(path), source=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def initialize_from(state: TrainingState, source: Path) -> None:
    """Starts a run from the weights of a checkpoint, of a kit or of a codec folder (or Hub id).

    The averaged codec of a checkpoint or the codec of a folder, and the discriminators where they
    lie beside it, as they do beside the bundled model. Optimizers start anew, and so does a
    decoder, or an adversary, of another kind or size than the source's.

    Raises CheckpointError where the networks differ.
    """
    if (source / "experiment.json").is_file():
        config, weights = load_experiment(source).codec, _averaged_weights(source)
    else:
        codec = Codec.from_pretrained(source)
        add_weight_norm(codec)
        config, weights = codec.config, codec.state_dict()
    target = state.averaged_codec
    if _network(config) != _network(target.config):
        raise CheckpointError(f"the codec in {source} has another network than [codec] describes")
    # A run may begin with other teachers than its source had, or with another decoder.
    anew = [_FEATURE_MAP] * (config.feature_dim != target.config.feature_dim)
    anew += [_DECODER] * (config.decoder != target.config.decoder)
    adversary: dict[str, Tensor] = {}
    if state.discriminators is not None and are_there(source, "discriminators"):
        adversary = _read_tensors(source, "discriminators")
        if _shapes(adversary) != _shapes(unwrapped(state.discriminators).state_dict()):
            adversary = {}
            logger.info("not from %s, but new: discriminators", source)
    if anew:
        fresh = target.state_dict()
        weights = {k: v for k, v in weights.items() if not k.startswith(tuple(anew))}
        weights |= {k: v for k, v in fresh.items() if k.startswith(tuple(anew))}
        logger.info(
            "not from %s, but new: %s", source, ", ".join(each.rstrip(".") for each in anew)
        )
    try:
        load_module(target, weights, "codec")
        load_module(unwrapped(state.codec), weights, "codec")
        if state.discriminators is not None and adversary:
            load_module(unwrapped(state.discriminators), adversary, "discriminators")
    except StateError as error:
        raise CheckpointError(f"{source}: {error}") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name))


def prune_checkpoints(folder: Path, *, keep_last: int, best_step: int | None) -> None:
    """Deletes all but the last few checkpoints and the best."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if best_step is None or path.name != f"step_{best_step:08d}":
            delete_folder(path)


def export_codec(codec: Codec, folder: Path, max_file_bytes: int | None = None) -> None:
    """Writes a codec in training form as a codec folder with plain weights."""
    # Built anew: copies share their parametrized classes, so removing the weight norm of a copy
    # would break the original. A run's random state stays as it is.
    with torch.random.fork_rng(devices=[]):
        plain = Codec(codec.config)
    add_weight_norm(plain)
    plain.load_state_dict(codec.state_dict())
    remove_weight_norm(plain)
    plain.save_pretrained(folder, max_file_bytes=max_file_bytes)


def _check_same_run(saved: Experiment, experiment: Experiment, checkpoint: Path) -> None:
    """Refuses a checkpoint of another experiment; logs what a resumed run changes of its course."""
    before, now = (_flat(each.model_dump(mode="json")) for each in (saved, experiment))
    different = sorted(key for key in before | now if before.get(key) != now.get(key))
    free = [k for k in different if any(f"{k}.".startswith(f"{each}.") for each in _FREE_ON_RESUME)]
    refused = [key for key in different if key not in free]
    if refused:
        raise CheckpointError(
            f"{checkpoint} was made with another {', '.join(refused)}: resume with the same"
            " configuration, or start a new run with init_from"
        )
    for key in free:
        logger.info("changed on resuming: %s from %s to %s", key, before.get(key), now.get(key))


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with keys `group.key`."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _network(config: CodecConfig) -> dict[str, Any]:
    """What weights must agree in: encoder and books, but not how the books are learned."""
    table = config.model_dump(mode="json", exclude={"feature_dim", "decoder"})
    sizes = ("num_codebooks", "codebook_size")
    return table | {"quantizer": {name: table["quantizer"][name] for name in sizes}}


def _averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged codec's tensors under the codec's own names."""
    tensors = _read_tensors(checkpoint, "average")
    prefix = "module."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_tensors(checkpoint, name)[0]
    except TensorFileError as error:
        raise CheckpointError(str(error)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return table
