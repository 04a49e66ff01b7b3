"""The training run, from an experiment to a codec folder, top to bottom.

What one step does is in step.py, what a run holds in state.py, how it is saved in checkpoint.py.
The run's folder gets:

    checkpoints/step_00001000/   everything needed to go on; also the fine-tuning kit
    codec/                       the best codec so far by the chosen measure (averaged weights);
                                 without validation the latest
    metrics.jsonl  tensorboard/  logs; their keys are in tracker.py
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from dmcodec.audio import samples_to_seconds
from dmcodec.codec.model import Codec
from dmcodec.corpus.manifest import read_manifests
from dmcodec.corpus.sources import read_utterance
from dmcodec.data.dataset import SegmentDataset
from dmcodec.data.loader import SegmentBatch, make_train_loader
from dmcodec.storage import is_unused, lock_folder
from dmcodec.training.checkpoint import (
    export_codec,
    initialize_from,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from dmcodec.training.display import Display
from dmcodec.training.experiment import Experiment
from dmcodec.training.guidance import Guidance
from dmcodec.training.interruption import Deadline, Interruption
from dmcodec.training.state import TrainingState, new_state, place
from dmcodec.training.step import train_step
from dmcodec.training.tracker import Tracker
from dmcodec.training.validation import check_clips, is_better, validate

logger = logging.getLogger(__name__)

_LEAST_EQUAL_CODES = 0.99


class TrainingResult(NamedTuple):
    """How far a run is, and the last validation's scores.

    The scores are empty where none was made: without clips, or when nothing was left to do.
    """

    step: int
    scores: dict[str, float]


def train(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    stop_after_s: float | None = None,
) -> TrainingResult:
    """Trains until `experiment.num_steps`, or for a time, after which the run can be resumed.

    Ctrl-C or SIGTERM saves a checkpoint after the step at hand and then takes effect (one process
    only; several go on from their last checkpoint).

    Args:
        experiment: what to train.
        folder: of the run; must be new or empty unless `resume`.
        resume: go on from the folder's last checkpoint, or begin where there is none yet.
        device: "auto" (what accelerate finds, or the CPU), "cpu" or "cuda".
        stop_after_s: so many seconds from now no further step begins, and a checkpoint is saved;
            a validation that is due and the saving come on top. None: no limit.

    Raises FolderInUse while another run writes there, ValueError for a folder that holds something
    else, a checkpoint of another experiment or an unknown device,
    FileNotFoundError for missing data, TrainingDiverged when a loss is no longer finite.
    """
    accelerator = _make_accelerator(experiment, device)
    deadline = Deadline(stop_after_s, accelerator)
    with lock_folder(folder) if accelerator.is_main_process else nullcontext():
        result = _train(experiment, folder, accelerator, resume, deadline)
    if accelerator.num_processes > 1:
        # Threads that still wait for other processes would abort this one when it exits.
        accelerator.wait_for_everyone()
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)
    return result


def _train(
    experiment: Experiment,
    folder: Path,
    accelerator: Accelerator,
    resume: bool,
    deadline: Deadline,
) -> TrainingResult:
    """`train` in a folder that is this run's alone."""
    checkpoint = _find_checkpoint(folder, resume)
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked

    torch.manual_seed(experiment.seed)
    state = new_state(experiment)
    place(state, accelerator)
    logger.info(
        "torch %s on %s, %d processes, mixed precision %s, codec of %.2f M parameters",
        torch.__version__,
        accelerator.device,
        accelerator.num_processes,
        accelerator.mixed_precision,
        sum(each.numel() for each in state.codec.parameters()) / 1e6,
    )
    _load(state, experiment, checkpoint)
    if checkpoint is not None and state.step == experiment.num_steps:
        return TrainingResult(state.step, {})  # all speech would be decoded for nothing
    check_clips(experiment)
    guidance = _open_guidance(experiment, accelerator)
    loader = _open_speech(state, experiment, accelerator, guidance)

    is_main, num_steps = accelerator.is_main_process, experiment.num_steps
    scores: dict[str, float] = {}
    with ExitStack() as stack:
        tracker = (
            stack.enter_context(closing(Tracker(folder, experiment.codec.sample_rate, state.step)))
            if is_main
            else None
        )
        display = stack.enter_context(Display(state.step, num_steps, is_shown=is_main))
        interruption = stack.enter_context(Interruption(is_watching=accelerator.num_processes == 1))
        speed = _Speed(state.step)
        for batch in speed.watch(loader):
            batch = batch.to(accelerator.device)
            terms = train_step(state, experiment, batch, accelerator, guidance)
            is_last = state.step == num_steps
            is_stopping = deadline.is_over or interruption.is_asked_for

            is_new_best = False
            if is_last or state.step % experiment.validation.every_steps == 0:
                scores = validate(state, experiment, accelerator, tracker, guidance)
                is_new_best = _note_if_best(state, experiment, scores)
                if is_main and (is_new_best or not state.best):
                    bound = experiment.checkpoint_max_file_bytes
                    export_codec(state.averaged_codec, folder / "codec", bound)

            if is_last or state.step % experiment.log_every_steps == 0:
                terms = accelerator.reduce(terms, "mean")
                if tracker is not None:
                    steps_per_s, wait_per_s = speed.since_last(state.step)
                    values = _training_scalars(state, experiment, terms, steps_per_s, wait_per_s)
                    tracker.scalars(state.step, values)
                    display.update(state.step, steps_per_s, _figures(values, scores))

            is_due = state.step % experiment.checkpoint_every_steps == 0
            if is_due or is_last or is_new_best or is_stopping:
                if is_main:
                    _checkpoint(state, experiment, folder / "checkpoints")
                accelerator.wait_for_everyone()
            if is_stopping:
                interruption.leave()
                break
    return TrainingResult(state.step, scores)


