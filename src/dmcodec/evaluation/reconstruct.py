"""Every clip through every system, once: the sound files that all measures then read.

Originals first (16 kHz mono, mean removed, 16 bit), because every system gets exactly these. What
a system gives is resampled to 16 kHz, its known constant delay is cut off, and it is made as long
as the original. A clip whose file is up to date is not made again.
"""

import json
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmcodec.audio import (
    SAMPLE_RATE,
    Waveform,
    read_audio,
    remove_dc,
    resample,
    to_int16,
    write_audio,
)
from dmcodec.config import Record, parse_json
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.sources import read_utterance
from dmcodec.evaluation.systems.opening import open_system
from dmcodec.evaluation.systems.system import ORIGINAL, System, SystemFacts, SystemSpec
from dmcodec.evaluation.workspace import (
    SoundRecord,
    Workspace,
    hash_file,
    hash_text,
    hash_waveform,
)
from dmcodec.metrics.measure import is_silent
from dmcodec.storage import write_whole

logger = logging.getLogger(__name__)

_ORIGINAL_PREPARATION = "16 kHz mono, mean removed, 16 bit, silence noted"
_FIRST_PACKET_RUNS = 5


class _Measured(Record):
    """What a system's JSON file says: facts, and time and memory of its last run."""

    facts: SystemFacts
    first_packet_s: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True)
class SystemRun:
    """What sending all clips through one system gave.

    failures: id -> reason. first_packet_s: time to encode and decode one second, None where the
    two are not apart. peak_memory_mb: of the whole process that ran a torch codec, Python and
    torch included; None for programs and when the process was shared.
    """

    facts: SystemFacts
    failures: dict[str, str]
    num_done: int
    num_kept: int
    first_packet_s: float | None = None
    peak_memory_mb: float | None = None


