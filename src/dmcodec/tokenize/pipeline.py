"""Shards of a manifest through the codec: reading ahead, batches of similar length, rows.

Which utterances form a shard, and what becomes of its rows, is decided in job.py.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcodec.audio import SAMPLE_RATE, Waveform, samples_to_seconds
from dmcodec.codec.long import encode_long
from dmcodec.codec.model import Codec
from dmcodec.codec.quantizer import LatentsError
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.sources import Source, find_source, measure
from dmcodec.jobs import Failure
from dmcodec.processes import check_count
from dmcodec.tokens.shards import CorpusInfo, ShardSummary, TokenRow, dump_shard

# Utterances share a batch only when the shortest has this much of the longest one's length.
_LEAST_FILL = 0.8
_MAX_NAME_BYTES = 255  # of file systems


class Shard(NamedTuple):
    """The utterances that form one shard."""

    number: int
    utterances: Sequence[Utterance]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Settings that change how fast rows come, never which.

    batch_samples: the most samples in a batch of the network, padding included; an utterance
        that is longer is a batch of its own.
    num_readers: threads that read, decode and resample ahead of the network.
    """

    batch_samples: int = 16 * SAMPLE_RATE
    num_readers: int = 2

    def __post_init__(self) -> None:
        check_count("num_readers", self.num_readers)
        if self.batch_samples < 1:
            raise ValueError("batch_samples must be positive")


