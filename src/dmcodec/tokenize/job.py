"""Whole corpora into shards of tokens: resumable, each utterance exactly once.

The manifest's utterances i * shard_size to (i + 1) * shard_size - 1 form shard i, whoever works
on it and in whatever order, so a job that was stopped and one that was not end with equal files.
What shards are on disk is in tokens/shards.py.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dmcodec.audio import samples_to_seconds
from dmcodec.codec.model import Codec
from dmcodec.codec.search_limits import check_search_width
from dmcodec.corpus.manifest import Utterance
from dmcodec.jobs import (
    FAILURES_NAME,
    Failure,
    Progress,
    Report,
    describe_failure,
    no_progress,
    write_failures,
)
from dmcodec.storage import delete_leftovers, lock_folder
from dmcodec.tokenize.cluster import Cluster, tokenize_with_ray
from dmcodec.tokenize.pipeline import Shard, ShardResult, Speed, Times, tokenize_shards
from dmcodec.tokens.bitstream import dumps, make_header
from dmcodec.tokens.shards import (
    INFO_NAME,
    CorpusInfo,
    ShardError,
    ShardSummary,
    check_same,
    dump_webdataset,
    load_shard,
    read_info,
    read_summary,
    write_durably,
)


class TooManyFailures(ValueError):
    """More utterances failed than the job allows; they are listed in failures.jsonl."""


@dataclass(kw_only=True)
class TokenizeReport(Report):
    """What a job did, in utterances; failures are in the order of the manifest."""

    wall_s: float = 0.0
    times: Times = field(default_factory=Times)

    def describe_speed(self, sample_rate: int) -> str:
        """Where the time went, in one line; of a job that did something."""
        times, speech_s = self.times, samples_to_seconds(self.times.num_samples, sample_rate)
        padding = 1 - times.num_samples / times.network_samples
        return (
            f"{speech_s / 60:.1f} min of speech in {self.wall_s / 60:.1f} min: "
            f"{speech_s / self.wall_s:.1f} hours an hour; network {times.network_s:.1f} s "
            f"({padding:.1%} padding), waiting for files {times.wait_s:.1f} s, reading in its "
            f"threads {times.read_s:.1f} s"
        )


def describe_corpus(
    codec: Codec,
    utterances: Sequence[Utterance],
    *,
    num_codebooks: int | None = None,
    search_width: int = 1,
    shard_size: int = 256,
    max_samples: int | None = None,
    has_webdataset: bool = False,
    has_dmc: bool = False,
) -> CorpusInfo:
    """The description of the shards that a codec makes of a manifest; see `CorpusInfo`."""
    quantizer = codec.config.quantizer
    books = quantizer.num_codebooks if num_codebooks is None else num_codebooks
    if not 1 <= books <= quantizer.num_codebooks:
        raise ValueError(f"num_codebooks must be 1 to {quantizer.num_codebooks}, got {books}")
    digest = blake2b(digest_size=16)
    for utterance in utterances:
        said = {**utterance.model_dump(mode="json"), "audio": utterance.audio.name}
        digest.update(json.dumps(said, sort_keys=True).encode())
    return CorpusInfo(
        model_id=codec.model_id,
        model_hash=codec.fingerprint(),
        sample_rate=codec.config.sample_rate,
        hop_length=codec.config.hop_length,
        num_codebooks=books,
        codebook_size=quantizer.codebook_size,
        shard_size=shard_size,
        max_samples=max_samples,
        manifest_hash=digest.hexdigest(),
        num_utterances=len(utterances),
        precision=codec.precision,
        search_width=check_search_width(search_width),
        has_webdataset=has_webdataset,
        has_dmc=has_dmc,
    )


def tokenize(
    codec: Codec,
    utterances: Sequence[Utterance],
    output: Path,
    info: CorpusInfo,
    *,
    speed: Speed | None = None,
    cluster: Cluster | None = None,
    max_failures: int | str = 100,
    progress: Progress = no_progress,
) -> TokenizeReport:
    """Fills a folder with the shards that are not there yet.

    Args:
        codec: in evaluation mode, on its device.
        utterances: the whole manifest, the same for every run.
        output: made if missing; finished shards in it are kept as they are.
        info: of `describe_corpus` for this codec and these utterances.
        speed: does not change the rows.
        cluster: None: this process; else Ray with these workers.
        max_failures: more failed utterances, of all runs together, stop the job, because finished
            shards are never made again; see `dmcodec.jobs.count_allowed`.
        progress: told of every batch, of utterances.

    Raises:
        FolderInUse: another job is at work here.
        FolderLost: somebody deleted the folder while the job was at work.
        ValueError: it was begun with other settings.
        TooManyFailures: the shards made so far stay; raise the limit to go on.
        OSError: a result could not be written, such as on a full disk; run again to go on.
    """
    started = time.perf_counter()
    with lock_folder(output) as lock:
        job = TokenizeReport(total=len(utterances), listed_in=output / FAILURES_NAME)
        info = _claim(output, info)
        summaries = _find_shards(output, info)
        job.num_before = sum(summary.num_rows for summary in summaries.values())
        job.failures = _list_failures(summaries)
        missing = [index for index in range(info.num_shards) if index not in summaries]
        shards = (_cut_shard(utterances, info, index) for index in missing)
        try:
            _check_failures(job, max_failures)
            arguments = (codec, shards, info, speed or Speed())
            on_progress = _counter(progress, job)
            results = (
                tokenize_shards(*arguments, on_progress)
                if cluster is None
                else tokenize_with_ray(*arguments, cluster, on_progress)
            )
            with closing(results):  # ends its threads or workers also when this stops early
                for result in results:
                    lock.check()
                    _write_shard(output, info, result)
                    job.num_done += result.summary.num_rows
                    summaries[result.number] = result.summary
                    job.failures = _list_failures(summaries)
                    job.times.add(result.times)
                    _check_failures(job, max_failures)
        finally:
            lock.check()  # writing would make the folder anew
            write_failures(output / FAILURES_NAME, job.failures)
    job.wall_s = time.perf_counter() - started
    return job


def _claim(output: Path, info: CorpusInfo) -> CorpusInfo:
    """The folder's description: as a job wrote that began here before, or as it is written now."""
    if (output / INFO_NAME).exists():
        written = read_info(output)
        check_same(output, written, info)
        return written
    found = sorted(output.glob("shard-*.parquet"))
    if found:
        raise ValueError(f"{output} holds {found[0].name} but no {INFO_NAME}: use another folder")
    write_durably(output / INFO_NAME, (info.model_dump_json(indent=2) + "\n").encode())
    return info


