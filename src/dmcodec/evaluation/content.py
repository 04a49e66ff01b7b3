"""How much of what is said the codes of a codec hold: phone errors of a probe that reads them.

`content_errors` does it for vectors that the caller gives; the rest lets `evaluate` do it for whole
systems. The probe itself is in probe.py.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmcodec.audio import SAMPLE_RATE, Waveform, remove_dc, samples_to_seconds
from dmcodec.corpus.manifest import Utterance, read_manifests
from dmcodec.corpus.sources import measure, read_utterance
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.execution import open_executor
from dmcodec.evaluation.protocols import rank_clip
from dmcodec.evaluation.reconstruct import SystemRun, use_one_thread
from dmcodec.evaluation.statistics import Bootstrap, Estimate, ratio
from dmcodec.evaluation.systems.opening import open_system
from dmcodec.evaluation.systems.system import ORIGINAL, CodedSystem, SystemSpec
from dmcodec.evaluation.workspace import CachedScores, Sounds, Workspace, hash_file, hash_text
from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.phones import PhoneAligner
from dmcodec.metrics.probe import RECIPE, SpokenVectors, fill_up, phone_errors, train_probe
from dmcodec.metrics.words import ErrorCounts
from dmcodec.packages import package_versions
from dmcodec.spectral import Mel, log_mel_spectrogram

logger = logging.getLogger(__name__)

_MAX_TRAINING_S = 20.0
_MEL_HOP = 320


@dataclass(frozen=True)
class Spoken:
    """An utterance and the phones of its text."""

    utterance: Utterance
    phones: tuple[str, ...]


def pronounce_all(utterances: Iterable[Utterance]) -> Iterator[Spoken]:
    """The utterances whose text the dictionary can pronounce, one by one; others are left out."""
    aligner = PhoneAligner()
    for utterance in utterances:
        try:
            yield Spoken(utterance, aligner.pronounce(utterance.text or ""))
        except Unmeasurable:
            logger.info("%s is left out: a word of no known phones, or no text", utterance.id)


def content_errors(
    vectors_of: Callable[[Utterance], Tensor],
    frame_rate: float,
    train: Sequence[Spoken],
    held_out: Mapping[str, Sequence[Spoken]],
    *,
    seed: int = 0,
) -> dict[str, list[ErrorCounts]]:
    """Phone errors in each recording of each list, of a probe trained on `train`.

    Args:
        vectors_of: gives the vectors [L, D] of an utterance; called once for each.
        frame_rate: of the vectors, Hz.
        train: what the probe learns from; the recipe is made for an hour of many speakers.
        held_out: name -> recordings that the probe has not seen.
        seed: of the probe.
    """

    def prepare(spoken: Sequence[Spoken]) -> list[SpokenVectors]:
        return [
            SpokenVectors(fill_up(vectors_of(each.utterance), frame_rate), each.phones)
            for each in spoken
        ]

    probe = train_probe(prepare(train), seed=seed)
    return {name: phone_errors(probe, prepare(spoken)) for name, spoken in held_out.items()}


def phone_error_rate(errors: Sequence[ErrorCounts]) -> Estimate:
    """All errors over all phones, with the 95 % bootstrap interval over recordings."""
    counts = [(each.errors, each.reference_length) for each in errors]
    return Bootstrap().estimate(np.array(counts, dtype=np.float64), ratio)


def choose_training(
    manifests: Sequence[Path],
    minutes: float,
    held_out: Iterable[Utterance],
    columns: Mapping[str, str] | None = None,
) -> list[Spoken]:
    """At most so many minutes of the lists, of as many speakers as there are.

    Speakers of the held-out clips are left out, as is what is longer than 20 s or cannot be
    pronounced. Every speaker gives one recording, then every one a second ..., in an order that
    depends on ids alone.
    """
    speakers = {utterance.speaker for utterance in held_out if utterance.speaker}
    turns: Counter[str | None] = Counter()
    ranked = []
    for each in sorted(read_manifests(manifests, columns=columns), key=lambda u: rank_clip(u.id)):
        if each.speaker not in speakers:
            ranked.append((turns[each.speaker], each))
            turns[each.speaker] += 1
    ranked.sort(key=lambda pair: pair[0])
    chosen, total_s = [], 0.0
    for spoken in pronounce_all(each for _, each in ranked):
        duration_s = samples_to_seconds(spoken.utterance.num_samples or measure(spoken.utterance))
        if duration_s <= _MAX_TRAINING_S:
            total_s += duration_s
            if total_s > 60 * minutes:
                break
            chosen.append(spoken)
    return chosen


@dataclass(frozen=True)
class ProbeTask:
    """One system to be probed: everything that a process needs.

    spec: None for the original, whose vectors are log mel bands. held_out: the evaluated clips, as
    the originals that systems got. keys: id -> where in the cache a clip's errors belong.
    """

    spec: SystemSpec | None
    train: tuple[Spoken, ...]
    held_out: tuple[Spoken, ...]
    keys: Mapping[str, str]
    device: str
    seed: int


def probe_system(task: ProbeTask) -> list[CachedScores]:
    """Trains a probe on a system's code vectors; gives its errors in each held-out clip."""
    if task.spec is None:
        frame_rate, compute = SAMPLE_RATE / _MEL_HOP, _mel_bands
    else:
        system = open_system(task.spec, task.device)
        assert isinstance(system, CodedSystem)
        assert system.facts.frame_rate is not None
        frame_rate, compute = system.facts.frame_rate, system.code_vectors

    def vectors_of(utterance: Utterance) -> Tensor:
        waveform = remove_dc(read_utterance(utterance, sample_rate=SAMPLE_RATE))
        return torch.from_numpy(compute(waveform, SAMPLE_RATE))

    errors = content_errors(
        vectors_of, frame_rate, task.train, {ORIGINAL: task.held_out}, seed=task.seed
    )[ORIGINAL]
    return [
        CachedScores(
            key=task.keys[spoken.utterance.id],
            values={"content_per": each.error_rate},
            missing={},
            counts=each.as_tuple(),
        )
        for spoken, each in zip(task.held_out, errors, strict=True)
    ]


