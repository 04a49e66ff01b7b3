"""The training run, from an experiment to a codec folder, top to bottom.

What one step does is in step.py, what a run holds and how it is saved in state.py. The run's
folder gets:

    checkpoints/step_00001000/   everything needed to go on; also the fine-tuning kit
    codec/                       the best codec so far by the chosen measure (averaged weights)
    metrics.jsonl  tensorboard/  logs
"""

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from dmcodec.audio import samples_to_seconds
from dmcodec.codec.conv import add_weight_norm, remove_weight_norm
from dmcodec.codec.model import Codec
from dmcodec.data.dataset import SegmentDataset
from dmcodec.data.loader import make_train_loader, validation_clips
from dmcodec.manifest import read_manifest, read_manifests
from dmcodec.training.experiment import Experiment
from dmcodec.training.state import (
    TrainingState,
    initialize_from,
    list_checkpoints,
    load_checkpoint,
    new_state,
    prune_checkpoints,
    save_checkpoint,
)
from dmcodec.training.step import train_step
from dmcodec.training.tracker import Tracker
from dmcodec.training.validation import is_better, log_mel_image, mean_scores, validate_clips

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment, folder: Path, *, resume: bool = False, device: str = "auto"
) -> dict[str, float]:
    """Trains until `experiment.num_steps`; gives the last validation's scores.

    Args:
        experiment: what to train.
        folder: of the run; must be new or empty unless `resume`.
        resume: go on from the folder's last checkpoint, or begin where there is none yet.
        device: "auto" (what accelerate finds) or "cpu".

    Raises ValueError for a folder in use or a checkpoint of another experiment, FileNotFoundError
    for missing data, TrainingDiverged when a loss is no longer finite.
    """
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=experiment.mixed_precision,
        # Codebooks agree by construction; averaging them over processes would undo that.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    checkpoints = folder / "checkpoints"
    existing = list_checkpoints(checkpoints)
    if existing and not resume:
        raise ValueError(f"{folder} holds a run already: give --resume to go on with it")
    accelerator.wait_for_everyone()

    torch.manual_seed(experiment.seed)
    state = new_state(experiment)
    if existing:
        load_checkpoint(state, experiment, existing[-1])
        logger.info("resumed %s at step %d", existing[-1], state.step)
    elif experiment.init_from is not None:
        initialize_from(state, experiment.init_from)
        logger.info("started from the weights in %s", experiment.init_from)
    _place(state, accelerator)

    dataset = SegmentDataset(
        read_manifests(experiment.data.train_manifests), experiment.data, seed=experiment.seed
    )
    loader = make_train_loader(
        dataset,
        global_batch_size=experiment.batch_size,
        first_step=state.step,
        end_step=experiment.num_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=experiment.num_workers,
    )
    tracker = Tracker(folder, experiment.codec.sample_rate) if accelerator.is_main_process else None
    scores: dict[str, float] = {}
    started, started_step = time.monotonic(), state.step
    with _progress(accelerator.is_main_process) as progress:
        task = progress.add_task(
            "training", total=experiment.num_steps, completed=state.step, figures=""
        )
        for batch in loader:
            batch = batch._replace(waveform=batch.waveform.to(accelerator.device))
            terms = train_step(state, experiment, batch, accelerator)
            is_last = state.step == experiment.num_steps

            if tracker is not None and (is_last or state.step % experiment.log_every_steps == 0):
                rate = (state.step - started_step) / (time.monotonic() - started)
                values = _training_scalars(state, experiment, terms, rate)
                tracker.scalars(state.step, values)
                progress.update(task, completed=state.step, figures=_summary(values, scores))

            if is_last or state.step % experiment.validation.every_steps == 0:
                scores = _validate(state, experiment, accelerator, tracker)
                _export_if_best(state, experiment, accelerator, folder, scores)

            if is_last or state.step % experiment.checkpoint_every_steps == 0:
                if accelerator.is_main_process:
                    save_checkpoint(_unwrapped(state, accelerator), experiment, checkpoints)
                    best_step = state.best.get("step")
                    prune_checkpoints(
                        checkpoints,
                        keep_last=experiment.keep_last,
                        best_step=None if best_step is None else int(best_step),
                    )
                accelerator.wait_for_everyone()
    if tracker is not None:
        tracker.close()
    return scores


