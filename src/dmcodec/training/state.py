"""Everything a training run holds. How it is saved and found again is in checkpoint.py."""

import warnings
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dmcodec.codec.conv import add_weight_norm
from dmcodec.codec.model import Codec
from dmcodec.discriminators.ensemble import Discriminators
from dmcodec.training.experiment import Experiment, OptimizerConfig
from dmcodec.training.guidance import make_heads


class StateError(ValueError):
    """Tensors that do not fit the run they are loaded into."""


@dataclass
class TrainingState:
    """The moving parts of a run; `step` counts finished steps.

    `codec` and `discriminators` are a `Codec` and `Discriminators` in training form (weight
    normalization), wrapped where several processes work together: see `unwrapped`. `heads` are
    layers that only some guides need (guidance.py); they learn with the codec.
    """

    codec: nn.Module
    average: AveragedModel
    optimizer: Optimizer
    discriminators: nn.Module | None
    discriminator_optimizer: Optimizer | None
    heads: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)

    @property
    def averaged_codec(self) -> Codec:
        """The codec with averaged weights: what is validated and exported."""
        module = self.average.module
        assert isinstance(module, Codec)
        return module


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, without the wrapper of several processes."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def new_state(experiment: Experiment) -> TrainingState:
    """A freshly initialised run; the caller has seeded torch."""
    codec = Codec(experiment.codec)
    add_weight_norm(codec)
    if experiment.is_encoder_frozen:
        codec.encoder.requires_grad_(False)
    average = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(experiment.average_decay))  # type: ignore[no-untyped-call]
    average.eval()
    discriminators, discriminator_optimizer = None, None
    if experiment.adversary is not None:
        discriminators = Discriminators(experiment.adversary.networks)
        discriminator_optimizer = _adamw(discriminators, experiment.adversary.optimizer)
    heads = make_heads(experiment.distillation, experiment.codec.seanet.latent_dim)
    return TrainingState(
        codec,
        average,
        _adamw(codec if heads is None else nn.ModuleList([codec, heads]), experiment.optimizer),
        discriminators,
        discriminator_optimizer,
        heads,
    )


def place(state: TrainingState, accelerator: Accelerator) -> None:
    """Moves everything to the process's device and wraps it for several processes.

    Comes before weights and optimizers are loaded: an optimizer's step counts then stay on the
    CPU, where AdamW reads them without waiting for a GPU.
    """
    state.average.to(accelerator.device)
    with warnings.catch_warnings():
        # torch 2.13 renamed broadcast_buffers; accelerate knows the old name only.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        state.codec, state.optimizer = accelerator.prepare(state.codec, state.optimizer)
        if state.discriminators is not None:
            state.discriminators, state.discriminator_optimizer = accelerator.prepare(
                state.discriminators, state.discriminator_optimizer
            )
        if state.heads is not None:
            state.heads = accelerator.prepare(state.heads)
    state.scaler = accelerator.scaler


def state_tensors(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """All tensors of a run, by the file of a checkpoint that they belong to."""
    files = {
        "codec": unwrapped(state.codec).state_dict(),
        "average": state.average.state_dict(),
        "optimizer": _optimizer_tensors(state.optimizer),
    }
    if state.discriminators is not None and state.discriminator_optimizer is not None:
        files["discriminators"] = unwrapped(state.discriminators).state_dict()
        files["discriminator_optimizer"] = _optimizer_tensors(state.discriminator_optimizer)
    if state.heads is not None:
        files["heads"] = unwrapped(state.heads).state_dict()
    return files


def load_state_tensors(state: TrainingState, files: dict[str, dict[str, Tensor]]) -> None:
    """Puts what `state_tensors` gave (in any precision) into a state of the same experiment.

    Raises StateError naming the file; `state` is then not to be used.
    """
    load_module(unwrapped(state.codec), files["codec"], "codec")
    load_module(state.average, files["average"], "average")
    _load_optimizer(state.optimizer, files["optimizer"], "optimizer")
    if state.discriminators is not None and state.discriminator_optimizer is not None:
        load_module(unwrapped(state.discriminators), files["discriminators"], "discriminators")
        name = "discriminator_optimizer"
        _load_optimizer(state.discriminator_optimizer, files[name], name)
    if state.heads is not None:
        load_module(unwrapped(state.heads), files["heads"], "heads")


def load_module(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Loads all tensors of a module; raises StateError where names or shapes differ."""
    expected = module.state_dict()
    problems = sorted(expected.keys() ^ tensors.keys())
    problems += [n for n, v in tensors.items() if n in expected and v.shape != expected[n].shape]
    if problems:
        raise StateError(
            f"{name} does not fit this experiment: {len(problems)} tensors are missing, "
            f"unexpected or of another shape, such as {problems[0]}"
        )
    for key, value in tensors.items():
        if expected[key].is_floating_point() and not (
            value.is_floating_point() and bool(torch.isfinite(value).all())
        ):
            raise StateError(f"{name}: {key} holds something else than finite numbers")
    module.load_state_dict(tensors)


def _adamw(module: nn.Module, config: OptimizerConfig) -> AdamW:
    return AdamW(
        [each for each in module.parameters() if each.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as `<parameter number>.<name>`; the rest is in the experiment."""
    return {
        f"{number}.{name}": value
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], name: str) -> None:
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, field_name = key.partition(".")
        if not number.isdecimal() or not value.is_floating_point():
            raise StateError(f"{name} does not fit this experiment, see its tensor {key}")
        is_low = field_name != "exp_avg" and bool((value < 0).any())
        if is_low or not bool(torch.isfinite(value).all()):
            raise StateError(f"{name}: {key} holds what no optimizer has: NaN, infinite, below 0")
        entries.setdefault(int(number), {})[field_name] = value
    for index, entry in entries.items():
        is_complete = entry.keys() == {"step", "exp_avg", "exp_avg_sq"} and index < len(parameters)
        shapes = {k: v.shape for k, v in entry.items()}
        if not is_complete or shapes != {
            "step": torch.Size(()),
            "exp_avg": parameters[index].shape,
            "exp_avg_sq": parameters[index].shape,
        }:
            raise StateError(f"{name} does not fit this experiment, see its parameter {index}")
    optimizer.load_state_dict(
        {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}
    )
