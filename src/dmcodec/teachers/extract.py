"""Features of a whole corpus, computed once: a job that resumes, in several processes.

A process works on one shard of utterances at a time; a job killed at any moment has lost at most
the shards that were in work.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmcodec.audio import remove_dc
from dmcodec.config import Record
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.sources import read_utterance
from dmcodec.pretrained.models import find_model
from dmcodec.pretrained.whisper import model_width
from dmcodec.processes import check_count, end_with_parent
from dmcodec.storage import lock_folder, write_whole
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


class CodecFrames(Record):
    """The frames that features are made for."""

    sample_rate: int
    hop_length: int


class ExtractionStopped(ValueError):
    """A process of the job died; the message says what to do."""


@dataclass
class ExtractionSummary:
    """What a job did: counts, ids that failed with reasons, and utterances without any feature."""

    num_done: int = 0
    num_skipped: int = 0
    num_without_features: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def failed_share(self) -> float:
        """Of all utterances of the job."""
        total = self.num_done + self.num_skipped + len(self.failed)
        return len(self.failed) / total if total else 0.0


class _ShardResult(NamedTuple):
    num_done: int
    num_without_features: int
    failed: dict[str, str]


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
    on_progress: Callable[[int, int], None] | None = None,
) -> ExtractionSummary:
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
        on_progress: called with how many utterances are finished, and how many there are.

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
        return _fill(
            utterances,
            folder,
            info,
            (config, frames, device),
            num_processes,
            shard_size,
            on_progress,
        )


def _fill(
    utterances: Sequence[Utterance],
    folder: Path,
    info: StoreInfo,
    setting: "_Setting",
    num_processes: int,
    shard_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> ExtractionSummary:
    """`extract` in a store that is this job's alone."""
    existing = FeatureStore(folder)
    missing = [utterance for utterance in utterances if utterance.id not in existing]
    summary = ExtractionSummary(num_skipped=len(utterances) - len(missing))
    shards = [missing[i : i + shard_size] for i in range(0, len(missing), shard_size)]
    first = next_shard_number(folder)
    jobs: list[_Job] = [
        (folder, first + number, info, shard) for number, shard in enumerate(shards)
    ]
    logger.info(
        "%s: %d utterances to do, %d there, %d processes",
        folder,
        len(missing),
        summary.num_skipped,
        num_processes,
    )
    for result in _run(jobs, setting, num_processes):
        summary.num_done += result.num_done
        summary.num_without_features += result.num_without_features
        summary.failed |= result.failed
        if on_progress is not None:
            finished = summary.num_done + len(summary.failed)
            on_progress(finished, len(missing))
    _write_failed(folder / "failed.jsonl", summary.failed)
    return summary


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
    failed: dict[str, str] = {}
    for utterance in utterances:
        try:
            stored.append(extract_utterance(teacher, frames, utterance))
        except (ValueError, OSError) as problem:
            failed[utterance.id] = str(problem)
    if stored:
        write_shard(folder, number, info, stored)
    num_empty = sum(not each.track.mask.any() for each in stored)
    return _ShardResult(len(stored), num_empty, failed)


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


def _write_failed(path: Path, failed: dict[str, str]) -> None:
    lines = [json.dumps({"id": key, "reason": reason}) + "\n" for key, reason in failed.items()]
    write_whole(path, "".join(lines))