@dataclass
class Times:
    """Where the time of a job goes.

    network_s, wait_s: the network at work, and waiting for waveforms.
    read_s: spent in all reader threads together.
    network_samples, num_samples: through the network with and without padding.
    """

    network_s: float = 0.0
    wait_s: float = 0.0
    read_s: float = 0.0
    network_samples: int = 0
    num_samples: int = 0

    def add(self, other: "Times") -> None:
        """Adds what another part of the job took."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class ShardResult:
    """A finished shard: its Parquet file in memory, its summary, and what it took."""

    number: int
    data: bytes
    summary: ShardSummary
    times: Times


class _Loaded(NamedTuple):
    """What a reader thread found; `sound` is a Source when it is too long to be read as one."""

    sound: Waveform | Source
    source_hash: str
    read_s: float


class _Unreadable(Exception):
    """An utterance cannot be encoded; the message is the reason that is listed."""


class _Batch(NamedTuple):
    """Positions of utterances in their shard; `is_last` closes it."""

    shard: Shard
    positions: list[int]
    is_last: bool


def tokenize_shards(
    codec: Codec,
    shards: Iterable[Shard],
    info: CorpusInfo,
    speed: Speed,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Generator[ShardResult, None, None]:
    """Works on shards in order; files of the next batches are read while the network works.

    `on_progress` is called with the number of utterances worked on since its last call.
    """
    pool = ThreadPoolExecutor(speed.num_readers, thread_name_prefix="reader")
    try:
        rows: dict[int, TokenRow] = {}
        failures: dict[int, Failure] = {}
        times = Times()
        for batch, futures in _load_ahead(
            codec, _batches(shards, pool, info, speed), pool, info, speed
        ):
            started = time.perf_counter()
            loaded = [_result(future) for future in futures]
            times.wait_s += time.perf_counter() - started
            made = _encode_batch(codec, batch, loaded, info, times, pool)
            for position, one in made.items():
                if isinstance(one, TokenRow):
                    rows[position] = one
                else:
                    said = batch.shard.utterances[position].to_line()
                    failures[position] = {**said, "reason": str(one)}
            on_progress(len(batch.positions))
            if batch.is_last:
                # In the order of the manifest, whatever the order of the batches was.
                ordered = [rows[position] for position in sorted(rows)]
                reasons = [failures[position] for position in sorted(failures)]
                number = batch.shard.number
                data = dump_shard(ordered, reasons, info.settings_hash(), number)
                summary = ShardSummary(len(ordered), sum(r.num_samples for r in ordered), reasons)
                yield ShardResult(number, data, summary, times)
                rows, failures, times = {}, {}, Times()
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: "Future[_Loaded]") -> _Loaded | _Unreadable:
    try:
        return future.result()
    except _Unreadable as problem:
        return problem


def _encode_batch(
    codec: Codec,
    batch: _Batch,
    loaded: Sequence[_Loaded | _Unreadable],
    info: CorpusInfo,
    times: Times,
    pool: ThreadPoolExecutor,
) -> dict[int, TokenRow | _Unreadable]:
    """The row of every utterance of a batch, or why there is none, by position in the shard."""
    made: dict[int, TokenRow | _Unreadable] = {}
    short: list[tuple[int, str, Waveform]] = []
    for position, one in zip(batch.positions, loaded, strict=True):
        if isinstance(one, _Unreadable):
            made[position] = one
            continue
        times.read_s += one.read_s
        if isinstance(one.sound, Source):
            try:
                codes, source_hash = _encode_parts(codec, one.sound, info, times, pool)
            except _Unreadable as problem:
                made[position] = problem
                continue
            utterance = batch.shard.utterances[position]
            made[position] = _row(utterance, codes, one.sound.num_samples, source_hash, info)
        else:
            short.append((position, one.source_hash, one.sound))
    if short:
        started = time.perf_counter()
        encoded = _encode_short(codec, [w for _, _, w in short], info)
        for (position, source_hash, waveform), found in zip(short, encoded, strict=True):
            utterance = batch.shard.utterances[position]
            made[position] = (
                found
                if isinstance(found, _Unreadable)
                else _row(utterance, found, len(waveform), source_hash, info)
            )
        times.network_s += time.perf_counter() - started
        times.num_samples += sum(len(w) for _, _, w in short)
        times.network_samples += len(short) * max(len(w) for _, _, w in short)
    return made


def _encode_short(
    codec: Codec, waveforms: list[Waveform], info: CorpusInfo
) -> list[Tensor | _Unreadable]:
    """Codes [K, L_i] of each, or why it has none; one without codes does not spoil the others."""
    try:
        encoded = codec.encode(
            waveforms, num_codebooks=info.num_codebooks, search_width=info.search_width
        )
    except LatentsError as problem:
        if len(waveforms) == 1:
            return [_Unreadable(str(problem))]
        return [codes for each in waveforms for codes in _encode_short(codec, [each], info)]
    return [encoded.item(number) for number in range(len(encoded))]


def _encode_parts(
    codec: Codec, source: Source, info: CorpusInfo, times: Times, pool: ThreadPoolExecutor
) -> tuple[Tensor, str]:
    """Codes [K, L] and hash of a long utterance that is read in parts, one ahead of the network.

    Raises _Unreadable when a part cannot be read.
    """
    digest = blake2b(digest_size=16)
    parts = source.read_parts()
    wait_s = 0.0

    def read() -> Waveform | None:
        started = time.perf_counter()
        try:
            return next(parts, None)
        except (ValueError, OSError) as problem:
            raise _Unreadable(str(problem)) from problem
        finally:
            times.read_s += time.perf_counter() - started

    def blocks() -> Iterator[Tensor]:
        nonlocal wait_s
        ahead = pool.submit(read)
        while True:
            started = time.perf_counter()
            part = ahead.result()
            wait_s += time.perf_counter() - started
            if part is None:
                return
            ahead = pool.submit(read)
            digest.update(_sample_bytes(part))
            yield torch.from_numpy(part)

    started = time.perf_counter()
    try:
        codes, num_samples = encode_long(
            codec, blocks(), num_codebooks=info.num_codebooks, search_width=info.search_width
        )
    except LatentsError as problem:
        raise _Unreadable(f"{source.sound}: {problem}") from problem
    times.network_s += time.perf_counter() - started - wait_s
    times.wait_s += wait_s
    times.num_samples += num_samples
    times.network_samples += num_samples
    return codes, digest.hexdigest()


def _row(
    utterance: Utterance, codes: Tensor, num_samples: int, source_hash: str, info: CorpusInfo
) -> TokenRow:
    return TokenRow(
        id=utterance.id,
        codes=codes.cpu().numpy().astype(np.uint16),
        num_samples=num_samples,
        speaker=utterance.speaker,
        text=utterance.text,
        source_hash=source_hash,
        model_hash=info.model_hash,
    )


def _batches(
    shards: Iterable[Shard], pool: ThreadPoolExecutor, info: CorpusInfo, speed: Speed
) -> Iterator[_Batch]:
    """The batches of all shards; lengths of the next shard are looked up one shard ahead."""
    waiting: deque[tuple[Shard, list[Future[int]]]] = deque()
    for shard in shards:
        lengths = [pool.submit(_length, each, info.sample_rate) for each in shard.utterances]
        waiting.append((shard, lengths))
        if len(waiting) > 1:
            yield from _group(*waiting.popleft(), speed.batch_samples)
    while waiting:
        yield from _group(*waiting.popleft(), speed.batch_samples)


def _group(shard: Shard, lengths: Sequence[Future[int]], batch_samples: int) -> Iterator[_Batch]:
    """A shard in batches of similar length, the longest first."""
    sizes = [length.result() for length in lengths]
    order = sorted(range(len(sizes)), key=lambda position: (-sizes[position], position))
    batch = [order[0]]
    for position in order[1:]:
        longest = sizes[batch[0]]
        is_full = (len(batch) + 1) * longest > batch_samples
        if is_full or sizes[position] < _LEAST_FILL * longest:
            yield _Batch(shard, batch, is_last=False)
            batch = []
        batch.append(position)
    yield _Batch(shard, batch, is_last=True)


def _load_ahead(
    codec: Codec,
    batches: Iterator[_Batch],
    pool: ThreadPoolExecutor,
    info: CorpusInfo,
    speed: Speed,
) -> Iterator[tuple[_Batch, list[Future[_Loaded]]]]:
    """Each batch with its waveforms to come; those of the next batches are under way."""
    waiting: deque[tuple[_Batch, list[Future[_Loaded]]]] = deque()
    for batch in batches:
        utterances = [batch.shard.utterances[position] for position in batch.positions]
        waiting.append((batch, [pool.submit(_load, codec, each, info) for each in utterances]))
        if len(waiting) > 1 + speed.num_readers:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _length(utterance: Utterance, sample_rate: int) -> int:
    """Samples, for grouping only: the manifest's word, or the file's header; 0 if unreadable."""
    if utterance.num_samples is not None:
        return round(utterance.num_samples * sample_rate / SAMPLE_RATE)
    try:
        return measure(utterance, sample_rate)
    except (ValueError, OSError):
        return 0  # reading it will say why


def _load(codec: Codec, utterance: Utterance, info: CorpusInfo) -> _Loaded:
    """Reads an utterance, or only finds it when it is to be read in parts."""
    started = time.perf_counter()
    file_name = f"{utterance.id}.dmc"
    if info.has_dmc and max(map(len, map(os.fsencode, file_name.split("/")))) > _MAX_NAME_BYTES:
        raise _Unreadable(
            f"the id {utterance.id!r} is too long for the name of a file; leave out --dmc"
        )
    try:
        source = find_source(utterance, info.sample_rate)
        if info.max_samples is not None and source.num_samples > info.max_samples:
            lengths = (source.num_samples, info.max_samples)
            found_s, allowed_s = (samples_to_seconds(n, info.sample_rate) for n in lengths)
            raise _Unreadable(
                f"{source.sound}: lasts {found_s:.1f} s, more than the {allowed_s:g} s allowed"
            )
        if codec.is_long(source.num_samples):
            return _Loaded(source, "", 0.0)
        waveform = source.read()
    except (ValueError, OSError) as problem:
        raise _Unreadable(str(problem)) from problem
    digest = blake2b(_sample_bytes(waveform), digest_size=16)
    return _Loaded(waveform, digest.hexdigest(), time.perf_counter() - started)


def _sample_bytes(waveform: Waveform) -> memoryview:
    return np.ascontiguousarray(waveform, dtype="<f4").data