def check_training_device(device: str) -> None:
    """Raises ValueError unless `train` takes this device, and has it."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"training runs on auto, cpu or cuda, not on {device!r}; CUDA_VISIBLE_DEVICES chooses "
            "among several GPUs"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' cannot be used: torch finds no GPU")


def _make_accelerator(experiment: Experiment, device: str) -> Accelerator:
    check_training_device(device)
    AcceleratorState._reset_state()  # of an earlier run in this process, perhaps another precision
    accelerator = Accelerator(
        # accelerate joins several processes without a GPU only when told that there is none.
        cpu=device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision=experiment.mixed_precision,
        # Codebooks agree by construction; averaging them over processes would undo that.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if device not in ("auto", accelerator.device.type):
        raise ValueError(
            f"this process trained on {accelerator.device.type} before: start another for {device}"
        )
    if "LOCAL_RANK" in os.environ and accelerator.num_processes != int(os.environ["WORLD_SIZE"]):
        raise ValueError(
            f"accelerate cannot join processes on {accelerator.device.type}: give --device cpu, or "
            "start one process"
        )
    return accelerator


def _find_checkpoint(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from; None to begin."""
    if resume:
        existing = list_checkpoints(folder / "checkpoints")
        return existing[-1] if existing else None
    if not is_unused(folder):
        raise ValueError(
            f"{folder} is in use: give --resume to go on with the run in it, or name a new folder"
        )
    return None


def _load(state: TrainingState, experiment: Experiment, checkpoint: Path | None) -> None:
    """Fills the state from the run's checkpoint, or else from what the experiment starts from."""
    if checkpoint is not None:
        load_checkpoint(state, experiment, checkpoint)
        if state.step > experiment.num_steps:
            raise ValueError(
                f"{checkpoint} is beyond num_steps = {experiment.num_steps}: give a larger number"
            )
        logger.info("resumed %s at step %d of %d", checkpoint, state.step, experiment.num_steps)
    elif experiment.init_from is not None:
        initialize_from(state, experiment.init_from)
        logger.info("started from the weights in %s", experiment.init_from)


def _open_guidance(experiment: Experiment, accelerator: Accelerator) -> Guidance | None:
    """The teachers of an experiment that has some."""
    if experiment.distillation is None:
        return None
    return Guidance(experiment.distillation, experiment.codec, str(accelerator.device))