def _find_shards(output: Path, info: CorpusInfo) -> dict[int, ShardSummary]:
    """What the shards that are there say, by their numbers."""
    delete_leftovers(output)
    found = {}
    for index in range(info.num_shards):
        path = output / f"{info.shard_name(index)}.parquet"
        if not path.exists():
            continue
        summary = read_summary(path, info.settings_hash(), index)
        num_said, num_due = summary.num_rows + len(summary.failures), _shard_length(info, index)
        if num_said != num_due:
            raise ShardError(
                f"{path} holds {num_said} utterances, {num_due} are due: remove it and run again"
            )
        found[index] = summary
    return found


def _shard_length(info: CorpusInfo, index: int) -> int:
    return min(info.shard_size, info.num_utterances - index * info.shard_size)


def _cut_shard(utterances: Sequence[Utterance], info: CorpusInfo, index: int) -> Shard:
    start = index * info.shard_size
    return Shard(index, utterances[start : start + info.shard_size])


def _write_shard(output: Path, info: CorpusInfo, result: ShardResult) -> None:
    """The Parquet file comes last: its being there says that the shard is finished."""
    name = info.shard_name(result.number)
    if info.has_webdataset or info.has_dmc:
        rows = list(load_shard(result.data))
        if info.has_webdataset:
            write_durably(output / f"{name}.tar", dump_webdataset(rows))
        if info.has_dmc:
            for row in rows:
                header = make_header(info, row.num_samples, info.num_codebooks)
                data = dumps(row.codes.astype(np.int64), header)
                write_durably(output / "dmc" / f"{row.id}.dmc", data)
    write_durably(output / f"{name}.parquet", result.data)


def _counter(progress: Progress, job: Report) -> Callable[[int], None]:
    """Tells `progress` of utterances as they are worked on, and now of those that were there."""
    finished = job.num_finished

    def add(count: int) -> None:
        nonlocal finished
        finished += count
        progress("tokenizing", finished, job.total)

    add(0)
    return add


def _list_failures(summaries: Mapping[int, ShardSummary]) -> list[Failure]:
    """Those of all shards, in the order of the manifest whatever that of the shards was."""
    return [each for _, shard in sorted(summaries.items()) for each in shard.failures]


def _check_failures(job: Report, max_failures: int | str) -> None:
    if job.is_beyond(max_failures):
        raise TooManyFailures(
            f"{len(job.failures)} of {job.total} utterances failed, more than --max-failures "
            f"{max_failures}; the first is {describe_failure(job.failures[0])}. All are in "
            f"{job.listed_in}; allow more to go on"
        )
