"""The order in which segments are trained on, and the clips of validation.

Step s takes segments [s * B, (s + 1) * B) for the global batch size B, whatever the number of
ranks and workers: the step alone says where a resumed run goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from dmcodec.audio import SAMPLE_RATE, remove_dc
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.sources import measure, read_utterance
from dmcodec.data.dataset import Segment, SegmentDataset
from dmcodec.data.features import BatchGuidance, FrameFeatures, collate_guidance


class SegmentBatch(NamedTuple):
    """The segments of one step on one rank.

    Attributes:
        waveform: float32 `[B, 1, T]`, zero from each item's `num_samples` on.
        num_samples: int64 `[B]`, real samples of each item.
        utterance_index: int64 `[B]`, into the dataset's `utterances`.
        start_samples: int64 `[B]`, where each segment begins in its utterance.
        guidance: what teachers say about the segments; None without stores.
        codes: int64 `[B, K, L]`; None without stored codes.
    """

    waveform: Tensor
    num_samples: Tensor
    utterance_index: Tensor
    start_samples: Tensor
    guidance: BatchGuidance | None = None
    codes: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """What networks compute with, on a device; the copy of a pinned batch is not waited for.

        Numbers stay on the CPU, where they are looked at without waiting for a GPU.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same in memory that a GPU copies from by itself; the loader's own thread calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        guidance = self.guidance
        if guidance is not None:
            text, speech = (
                None if features is None else FrameFeatures(*map(function, features))
                for features in (guidance.text, guidance.speech)
            )
            guidance = guidance._replace(text=text, speech=speech)
        return self._replace(
            waveform=function(self.waveform),
            guidance=guidance,
            codes=None if self.codes is None else function(self.codes),
        )


class ValidationClip(NamedTuple):
    """One utterance for validation: waveform float32 `[1, 1, T]`, DC removed, and its record."""

    waveform: Tensor
    utterance_index: int
    utterance: Utterance


def make_train_loader(
    dataset: SegmentDataset,
    *,
    global_batch_size: int,
    first_step: int = 0,
    end_step: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    use_pinned_memory: bool = False,
) -> DataLoader[Segment]:
    """A loader whose k-th batch, a `SegmentBatch`, is this rank's part of step `first_step + k`.

    Rank r gets the r-th of `world_size` equal runs of the step's segments, so the ranks' batches
    in rank order are the batch of one process. The loader leaves torch's global random state
    alone. Iterating it twice gives the same batches twice.

    Args:
        dataset: gives segment n.
        global_batch_size: segments a step over all ranks; a multiple of `world_size`.
        first_step: step to begin at; a run resumed after s finished steps begins at s.
        end_step: the step after the last one; None means endless.
        rank: this process, from 0.
        world_size: number of processes.
        num_workers: worker processes that read ahead; changes the speed only.
        use_pinned_memory: for a GPU, see `SegmentBatch.pin_memory`; changes the speed only.
    """
    sampler = _StepSampler(
        _local_range(global_batch_size, rank, world_size), global_batch_size, first_step, end_step
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=use_pinned_memory,
        collate_fn=_collate,
        generator=torch.Generator(),
    )


def validation_clips(
    utterances: Sequence[Utterance],
    *,
    sample_rate: int = SAMPLE_RATE,
    max_samples: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[ValidationClip]:
    """Utterances rank, rank + world_size, ... read whole, or their first `max_samples`, in order.

    Every utterance is given by exactly one rank; ranks may get unequal numbers (or none), so
    nothing collective may happen per clip.

    Raises:
        FileNotFoundError: a sound file is missing.
        AudioError: a sound file is damaged.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1 or None, got {max_samples}")
    for index in _ranks_indices(len(utterances), rank, world_size):
        utterance = utterances[index]
        num_samples = None
        if max_samples is not None:
            num_samples = min(max_samples, measure(utterance, sample_rate))
        waveform = read_utterance(utterance, sample_rate=sample_rate, num_samples=num_samples)
        waveform = remove_dc(waveform)
        yield ValidationClip(torch.from_numpy(waveform)[None, None], index, utterance)


class _StepSampler(Sampler[list[int]]):
    """The segment numbers of one rank, a list per step."""

    def __init__(
        self, local: range, global_batch_size: int, first_step: int, end_step: int | None
    ) -> None:
        if first_step < 0 or (end_step is not None and end_step < first_step):
            raise ValueError(f"steps must satisfy 0 <= {first_step} <= {end_step}")
        self._local = local
        self._global_batch_size = global_batch_size
        self._first_step = first_step
        self._end_step = end_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self._first_step
        while self._end_step is None or step < self._end_step:
            yield [step * self._global_batch_size + item for item in self._local]
            step += 1


def _local_range(global_batch_size: int, rank: int, world_size: int) -> range:
    """Which items of a global batch are this rank's."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 to {world_size - 1}, got {rank}")
    if global_batch_size < 1 or global_batch_size % world_size:
        raise ValueError(
            f"global_batch_size = {global_batch_size} must be a positive multiple of "
            f"world_size = {world_size}"
        )
    local_size = global_batch_size // world_size
    return range(rank * local_size, (rank + 1) * local_size)


def _ranks_indices(count: int, rank: int, world_size: int) -> range:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 to {world_size - 1}, got {rank}")
    return range(rank, count, world_size)


def _collate(segments: list[Segment]) -> SegmentBatch:
    guidance = [segment.guidance for segment in segments if segment.guidance is not None]
    codes = [segment.codes for segment in segments if segment.codes is not None]
    return SegmentBatch(
        waveform=torch.stack([segment.waveform for segment in segments]),  # [B, 1, T]
        num_samples=torch.tensor([segment.num_samples for segment in segments]),
        utterance_index=torch.tensor([segment.utterance_index for segment in segments]),
        start_samples=torch.tensor([segment.start_samples for segment in segments]),
        guidance=collate_guidance(guidance) if guidance else None,
        codes=torch.stack(codes) if codes else None,
    )
