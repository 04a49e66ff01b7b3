"""Features of a whole corpus, computed once: a job that resumes, in several processes.

A process works on one shard of utterances at a time; a job killed at any moment has lost at most
the shards that were in work.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmcodec.audio import remove_dc
from dmcodec.config import Record
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.sources import read_utterance
from dmcodec.jobs import Failure, Report, write_failures
from dmcodec.pretrained.models import find_model
from dmcodec.pretrained.whisper import model_width
from dmcodec.processes import check_count, end_with_parent
from dmcodec.storage import lock_folder
from dmcodec.teachers.alignment import TIME_RATE, codec_grid
from dmcodec.teachers.speech import SpeechTeacher, SpeechTeacherConfig, speech_teacher_models
from dmcodec.teachers.store import (
    FeatureStore,
    StoredUtterance,
    StoreInfo,
    create_store,
    next_shard_number,
    write_shard,
)
from dmcodec.teachers.text import TextTeacher, TextTeacherConfig, text_teacher_models
from dmcodec.tokens.bitstream import count_frames

logger = logging.getLogger(__name__)

TeacherConfig = TextTeacherConfig | SpeechTeacherConfig
Teacher = TextTeacher | SpeechTeacher

FAILURES_NAME = "failed.jsonl"  # of the store, whose format names it


class CodecFrames(Record):
    """The frames that features are made for."""

    sample_rate: int
    hop_length: int


class ExtractionStopped(ValueError):
    """A process of the job died; the message says what to do."""


@dataclass(kw_only=True)
class ExtractionReport(Report):
    """What a job did, in utterances; how many of those done now are without any feature."""

    num_without_features: int = 0

    def describe(self) -> str:
        """The counts."""
        return f"{super().describe()}; {self.num_without_features} without any feature"


class _ShardResult(NamedTuple):
    num_done: int
    num_without_features: int
    failures: list[Failure]


def build_teacher(config: TeacherConfig, frames: CodecFrames, device: str = "cpu") -> Teacher:
    """The teacher of a configuration, with its models loaded."""
    grid = codec_grid(frames.sample_rate, frames.hop_length)
    if isinstance(config, TextTeacherConfig):
        return TextTeacher(config, grid, device)
    return SpeechTeacher(config, grid, device)


def teacher_settings(config: TeacherConfig, frames: CodecFrames) -> dict[str, Any]:
    """What a store's features must be of, without the models; needs no model files."""
    kind = "text" if isinstance(config, TextTeacherConfig) else "speech"
    settings = config.model_dump(mode="json", exclude={"language_model", "model"})
    for place in ("model", "word_times"):
        settings.get("stt", {}).pop(place, None)
    return {"teacher": kind, **frames.model_dump(), **settings}


def teacher_models(config: TeacherConfig, *, may_download: bool = True) -> dict[str, str]:
    """Hashes of a teacher's models; raises FileNotFoundError where they are not at hand."""
    if isinstance(config, TextTeacherConfig):
        return text_teacher_models(config, may_download=may_download)
    return speech_teacher_models(config, may_download=may_download)