def _open_speech(
    state: TrainingState,
    experiment: Experiment,
    accelerator: Accelerator,
    guidance: Guidance | None,
) -> Iterable[Any]:
    """The batches from the state's step on."""
    stores = guidance.stores if guidance is not None else None
    dataset = SegmentDataset(
        read_manifests(experiment.data.train_manifests, columns=experiment.data.columns),
        experiment.data,
        seed=experiment.seed,
        stores=stores,
    )
    if experiment.data.codes is not None:
        _check_codes(dataset, state.averaged_codec)
    return make_train_loader(
        dataset,
        global_batch_size=experiment.batch_size,
        first_step=state.step,
        end_step=experiment.num_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=experiment.num_workers,
        use_pinned_memory=accelerator.device.type == "cuda",
    )


def _check_codes(dataset: SegmentDataset, codec: Codec) -> None:
    """Raises ValueError unless the stored codes are this codec's: those of one recording are."""
    shortest = int(dataset.num_samples.argmin())
    utterance = dataset.utterances[shortest]
    waveform = read_utterance(utterance, sample_rate=codec.config.sample_rate)
    codes = codec.encode(waveform).codes[0].cpu()
    stored = dataset.codes(shortest)[:, : codes.shape[1]]
    is_equal = codes[:, : stored.shape[1]] == stored
    # Nearly equal entries may change places where sums are taken in another order.
    if float(is_equal.float().mean()) < _LEAST_EQUAL_CODES:
        raise ValueError(
            f"{dataset.config.codes} holds other codes of {utterance.id!r} than the codec of this "
            "run gives: tokenize the training lists with the codec of init_from"
        )


def _note_if_best(state: TrainingState, experiment: Experiment, scores: dict[str, float]) -> bool:
    """Whether the chosen measure is the best so far; if so, the state keeps these scores."""
    measure = experiment.validation.select_by
    if measure not in scores or not is_better(measure, scores[measure], state.best.get(measure)):
        return False
    state.best = {"step": float(state.step), **scores}
    return True


def _checkpoint(state: TrainingState, experiment: Experiment, folder: Path) -> None:
    """Saves everything, then deletes the checkpoints that are no longer kept."""
    save_checkpoint(state, experiment, folder)
    best_step = int(state.best["step"]) if state.best else None
    prune_checkpoints(folder, keep_last=experiment.keep_last, best_step=best_step)


class _Speed:
    """Steps a second between two questions, and how much of a second waits for batches."""

    def __init__(self, step: int) -> None:
        self._step, self._time, self._wait_s = step, time.monotonic(), 0.0

    def watch(self, loader: Iterable[Any]) -> Iterator[SegmentBatch]:
        """The loader's batches; the time that each lets wait is counted."""
        batches = iter(loader)
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self._wait_s += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def since_last(self, step: int) -> tuple[float, float]:
        """Steps, and seconds of waiting, a second from the last call (or the start) to now."""
        num_steps, self._step = step - self._step, step
        started, self._time = self._time, time.monotonic()
        wait_s, self._wait_s = self._wait_s, 0.0
        return num_steps / (self._time - started), wait_s / (self._time - started)


def _training_scalars(
    state: TrainingState,
    experiment: Experiment,
    terms: dict[str, Tensor],
    steps_per_s: float,
    wait_per_s: float,
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
    values["train/data_wait_s_per_s"] = wait_per_s
    return values


def _figures(values: dict[str, float], scores: dict[str, float]) -> str:
    """The figures of the progress line."""
    used = [value for key, value in values.items() if key.startswith("train/usage_")]
    parts = [f"loss {values['train/loss_total']:.2f}"]
    parts += [
        f"{name} {values[f'train/loss_{name}']:.3f}"
        for name in ("mel", "feature_matching")
        if f"train/loss_{name}" in values
    ]
    parts += [f"codes used {sum(used) / len(used):.0%}"]
    parts += [f"{values['train/audio_s_per_s']:.1f} s audio/s"]
    parts += [f"{name} {value:.3f}" for name, value in scores.items()]
    return "  ".join(parts)