def _place(state: TrainingState, accelerator: Accelerator) -> None:
    """Moves everything to the process's device and wraps it for several processes."""
    state.average.to(accelerator.device)
    state.codec, state.optimizer = accelerator.prepare(state.codec, state.optimizer)
    if state.discriminators is not None:
        state.discriminators, state.discriminator_optimizer = accelerator.prepare(
            state.discriminators, state.discriminator_optimizer
        )


def _unwrapped(state: TrainingState, accelerator: Accelerator) -> TrainingState:
    """The same state without the wrappers of several processes."""
    discriminators = state.discriminators
    if discriminators is not None:
        discriminators = accelerator.unwrap_model(discriminators)
    return replace(
        state, codec=accelerator.unwrap_model(state.codec), discriminators=discriminators
    )


def _validate(
    state: TrainingState,
    experiment: Experiment,
    accelerator: Accelerator,
    tracker: Tracker | None,
) -> dict[str, float]:
    """Scores of the averaged codec on held-out speakers; every process takes its share."""
    config = experiment.validation
    if experiment.data.valid_manifest is None:
        return {}
    utterances = read_manifest(experiment.data.valid_manifest)[: config.max_clips]
    clips = validation_clips(
        utterances,
        sample_rate=experiment.codec.sample_rate,
        max_samples=config.max_samples,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    local = []
    for number, clip in enumerate(validate_clips(state.averaged_codec, clips)):
        local.append(clip.scores)
        if tracker is not None and number < config.num_logged_clips:
            sample_rate = experiment.codec.sample_rate
            for kind, waveform in (("original", clip.reference), ("decoded", clip.decoded)):
                name = f"valid/{clip.utterance_id}/{kind}"
                tracker.clip(state.step, name, waveform, log_mel_image(waveform, sample_rate))
    scores = mean_scores(local)
    if tracker is not None:
        tracker.scalars(state.step, {f"valid/{name}": value for name, value in scores.items()})
    return scores


def _export_if_best(
    state: TrainingState,
    experiment: Experiment,
    accelerator: Accelerator,
    folder: Path,
    scores: dict[str, float],
) -> None:
    """Writes the averaged codec when it is the best so far (always, without validation)."""
    measure = experiment.validation.select_by
    if measure in scores:
        if not is_better(measure, scores[measure], state.best.get(measure)):
            return
        state.best = {"step": float(state.step), **scores}
    if accelerator.is_main_process:
        export_codec(state.averaged_codec, folder / "codec")


def export_codec(codec: Codec, folder: Path) -> None:
    """Writes a codec in training form as a codec folder with plain weights."""
    plain = Codec(codec.config)
    add_weight_norm(plain)
    plain.load_state_dict(codec.state_dict())
    remove_weight_norm(plain)
    plain.save_pretrained(folder)


def _training_scalars(
    state: TrainingState, experiment: Experiment, terms: dict[str, Tensor], steps_per_s: float
) -> dict[str, float]:
    """One log line: losses, learning rate, codebook health, speed."""
    usage = state.averaged_codec.quantizer.usage()
    segment_s = samples_to_seconds(experiment.data.segment_samples, experiment.data.sample_rate)
    values = {
        "train/gradient_norm" if name == "gradient_norm" else f"train/loss_{name}": float(term)
        for name, term in terms.items()
    }
    values["train/learning_rate"] = state.optimizer.param_groups[0]["lr"]
    for book in range(experiment.codec.quantizer.num_codebooks):
        values[f"train/usage_{book + 1}"] = float(usage.used[book])
        values[f"train/perplexity_{book + 1}"] = float(usage.perplexity[book])
    values["train/steps_per_s"] = steps_per_s
    values["train/audio_s_per_s"] = steps_per_s * experiment.batch_size * segment_s
    return values


def _summary(values: dict[str, float], scores: dict[str, float]) -> str:
    """The figures of the progress line."""
    num_books = sum(key.startswith("train/usage_") for key in values)
    used = sum(values[f"train/usage_{book + 1}"] for book in range(num_books)) / num_books
    parts = [f"loss {values['train/loss_total']:.2f}"]
    parts += [
        f"{name} {values[f'train/loss_{name}']:.3f}"
        for name in ("mel", "feature_matching")
        if f"train/loss_{name}" in values
    ]
    parts += [f"codes used {used:.0%}", f"{values['train/audio_s_per_s']:.1f} s audio/s"]
    parts += [f"{name} {value:.3f}" for name, value in scores.items()]
    return "  ".join(parts)


def _progress(is_shown: bool) -> Progress:
    return Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        disable=not is_shown,
        refresh_per_second=2,
    )
