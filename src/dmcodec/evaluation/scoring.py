"""Which measures are computed together, by which package, and the scoring of one clip.

A group is what is computed and cached as one: measures that share work. Every outcome is a number
or the reason why there is none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dmcodec import quality
from dmcodec.audio import SAMPLE_RATE, Waveform, read_audio
from dmcodec.config import Record
from dmcodec.evaluation import perceptual, pitch, signal
from dmcodec.evaluation.distillmos import distillmos
from dmcodec.evaluation.recognizers import (
    BEST,
    Recognizer,
    check_recognizer,
    load_recognizer,
    recognizer_identity,
    recognizer_modules,
)
from dmcodec.evaluation.speaker import (
    SpeakerModel,
    check_speaker_model,
    cosine_similarity,
    load_speaker_model,
    speaker_model_identity,
)
from dmcodec.evaluation.storage import CachedScores, Workspace, hash_text
from dmcodec.packages import MissingPackage, package_versions, why_unavailable
from dmcodec.quality import Unmeasurable

Outcomes = dict[str, float | Unmeasurable]


class ScoringConfig(Record):
    """Choices that change scores.

    Models are names that `load_recognizer` and `load_speaker_model` know; `utmos` is a TorchScript
    file. The probe of codes learns from at most `content_minutes` of the lists `content_train`.
    """

    recognizer: str = BEST
    speaker_model: str = "resemblyzer"
    utmos: Path | None = None
    content_train: tuple[Path, ...] = ()
    content_minutes: float = Field(60.0, gt=0)
    device: str = "cpu"


class Models:
    """The models of one process, each loaded when first needed."""

    def __init__(self, config: ScoringConfig) -> None:
        self.config = config

    @cached_property
    def recognizer(self) -> Recognizer:
        """Speech to text."""
        return load_recognizer(self.config.recognizer, self.config.device)

    @cached_property
    def speaker_model(self) -> SpeakerModel:
        """Speech to a vector for its speaker."""
        return load_speaker_model(self.config.speaker_model, self.config.device)


class Original:
    """One original, with the analyses that all systems are compared with made once."""

    def __init__(self, waveform: Waveform, models: Models) -> None:
        self.waveform = waveform
        self.models = models

    @cached_property
    def pitch(self) -> pitch.PitchTrack:
        """Its F0."""
        return pitch.track_pitch(self.waveform, SAMPLE_RATE)

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """The vector of its speaker."""
        return self.models.speaker_model.embed(self.waveform, SAMPLE_RATE)


@dataclass(frozen=True)
class Group:
    """Measures that are computed together.

    compute: the original and an estimate of the same length to an outcome for each measure.
    modules: packages it imports. distributions: packages whose versions change its results.
    uses_original: whether results depend on the original. is_slow: takes more time than all
    groups that are not together, so it is computed after them. revision: raised when our own code
    changes results, so that cached ones are not taken for new ones. is_of_systems: computed for
    whole systems, by streams.py and content.py.
    """

    measures: tuple[str, ...]
    compute: Callable[[Original, Waveform], Outcomes]
    modules: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    uses_original: bool = True
    is_slow: bool = False
    revision: int = 1
    is_of_systems: bool = False


def _attempt(measure: Callable[..., float], *arguments: object) -> float | Unmeasurable:
    """The measure's value, or the reason why it has none as a value."""
    try:
        return measure(*arguments)
    except Unmeasurable as reason:
        return reason


def _distillmos(original: Original, estimate: Waveform) -> Outcomes:
    waveform = torch.from_numpy(estimate)[None].to(original.models.config.device)
    return {"distillmos": distillmos(waveform).item()}


def _signal(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate)
    return {
        "mel_distance": _attempt(quality.mel_distance, *pair, SAMPLE_RATE),
        "stft_distance": _attempt(signal.stft_distance, *pair),
        "mcd": _attempt(signal.mel_cepstral_distortion, *pair, SAMPLE_RATE),
        "si_sdr": _attempt(signal.si_sdr, *pair),
        "level_difference": _attempt(signal.level_difference_db, *pair),
        "delay": _attempt(signal.delay_ms, *pair, SAMPLE_RATE),
    }


def _stoi(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate)
    return {
        "stoi": _attempt(quality.stoi, *pair, SAMPLE_RATE),
        "estoi": _attempt(perceptual.estoi, *pair, SAMPLE_RATE),
    }


def _pesq(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate)
    return {
        "pesq": _attempt(quality.pesq_wb, *pair, SAMPLE_RATE),
        "pesq_nb": _attempt(perceptual.pesq_nb, *pair, SAMPLE_RATE),
    }


def _visqol(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate)
    return {"visqol": _attempt(perceptual.visqol, *pair, SAMPLE_RATE, "speech")}