def extract(
    utterances: Sequence[Utterance],
    folder: Path,
    config: TeacherConfig,
    frames: CodecFrames,
    *,
    num_processes: int = 1,
    device: str = "cpu",
    shard_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractionReport:
    """Computes what is missing in a store; gives what was done, skipped and failed.

    An utterance whose sound cannot be read is listed in `failed.jsonl` and tried again next time.

    Args:
        utterances: whose features are wanted.
        folder: of the store; begun when it is not there, else it must be of the same teacher.
        config: the teacher.
        frames: of the codec.
        num_processes: at work at the same time, each with its own copy of the models.
        device: of the models, such as "cpu" or "cuda".
        shard_size: utterances of a shard.
        progress: called with how many utterances are finished, and how many there are.

    Raises:
        FolderInUse: another job fills the store.
        ExtractionStopped: a process died.
        StoreError: the folder holds features of another teacher or other settings.
        FileNotFoundError, ModuleNotFoundError: a model or a package is missing.
    """
    check_count("the number of processes", num_processes)
    if shard_size < 1:
        raise ValueError(f"shard size ({shard_size}) starts at 1")
    info = StoreInfo(teacher_settings(config, frames), teacher_models(config), _feature_dim(config))
    with lock_folder(folder):
        create_store(folder, info)
        existing = FeatureStore(folder)
        missing = [utterance for utterance in utterances if utterance.id not in existing]
        num_there = len(utterances) - len(missing)
        report = ExtractionReport(
            total=len(utterances), num_before=num_there, listed_in=folder / FAILURES_NAME
        )
        shards = [missing[i : i + shard_size] for i in range(0, len(missing), shard_size)]
        first = next_shard_number(folder)
        jobs: list[_Job] = [(folder, n, info, shard) for n, shard in enumerate(shards, first)]
        message = "%s: %d utterances to do, %d there, %d processes"
        logger.info(message, folder, len(missing), num_there, num_processes)
        progress(report.num_finished, report.total)
        for result in _run(jobs, (config, frames, device), num_processes):
            report.num_done += result.num_done
            report.num_without_features += result.num_without_features
            report.failures += result.failures
            progress(report.num_finished, report.total)
        write_failures(folder / FAILURES_NAME, report.failures)
    return report


_Job = tuple[Path, int, StoreInfo, Sequence[Utterance]]
_Setting = tuple[TeacherConfig, CodecFrames, str]
# A process's own teacher, built once in it: models do not travel between processes.
_teachers: list[tuple[Teacher, CodecFrames]] = []


def _run(jobs: list[_Job], setting: _Setting, num_processes: int) -> Iterator[_ShardResult]:
    """Results as they come; with one process the work is done here."""
    if not jobs:
        return
    if num_processes == 1:
        config, frames, device = setting
        teacher = build_teacher(config, frames, device)
        for job in jobs:
            yield _do_shard(teacher, frames, *job)
        return
    # A few shards ahead are enough, and leave little to throw away when the job is stopped.
    waiting = iter(jobs)
    with ProcessPoolExecutor(
        num_processes, get_context("spawn"), initializer=_start_process, initargs=setting
    ) as pool:
        running: set[Future[_ShardResult]] = {
            pool.submit(_do_shard_in_process, job) for job in islice(waiting, 2 * num_processes)
        }
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    raise ExtractionStopped(
                        "a process died (out of memory?); finished shards are kept: give the same "
                        "command to go on, with fewer processes if it happens again"
                    ) from error
                running |= {pool.submit(_do_shard_in_process, job) for job in islice(waiting, 1)}


def _start_process(config: TeacherConfig, frames: CodecFrames, device: str) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _teachers.append((build_teacher(config, frames, device), frames))


def _do_shard_in_process(job: _Job) -> _ShardResult:
    teacher, frames = _teachers[0]
    return _do_shard(teacher, frames, *job)


def _do_shard(
    teacher: Teacher,
    frames: CodecFrames,
    folder: Path,
    number: int,
    info: StoreInfo,
    utterances: Sequence[Utterance],
) -> _ShardResult:
    stored: list[StoredUtterance] = []
    failures: list[Failure] = []
    for utterance in utterances:
        try:
            stored.append(extract_utterance(teacher, frames, utterance))
        except (ValueError, OSError) as problem:
            failures.append({**utterance.to_line(), "reason": str(problem)})
    if stored:
        write_shard(folder, number, info, stored)
    num_empty = sum(not each.track.mask.any() for each in stored)
    return _ShardResult(len(stored), num_empty, failures)


def extract_utterance(
    teacher: Teacher, frames: CodecFrames, utterance: Utterance
) -> StoredUtterance:
    """Features and words of one utterance, which is read whole, its DC removed."""
    waveform = remove_dc(read_utterance(utterance, sample_rate=TIME_RATE))
    num_samples = len(waveform)
    if frames.sample_rate != TIME_RATE:
        num_samples = len(read_utterance(utterance, sample_rate=frames.sample_rate))
    num_frames = count_frames(num_samples, frames.hop_length)
    track, words = teacher.track(waveform, utterance.text, utterance.id, num_frames)
    return StoredUtterance(utterance.id, track, words)


def _feature_dim(config: TeacherConfig) -> int:
    """H, from the model's files without its weights."""
    is_text = isinstance(config, TextTeacherConfig)
    name = config.language_model if isinstance(config, TextTeacherConfig) else config.model
    folder = find_model(name, needs_tokenizer=is_text, needs_preprocessor=not is_text)
    return model_width(folder)
