"""Everything a training run holds, and checkpoints that hold everything.

A checkpoint is a folder of safetensors and JSON that appears whole (written under a temporary
name, then renamed), so a run killed at any moment goes on from the last one. It doubles as the
fine-tuning kit: generator, discriminators, averages and both optimizers.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmcodec.codec.conv import add_weight_norm
from dmcodec.codec.model import Codec
from dmcodec.config import build_record
from dmcodec.discriminators.ensemble import Discriminators
from dmcodec.training.experiment import Experiment, OptimizerConfig

_CHECKPOINT_NAME = re.compile(r"step_(\d{8})")


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or of another experiment."""


@dataclass
class TrainingState:
    """The moving parts of a run; `step` counts finished steps."""

    codec: Codec
    average: AveragedModel
    optimizer: Optimizer
    discriminators: Discriminators | None
    discriminator_optimizer: Optimizer | None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)

    @property
    def averaged_codec(self) -> Codec:
        """The codec with averaged weights: what is validated and exported."""
        module = self.average.module
        assert isinstance(module, Codec)
        return module


def new_state(experiment: Experiment) -> TrainingState:
    """A freshly initialised run; the caller has seeded torch."""
    codec = Codec(experiment.codec)
    add_weight_norm(codec)
    average = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(experiment.average_decay))  # type: ignore[no-untyped-call]
    average.eval()
    discriminators, discriminator_optimizer = None, None
    if experiment.adversary is not None:
        discriminators = Discriminators(experiment.adversary.networks)
        discriminator_optimizer = _adamw(discriminators, experiment.adversary.optimizer)
    return TrainingState(
        codec,
        average,
        _adamw(codec, experiment.optimizer),
        discriminators,
        discriminator_optimizer,
    )


def save_checkpoint(state: TrainingState, experiment: Experiment, folder: Path) -> Path:
    """Writes `folder/step_00001234`; gives its path."""
    target = folder / f"step_{state.step:08d}"
    temporary = folder / f".writing_{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, tensors in _tensors(state).items():
        _save_tensors(tensors, temporary / f"{name}.safetensors")
    progress = {"step": state.step, "best": state.best}
    _write_text(temporary / "progress.json", json.dumps(progress, indent=2))
    _write_text(temporary / "experiment.json", experiment.model_dump_json(indent=2))
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    return target


def load_checkpoint(state: TrainingState, experiment: Experiment, checkpoint: Path) -> None:
    """Puts a checkpoint of the same experiment into `state`, in place."""
    saved = load_experiment(checkpoint)
    if _identity(saved) != _identity(experiment):
        different = [
            key
            for key, value in _identity(experiment).items()
            if value != _identity(saved).get(key)
        ]
        raise CheckpointError(
            f"{checkpoint} was made with another {', '.join(different)}: resume with the same"
            " configuration, or start a new run with init_from"
        )
    try:
        progress = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
        loaded = {name: load_file(checkpoint / f"{name}.safetensors") for name in _tensors(state)}
    except Exception as error:  # safetensors raises its own type for a damaged file
        raise CheckpointError(f"cannot read checkpoint {checkpoint}: {error}") from error
    state.codec.load_state_dict(loaded["codec"])
    state.average.load_state_dict(loaded["average"])
    _load_optimizer(state.optimizer, loaded["optimizer"])
    if state.discriminators is not None and state.discriminator_optimizer is not None:
        state.discriminators.load_state_dict(loaded["discriminators"])
        _load_optimizer(state.discriminator_optimizer, loaded["discriminator_optimizer"])
    state.step = int(progress["step"])
    state.best = dict(progress["best"])


def load_experiment(checkpoint: Path) -> Experiment:
    """The experiment saved with a checkpoint."""
    path = checkpoint / "experiment.json"
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint: {path.name} is missing")
    table = json.loads(path.read_text(encoding="utf-8"))
    return build_record(Experiment, table, source=str(path))


def initialize_from(state: TrainingState, folder: Path) -> None:
    """Starts a run from the weights of a checkpoint (fine-tuning kit) or of a codec folder.

    From a checkpoint come the averaged codec and, where both have them, the discriminators; from
    a codec folder the codec alone. Optimizers start anew.
    """
    if (folder / "average.safetensors").is_file():
        tensors = load_file(folder / "average.safetensors")
        weights = {k[len("module.") :]: v for k, v in tensors.items() if k.startswith("module.")}
        state.codec.load_state_dict(weights)
    else:
        source = Codec.from_pretrained(folder)
        if source.config != state.codec.config:
            raise CheckpointError(f"the codec in {folder} has another configuration than the run")
        add_weight_norm(source)
        state.codec.load_state_dict(source.state_dict())
    state.average.module.load_state_dict(state.codec.state_dict())
    path = folder / "discriminators.safetensors"
    if state.discriminators is not None and path.is_file():
        weights = {k: v.float() for k, v in load_file(path).items()}
        state.discriminators.load_state_dict(weights)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name))


def prune_checkpoints(folder: Path, *, keep_last: int, best_step: int | None) -> None:
    """Deletes all but the last few checkpoints and the best."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if best_step is None or path.name != f"step_{best_step:08d}":
            shutil.rmtree(path)


def _adamw(module: nn.Module, config: OptimizerConfig) -> AdamW:
    return AdamW(
        module.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


def _tensors(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """All tensors of a run, by file."""
    files = {
        "codec": state.codec.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": _optimizer_tensors(state.optimizer),
    }
    if state.discriminators is not None and state.discriminator_optimizer is not None:
        files["discriminators"] = state.discriminators.state_dict()
        files["discriminator_optimizer"] = _optimizer_tensors(state.discriminator_optimizer)
    return files


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as `<parameter number>.<name>`; the rest is in the experiment."""
    return {
        f"{number}.{name}": value
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        entries.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(
        {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _identity(experiment: Experiment) -> dict[str, object]:
    """What must not change over a resume; how often things are logged may."""
    free = {"num_workers", "checkpoint_every_steps", "keep_last", "log_every_steps", "validation"}
    return experiment.model_dump(mode="json", exclude=free)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