def _visqol_audio(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate)
    return {"visqol_audio": _attempt(perceptual.visqol, *pair, SAMPLE_RATE, "audio")}


def _pitch(original: Original, estimate: Waveform) -> Outcomes:
    tracks = (original.pitch, pitch.track_pitch(estimate, SAMPLE_RATE))
    return {
        "f0_corr": _attempt(pitch.f0_correlation, *tracks),
        "f0_rmse": _attempt(pitch.f0_rmse_hz, *tracks),
        "voicing_error": _attempt(pitch.voicing_error, *tracks),
    }


def _dnsmos(original: Original, estimate: Waveform) -> Outcomes:
    try:
        return dict(perceptual.dnsmos(estimate, SAMPLE_RATE))
    except Unmeasurable as reason:
        return {"dnsmos_overall": reason, "dnsmos_p808": reason}


def _utmos(original: Original, estimate: Waveform) -> Outcomes:
    path = original.models.config.utmos
    return {"utmos": _attempt(perceptual.utmos, estimate, SAMPLE_RATE, path)}


def _speaker(original: Original, estimate: Waveform) -> Outcomes:
    def similarity() -> float:
        embedding = original.models.speaker_model.embed(estimate, SAMPLE_RATE)
        return cosine_similarity(original.embedding, embedding)

    return {"spk_similarity": _attempt(similarity)}


def _no_scores(original: Original, estimate: Waveform) -> Outcomes:
    return {}  # words are transcribed by score_clip and counted when rows are put together


GROUPS = {
    "words": Group(
        ("wer", "wil", "cer", "wer_own", "cer_own"),
        _no_scores,
        ("jiwer",),
        uses_original=False,
        is_slow=True,
    ),
    "content": Group(("content_per",), _no_scores, ("pocketsphinx", "jiwer"), is_of_systems=True),
    "distillmos": Group(
        ("distillmos",),
        _distillmos,
        ("distillmos", "xls_r_sqa"),
        ("distillmos", "xls-r-sqa"),
        uses_original=False,
        is_slow=True,
    ),
    "visqol": Group(
        ("visqol",),
        _visqol,
        ("visqol", "ai_edge_litert"),
        ("visqol-python", "ai-edge-litert"),
    ),
    "visqol_audio": Group(("visqol_audio",), _visqol_audio, ("visqol",), ("visqol-python",)),
    "stoi": Group(("stoi", "estoi"), _stoi, ("pystoi",), ("pystoi",), revision=2),
    "pesq": Group(("pesq", "pesq_nb"), _pesq, ("pesq",), ("pesq",)),
    "dnsmos": Group(
        ("dnsmos_overall", "dnsmos_p808"),
        _dnsmos,
        ("speechmos", "librosa", "onnxruntime", "requests"),
        ("speechmos", "librosa", "onnxruntime"),
        uses_original=False,
        is_slow=True,
        revision=2,
    ),
    "utmos": Group(("utmos",), _utmos, uses_original=False),
    "speaker": Group(("spk_similarity",), _speaker),
    "signal": Group(
        ("mel_distance", "stft_distance", "mcd", "si_sdr", "level_difference", "delay"),
        _signal,
        revision=2,
    ),
    "pitch": Group(
        ("f0_corr", "f0_rmse", "voicing_error"), _pitch, ("librosa",), ("librosa",), revision=2
    ),
    "codes": Group((), _no_scores, is_of_systems=True),
}
"""Groups by name, in the order of their measures in tables."""


_SPEAKER_MODULES: dict[str, tuple[str, ...]] = {
    "resemblyzer": ("webrtcvad", "librosa", "resemblyzer")
}


def why_not(name: str, config: ScoringConfig) -> str | None:
    """Why a group cannot be computed here at all, or None when it can."""
    modules = GROUPS[name].modules
    if name == "words":
        modules += recognizer_modules(config.recognizer)
    if name == "speaker":
        modules += _SPEAKER_MODULES.get(config.speaker_model, ("transformers",))
    if name == "utmos" and config.utmos is None:
        return "UTMOS: no weights at hand; name a TorchScript file with --set scoring.utmos=FILE"
    if name == "content" and not config.content_train:
        return (
            "content: no list to learn from; name one of other speakers with "
            "--set 'scoring.content_train=[\"train.jsonl\"]'"
        )
    return why_unavailable(modules, name)


def check_models(groups: Sequence[str], config: ScoringConfig) -> None:
    """Raises FileNotFoundError or ValueError for a model of these groups that is of no use.

    Groups that cannot be computed here anyway are left out.
    """
    wanted = {group for group in groups if why_not(group, config) is None}
    if "words" in wanted:
        check_recognizer(config.recognizer)
    if "speaker" in wanted:
        check_speaker_model(config.speaker_model)


