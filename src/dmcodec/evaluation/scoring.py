"""The scoring of one clip: what its reconstructions lack is computed and kept by content.

Every outcome is a number or the reason why there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dmcodec.audio import SAMPLE_RATE, Waveform, read_audio
from dmcodec.evaluation.workspace import CachedScores, Workspace, hash_text
from dmcodec.metrics.measure import (
    Group,
    Models,
    Original,
    ScoringConfig,
    Unmeasurable,
    is_silent,
)
from dmcodec.metrics.registry import GROUPS
from dmcodec.packages import MissingPackage, package_versions

SILENT_ORIGINAL = "the original is silent"

_process: list[tuple[Models, Workspace]] = []


def check_models(groups: Sequence[str], config: ScoringConfig) -> None:
    """Raises FileNotFoundError or ValueError for a model of these groups that is of no use.

    Groups that cannot be computed here anyway are left out.
    """
    for group in (GROUPS[name] for name in groups):
        if group.model is not None and group.why_not(config) is None:
            group.model.check(config)


def group_identity(group: Group, config: ScoringConfig) -> str:
    """What results of a group depend on besides the sound: versions, models, our revision."""
    parts = [group.name, str(group.revision), repr(package_versions(group.distributions))]
    if group.model is not None:
        parts.append(group.model.identity(config))
    return hash_text(*parts)


def cache_key(group: Group, identity: str, original_hash: str, estimate_hash: str) -> str:
    """The key of a group's scores of one pair, by content."""
    reference = original_hash if group.uses_original else ""
    return hash_text(group.name, identity, reference, estimate_hash)


@dataclass(frozen=True)
class ScoreTask:
    """Everything still to be computed for the reconstructions of one clip.

    wanted: pairs of a sound file and the groups that it lacks, as (name, cache key).
    """

    original: Path
    wanted: tuple[tuple[Path, tuple[tuple[str, str], ...]], ...]


def score_clip(task: ScoreTask, models: Models, workspace: Workspace) -> int:
    """Computes what the task wants and adds it to the cache; gives the number of groups."""
    original = Original(read_audio(task.original, sample_rate=SAMPLE_RATE), models)
    done = 0
    for path, groups in task.wanted:
        estimate = read_audio(path, sample_rate=SAMPLE_RATE)
        for name, key in groups:
            workspace.append_to_cache(score_group(GROUPS[name], key, original, estimate))
            done += 1
    return done


def score_group(group: Group, key: str, original: Original, estimate: Waveform) -> CachedScores:
    """One group of measures of one pair; of words, the transcript of the estimate.

    A silent estimate gets the scores for silence of `Measure`; no word is heard in it. A silent
    original leaves only measures that need no signal, whatever the estimate is.
    """
    if is_silent(original.waveform):
        return _score_against_silence(group, key, original, estimate)
    if not np.any(estimate):
        if group.hears_text:
            return CachedScores(key=key, values={}, missing={}, text="")
        values = {m.name: m.silent_score for m in group.measures if m.silent_score is not None}
        if len(values) == len(group.measures):
            return CachedScores(key=key, values=values, missing={})
    return _compute_group(group, key, original, estimate)


def is_scored_on_silence(group: Group) -> bool:
    """Whether one of the measures means something when the original is silent."""
    return not all(measure.needs_signal for measure in group.measures)


def _score_against_silence(
    group: Group, key: str, original: Original, estimate: Waveform
) -> CachedScores:
    """Of a silent original only what needs no signal; everything else is missing."""
    if not is_scored_on_silence(group):
        missing = dict.fromkeys(group.outcomes, SILENT_ORIGINAL)
        return CachedScores(key=key, values={}, missing=missing)
    found = _compute_group(group, key, original, estimate)
    meaningful = {measure.name for measure in group.measures if not measure.needs_signal}
    kept = {name: value for name, value in found.values.items() if name in meaningful}
    lost = dict.fromkeys((name for name in group.names if name not in kept), SILENT_ORIGINAL)
    return CachedScores(key=key, values=kept, missing=lost)


def _compute_group(group: Group, key: str, original: Original, estimate: Waveform) -> CachedScores:
    """What the group's function gives, as numbers and reasons."""
    assert group.compute is not None, f"{group.name} is computed for whole systems"
    try:
        outcomes = group.compute(original, estimate)
    except (MissingPackage, Unmeasurable) as reason:
        # The package is there, but something that it needs is not; or nothing could be heard.
        missing = dict.fromkeys(group.outcomes, str(reason))
        return CachedScores(key=key, values={}, missing=missing)
    if isinstance(outcomes, str):
        return CachedScores(key=key, values={}, missing={}, text=outcomes)
    values: dict[str, float] = {}
    missing = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Unmeasurable):
            missing[name] = str(outcome)
        elif not np.isfinite(outcome):
            missing[name] = f"{name}: the package gave {outcome}"
        else:
            values[name] = float(outcome)
    return CachedScores(key=key, values=values, missing=missing)


def start_process(config: ScoringConfig, workspace: Workspace) -> None:
    """Makes this process ready for `score_in_process`: one thread, models loaded when needed."""
    torch.set_num_threads(1)
    _process[:] = [(Models(config), workspace)]


def score_in_process(task: ScoreTask) -> int:
    """`score_clip` with this process's models."""
    models, workspace = _process[0]
    return score_clip(task, models, workspace)