def prepare_originals(
    utterances: Sequence[Utterance], workspace: Workspace, progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Writes the originals that are not there yet; gives id -> reason of those that failed."""
    failures = {}
    file_hash = lru_cache(maxsize=16)(hash_file)  # once for the many utterances in one file
    for number, utterance in enumerate(utterances, start=1):
        try:
            prepared = _read_original(utterance, workspace, file_hash)
        except (ValueError, OSError) as problem:
            logger.warning("%s left out: %s", utterance.id, problem)
            failures[utterance.id] = str(problem)
        else:
            if prepared is not None:  # what cannot be written is no fault of the clip
                _write_original(utterance, workspace, *prepared)
        progress(number, len(utterances))
    return failures


def _read_original(
    utterance: Utterance, workspace: Workspace, file_hash: Callable[[Path], str]
) -> tuple[str, Waveform] | None:
    """Key and waveform [T] of an original; None when it is there already."""
    if not utterance.audio.is_file():
        raise FileNotFoundError(f"{utterance.audio}: no such file")
    segment = f"{utterance.start_samples} {utterance.num_samples} {utterance.entry}"
    key = hash_text(_ORIGINAL_PREPARATION, segment, file_hash(utterance.audio))
    record = workspace.read_sound_record(ORIGINAL, utterance.id)
    if record is not None and record.key == key:
        return None
    return key, remove_dc(read_utterance(utterance, sample_rate=SAMPLE_RATE))


def _write_original(
    utterance: Utterance, workspace: Workspace, key: str, waveform: Waveform
) -> None:
    path = workspace.sound_path(ORIGINAL, utterance.id)
    workspace.drop_sound_record(ORIGINAL, utterance.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, waveform, SAMPLE_RATE)
    record = SoundRecord(
        key=key,
        sound_hash=hash_waveform(waveform),
        num_samples=len(waveform),
        is_silent=is_silent(waveform),
    )
    workspace.write_sound_record(ORIGINAL, utterance.id, record)


def run_system(
    spec: SystemSpec,
    ids: Sequence[str],
    workspace: Workspace,
    executor: Executor,
    *,
    device: str,
    is_own_process: bool,
    progress: Callable[[int, int], None],
) -> SystemRun:
    """Sends the prepared originals of `ids` through one system, one after the other.

    Args:
        spec: the system.
        ids: clips whose originals are prepared.
        workspace: where sounds lie.
        executor: of one worker, which opens the system once and keeps it.
        device: for codecs that run in torch.
        is_own_process: the worker is a process of its own, so that its peak memory means something.
        progress: called after each clip with the number of clips done and of all.

    Raises:
        ValueError, FileNotFoundError: the system cannot be opened.
    """
    facts: SystemFacts = executor.submit(_open, spec, device).result()
    failures: dict[str, str] = {}
    num_done = 0
    for number, utterance_id in enumerate(ids, start=1):
        outcome = executor.submit(_reconstruct_one, spec.name, utterance_id, workspace).result()
        num_done += outcome == "done"
        if outcome not in ("done", "kept"):
            failures[utterance_id] = outcome
        progress(number, len(ids))
    kept = _read_measured(workspace, spec.name, facts)
    if num_done:
        kept["first_packet_s"] = executor.submit(_first_packet_s, ids[0], workspace).result()
        # Of a program that this process starts, the kernel counts this process's memory too.
        if is_own_process and facts.num_parameters is not None:
            kept["peak_memory_mb"] = executor.submit(_peak_memory_mb).result()
        entry = {"facts": facts.model_dump(), **kept}
        write_whole(workspace.system_path(spec.name), json.dumps(entry, indent=1))
    num_kept = len(ids) - num_done - len(failures)
    return SystemRun(facts, failures, num_done, num_kept, **kept)


def _read_measured(workspace: Workspace, name: str, facts: SystemFacts) -> dict[str, Any]:
    """Time and memory measured when the system last ran, if it is still the same system."""
    empty = {"first_packet_s": None, "peak_memory_mb": None}
    path = workspace.system_path(name)
    if not path.is_file():
        return empty
    try:
        entry = _Measured.model_validate(parse_json(path.read_bytes()))
    except ValueError:
        return empty  # damaged: measured anew when the system runs again
    if entry.facts.identity != facts.identity:
        return empty
    return entry.model_dump(exclude={"facts"})


_open_systems: list[System] = []  # kept between the calls that an executor sends its worker


def use_one_thread() -> None:
    """Makes this process work with one thread, so that times can be compared."""
    torch.set_num_threads(1)


def _open(spec: SystemSpec, device: str) -> SystemFacts:
    _open_systems[:] = [open_system(spec, device)]
    return _open_systems[0].facts


def _reconstruct_one(name: str, utterance_id: str, workspace: Workspace) -> str:
    """What became of a clip: "done", "kept", or the reason of a failure."""
    system = _open_systems[0]
    original = workspace.read_sound_record(ORIGINAL, utterance_id)
    if original is None:
        raise FileNotFoundError(f"the original of {utterance_id} is not prepared")
    delay_samples = system.facts.delay_samples
    key = hash_text(system.facts.identity, str(delay_samples), original.sound_hash)
    record = workspace.read_sound_record(name, utterance_id)
    if record is not None and record.key == key:
        return "kept"
    waveform = read_audio(workspace.sound_path(ORIGINAL, utterance_id), sample_rate=SAMPLE_RATE)
    try:
        result = system.reconstruct(waveform, SAMPLE_RATE, utterance_id)
        if not np.isfinite(result.waveform).all():
            raise ValueError("the system gave NaN or infinite samples")
        decoded = resample(result.waveform, result.sample_rate, SAMPLE_RATE)[delay_samples:]
        fitted = fit_length(decoded, len(waveform))
    except (ValueError, RuntimeError, OSError) as problem:
        logger.warning("%s, %s: %s", name, utterance_id, problem)
        return str(problem) or type(problem).__name__
    path = workspace.sound_path(name, utterance_id)
    workspace.drop_sound_record(name, utterance_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    if result.codes is not None:
        workspace.write_codes(name, utterance_id, result.codes)
    write_audio(path, fitted, SAMPLE_RATE)
    record = SoundRecord(
        key=key,
        sound_hash=hash_waveform(fitted),
        num_samples=len(fitted),
        num_bits=result.num_bits,
        encode_s=result.encode_s,
        decode_s=result.decode_s,
        length_difference_samples=len(decoded) - len(waveform),
        has_codes=result.codes is not None,
        is_silent=not np.any(to_int16(fitted)),
    )
    workspace.write_sound_record(name, utterance_id, record)
    return "done"


def fit_length(waveform: Waveform, num_samples: int) -> Waveform:
    """The waveform [T] cut at the end, or continued with zeros, to `num_samples`."""
    if len(waveform) >= num_samples:
        return waveform[:num_samples]
    return np.pad(waveform, (0, num_samples - len(waveform)))


def _first_packet_s(utterance_id: str, workspace: Workspace) -> float | None:
    """Median time to encode and decode one second of speech."""
    path = workspace.sound_path(ORIGINAL, utterance_id)
    waveform = read_audio(path, sample_rate=SAMPLE_RATE)
    second = fit_length(waveform, SAMPLE_RATE)
    times = []
    for _ in range(_FIRST_PACKET_RUNS):
        try:
            result = _open_systems[0].reconstruct(second, SAMPLE_RATE, utterance_id)
        except (ValueError, RuntimeError, OSError):
            return None
        if result.encode_s is None or result.decode_s is None:
            return None
        times.append(result.encode_s + result.decode_s)
    return statistics.median(times)


def _peak_memory_mb() -> float | None:
    """Most memory that this process ever held; None where the system cannot say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, else kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