def group_identity(name: str, config: ScoringConfig) -> str:
    """What results of a group depend on besides the sound: versions, models, our revision."""
    group = GROUPS[name]
    parts = [name, str(group.revision), repr(package_versions(group.distributions))]
    if name == "words":
        parts.append(recognizer_identity(config.recognizer))
    if name == "speaker":
        parts.append(speaker_model_identity(config.speaker_model))
    if name == "utmos":
        parts.append(str(config.utmos))
    return hash_text(*parts)


def cache_key(name: str, identity: str, original_hash: str, estimate_hash: str) -> str:
    """The key of a group's scores of one pair, by content."""
    return hash_text(name, identity, original_hash * GROUPS[name].uses_original, estimate_hash)


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
            workspace.append_to_cache(score_group(name, key, original, estimate))
            done += 1
    return done


def score_group(name: str, key: str, original: Original, estimate: Waveform) -> CachedScores:
    """One group of measures of one pair; of the group "words" the transcript of the estimate.

    A silent estimate scores as bad: see `SILENT_SCORES`; no word is heard in it. A silent original
    leaves only `SCORED_ON_SILENCE`, whatever the estimate is.
    """
    if quality.is_silent(original.waveform):
        return _score_against_silence(name, key, original, estimate)
    is_silent = not np.any(estimate)
    if is_silent and name == "words":
        return CachedScores(key=key, values={}, missing={}, text="")
    if is_silent and SILENT_SCORES.keys() >= set(GROUPS[name].measures):
        values = {measure: SILENT_SCORES[measure] for measure in GROUPS[name].measures}
        return CachedScores(key=key, values=values, missing={})
    if name == "words":
        try:
            text = original.models.recognizer.transcribe(estimate, SAMPLE_RATE)
        except (Unmeasurable, MissingPackage) as reason:
            return CachedScores(key=key, values={}, missing={"transcript": str(reason)})
        return CachedScores(key=key, values={}, missing={}, text=text)
    return _compute_group(name, key, original, estimate)


def _score_against_silence(
    name: str, key: str, original: Original, estimate: Waveform
) -> CachedScores:
    """Of a silent original only `SCORED_ON_SILENCE`; everything else is missing."""
    if not SCORED_ON_SILENCE & set(GROUPS[name].measures):
        wanted = ("transcript",) if name == "words" else GROUPS[name].measures
        return CachedScores(key=key, values={}, missing=dict.fromkeys(wanted, SILENT_ORIGINAL))
    found = _compute_group(name, key, original, estimate)
    kept = {m: value for m, value in found.values.items() if m in SCORED_ON_SILENCE}
    lost = dict.fromkeys((m for m in GROUPS[name].measures if m not in kept), SILENT_ORIGINAL)
    return CachedScores(key=key, values=kept, missing=lost)


def _compute_group(name: str, key: str, original: Original, estimate: Waveform) -> CachedScores:
    """What the group's function gives, as numbers and reasons."""
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    try:
        outcomes = GROUPS[name].compute(original, estimate)
    except MissingPackage as reason:  # it is there, but something that it needs is not
        missing = dict.fromkeys(GROUPS[name].measures, str(reason))
        return CachedScores(key=key, values={}, missing=missing)
    for measure, outcome in outcomes.items():
        if isinstance(outcome, Unmeasurable):
            missing[measure] = str(outcome)
        elif not np.isfinite(outcome):
            missing[measure] = f"{measure}: the package gave {outcome}"
        else:
            values[measure] = float(outcome)
    return CachedScores(key=key, values=values, missing=missing)


SILENT_SCORES = {
    "distillmos": 1.0,
    "visqol": 1.0,
    "visqol_audio": 1.0,
    "pesq": 1.0,
    "pesq_nb": 1.0,
    "dnsmos_overall": 1.0,
    "dnsmos_p808": 1.0,
    "utmos": 1.0,
    "spk_similarity": 0.0,
}
"""What a silent estimate gets where the package has no value or a meaningless one: the low end of
the opinion scale, no similarity. Leaving such clips out of the mean would flatter the system."""

SCORED_ON_SILENCE = frozenset({"mel_distance", "stft_distance", "voicing_error"})
"""Measures that mean something when the original is silent: they say how loud or how voiced the
codec's noise is, and are best for a copy. All others need a signal."""

SILENT_ORIGINAL = "the original is silent"

_process: list[tuple[Models, Workspace]] = []


def start_process(config: ScoringConfig, workspace: Workspace) -> None:
    """Makes this process ready for `score_in_process`: one thread, models loaded when needed."""
    torch.set_num_threads(1)
    _process[:] = [(Models(config), workspace)]


def score_in_process(task: ScoreTask) -> int:
    """`score_clip` with this process's models."""
    models, workspace = _process[0]
    return score_clip(task, models, workspace)