def _mel_bands(waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
    """Log mel bands [L, 80] of a waveform [T]: what the probe hears in speech itself."""
    mel = Mel(sample_rate=sample_rate, n_fft=1024, num_mels=80, hop_length=_MEL_HOP, win_length=640)
    bands = log_mel_spectrogram(torch.from_numpy(waveform)[None], mel)
    return np.asarray(bands[0].t().numpy())


@dataclass(frozen=True)
class ContentPlan:
    """What the probes of all systems share.

    train: what they learn from. held_out: the evaluated clips that can be pronounced, as the
    originals that systems got. basis: what their results depend on besides the system.
    """

    train: tuple[Spoken, ...]
    held_out: tuple[Spoken, ...]
    basis: str

    def task(
        self,
        name: str,
        spec: SystemSpec | None,
        identity: str,
        config: EvaluationConfig,
        sounds: Sounds,
    ) -> ProbeTask:
        """The task of one system, on those clips that it reconstructed."""
        clips = tuple(each for each in self.held_out if (name, each.utterance.id) in sounds)
        keys = {}
        for each in clips:
            sound_hash = sounds[ORIGINAL, each.utterance.id].sound_hash
            keys[each.utterance.id] = hash_text(identity, self.basis, sound_hash, *each.phones)
        return ProbeTask(spec, self.train, clips, keys, config.scoring.device, config.seed)


def plan_content(
    config: EvaluationConfig, utterances: Sequence[Utterance], workspace: Workspace
) -> ContentPlan:
    """Chooses what the probes learn from; ValueError when nothing in the lists can be used."""
    manifests = config.scoring.content_train
    columns, minutes = config.scoring.content_columns, config.scoring.content_minutes
    train = choose_training(manifests, minutes, utterances, columns)
    if not train:
        raise ValueError(
            f"content: {', '.join(map(str, manifests))} has no recording of at most "
            f"{_MAX_TRAINING_S:g} s with a text of known words by a speaker who is not evaluated"
        )
    whole = {"start_samples": None, "num_samples": None, "entry": None}
    held_out = pronounce_all(
        each.model_copy(update={"audio": workspace.sound_path(ORIGINAL, each.id), **whole})
        for each in utterances
    )
    parts = ["content", RECIPE, repr(package_versions(("torch", "pocketsphinx"))), str(config.seed)]
    for each in train:
        u = each.utterance
        parts += [f"{u.id} {u.start_samples} {u.num_samples} {u.entry}", *each.phones]
    parts += [hash_file(path) for path in sorted({each.utterance.audio for each in train})]
    return ContentPlan(tuple(train), tuple(held_out), hash_text(*parts))


def measure_content(
    config: EvaluationConfig,
    specs: Sequence[SystemSpec],
    utterances: Sequence[Utterance],
    runs: Mapping[str, SystemRun],
    sounds: Sounds,
    workspace: Workspace,
    progress: Callable[[int, int], None],
) -> dict[tuple[str, str], CachedScores | str]:
    """(system, clip) to its phone errors or why there are none, from the cache where possible.

    The original is probed too: on its log mel bands.
    """
    plan = plan_content(config, utterances, workspace)
    tasks = {ORIGINAL: plan.task(ORIGINAL, None, "log mel bands", config, sounds)}
    for spec in specs:
        facts = runs[spec.name].facts
        if facts.num_codebooks is not None:
            tasks[spec.name] = plan.task(spec.name, spec, facts.identity, config, sounds)
    cache = workspace.read_cache()
    waiting = [task for task in tasks.values() if not cache.keys() >= set(task.keys.values())]
    progress(0, len(waiting))
    with open_executor(config.num_processes, use_one_thread) as executor:
        futures = [executor.submit(probe_system, task) for task in waiting]
        for number, future in enumerate(as_completed(futures), start=1):
            for scores in future.result():
                workspace.append_to_cache(scores)
                cache[scores.key] = scores
            progress(number, len(waiting))
    found: dict[tuple[str, str], CachedScores | str] = {}
    for name in (ORIGINAL, *runs):
        for utterance in utterances:
            key = tasks[name].keys.get(utterance.id) if name in tasks else None
            reason = "no text, or a word of no known phones" if name in tasks else "no codes"
            found[name, utterance.id] = f"content: {reason}" if key is None else cache[key]
    return found
