"""How good the codec is on held-out speakers, during training.

Every clip is encoded and decoded whole with the averaged weights. A measure that has no value for
a clip is left out of its mean, and the log says so.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from dmcodec.audio import Waveform
from dmcodec.codec.model import Codec, WaveformError
from dmcodec.codec.quantizer import LatentsError
from dmcodec.corpus.manifest import Utterance, read_manifests
from dmcodec.corpus.sources import find_source
from dmcodec.data.loader import ValidationClip, validation_clips
from dmcodec.metrics.pair import STOI_AND_PESQ, score_pair
from dmcodec.metrics.signal import log_mel, mel_distance
from dmcodec.training.experiment import Experiment
from dmcodec.training.guidance import Guidance
from dmcodec.training.state import TrainingState, unwrapped
from dmcodec.training.tracker import Tracker

logger = logging.getLogger(__name__)

_MEASURES = {"mel_distance": mel_distance, **STOI_AND_PESQ}


@dataclass(frozen=True)
class ValidatedClip:
    """One clip's scores by measure, and both waveforms [T]."""

    utterance_id: str
    scores: dict[str, float]
    reference: Waveform
    decoded: Waveform


def check_clips(experiment: Experiment) -> None:
    """Raises what would end the first validation, and all steps before it: clips that are missing.

    FileNotFoundError or ValueError for the manifest or a sound file's header.
    """
    for utterance in _listed_clips(experiment):
        find_source(utterance, experiment.codec.sample_rate)


def _listed_clips(experiment: Experiment) -> list[Utterance]:
    data = experiment.data
    if data.valid_manifest is None:
        return []
    clips = read_manifests([data.valid_manifest], columns=data.columns)
    return clips[: experiment.validation.max_clips]


def validate(
    state: TrainingState,
    experiment: Experiment,
    accelerator: Accelerator,
    tracker: Tracker | None,
    guidance: Guidance | None = None,
) -> dict[str, float]:
    """Mean scores of the averaged codec on held-out speakers, the same on every process.

    Every process scores its share of the clips; the main one logs the first few of its own.
    Nothing is scored (and the result is empty) without a validation manifest. The state is not
    changed.
    """
    config, sample_rate = experiment.validation, experiment.codec.sample_rate
    if experiment.data.valid_manifest is None:
        return {}
    clips = validation_clips(
        _listed_clips(experiment),
        sample_rate=sample_rate,
        max_samples=config.max_samples,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    local = []
    judge = None
    if guidance is not None:
        heads = None if state.heads is None else unwrapped(state.heads)
        judge = partial(guidance.validate, state.averaged_codec, heads)
    for number, clip in enumerate(validate_clips(state.averaged_codec, clips, judge)):
        local.append(clip.scores)
        if tracker is not None and number < config.num_logged_clips:
            for kind, waveform in (("original", clip.reference), ("decoded", clip.decoded)):
                name = f"valid/{clip.utterance_id}/{kind}"
                tracker.clip(state.step, name, waveform, log_mel(waveform, sample_rate))
    scores = mean_scores(local)
    if tracker is not None:
        tracker.scalars(state.step, {f"valid/{name}": value for name, value in scores.items()})
    return scores


def validate_clips(
    codec: Codec,
    clips: Iterator[ValidationClip],
    judge: Callable[[ValidationClip], dict[str, float]] | None = None,
) -> Iterator[ValidatedClip]:
    """Scores each clip; the codec is used as it is (call `eval()` before).

    `judge` gives further scores of a clip, such as its distillation losses.
    """
    sample_rate = codec.config.sample_rate
    for clip in clips:
        reference = clip.waveform[0, 0].numpy()
        try:
            decoded = codec.decode(codec.encode(clip.waveform))[0].cpu().numpy()
        except (LatentsError, WaveformError) as problem:  # for the training step to stop at
            logger.warning("%s has no score: %s", clip.utterance.id, problem)
            yield ValidatedClip(clip.utterance.id, {}, reference, np.zeros_like(reference))
            continue
        scores = {} if judge is None else judge(clip)
        scores |= score_pair(reference, decoded, sample_rate, measures=_MEASURES).values
        yield ValidatedClip(clip.utterance.id, scores, reference, decoded)


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """Means over the clips of all processes, the same on every process.

    Sums are taken in a fixed order, so one process and several agree to the last bit.
    """
    everything: list[dict[str, float]] = gather_object(scores)
    means = {}
    further = sorted({name for each in everything for name in each if name not in _MEASURES})
    for name in [*_MEASURES, *further]:
        values = sorted(each[name] for each in everything if name in each)
        if values:
            means[name] = float(np.mean(values))
        if len(values) < len(everything):
            missing = len(everything) - len(values)
            logger.info("%s has no value for %d of %d clips", name, missing, len(everything))
    return means


def is_better(measure: str, value: float, best: float | None) -> bool:
    """Whether `value` beats the best so far; of the distances less is better."""
    if best is None:
        return True
    return value < best if measure == "mel_distance" else value > best
