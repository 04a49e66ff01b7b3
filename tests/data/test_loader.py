import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmcodec.audio import AudioError, remove_dc, write_audio
from dmcodec.corpus.manifest import Utterance
from dmcodec.data.dataset import DataConfig, SegmentDataset
from dmcodec.data.features import BatchGuidance, FrameFeatures
from dmcodec.data.loader import SegmentBatch, make_train_loader, validation_clips
from dmcodec.teachers.alignment import Word


def make_waveform(num_samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, num_samples).astype(np.float32)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for number in range(5):
        path = folder / f"u{number}.flac"
        write_audio(path, make_waveform(4_000 + 1_111 * number, seed=number))
        made.append(Utterance(id=f"u{number}", audio=path))
    return made


@pytest.fixture(scope="module")
def dataset(utterances: list[Utterance]) -> SegmentDataset:
    config = DataConfig(
        train_manifests=(Path("unused.jsonl"),), segment_samples=4_800, use_preload=True
    )
    return SegmentDataset(utterances, config, seed=11)


def assert_equal(batches: list[SegmentBatch], expected: list[SegmentBatch]) -> None:
    assert len(batches) == len(expected)
    for batch, wanted in zip(batches, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch[:4], wanted[:4], strict=True))


def join_ranks(of_ranks: list[list[SegmentBatch]]) -> list[SegmentBatch]:
    """The ranks' batches of each step as one batch."""
    return [
        SegmentBatch(*(torch.cat(fields) for fields in list(zip(*parts, strict=True))[:4]))
        for parts in zip(*of_ranks, strict=True)
    ]


def test_step_s_takes_the_s_th_run_of_segments(dataset: SegmentDataset) -> None:
    loader = make_train_loader(dataset, global_batch_size=3, first_step=4, end_step=6)

    batches = list(loader)

    assert len(batches) == 2
    for step, batch in zip([4, 5], batches, strict=True):
        assert batch.waveform.shape == (3, 1, 4_800)
        for item in range(3):
            segment = dataset[3 * step + item]
            assert torch.equal(batch.waveform[item], segment.waveform)
            assert batch.num_samples[item] == segment.num_samples
            assert batch.utterance_index[item] == segment.utterance_index
            assert batch.start_samples[item] == segment.start_samples


def test_number_of_workers_changes_nothing(dataset: SegmentDataset) -> None:
    alone = make_train_loader(dataset, global_batch_size=4, end_step=7)
    with_workers = make_train_loader(dataset, global_batch_size=4, end_step=7, num_workers=2)

    assert_equal(list(with_workers), list(alone))


@given(
    local_size=st.integers(1, 3),
    world_size=st.integers(1, 4),
    first_step=st.integers(0, 10**9),
)
@settings(max_examples=30)
def test_ranks_together_give_the_batch_of_one_process(
    dataset: SegmentDataset, local_size: int, world_size: int, first_step: int
) -> None:
    size, end_step = local_size * world_size, first_step + 2
    whole = make_train_loader(
        dataset, global_batch_size=size, first_step=first_step, end_step=end_step
    )
    of_ranks = [
        make_train_loader(
            dataset,
            global_batch_size=size,
            first_step=first_step,
            end_step=end_step,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]

    assert_equal(join_ranks([list(loader) for loader in of_ranks]), list(whole))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resuming_gives_the_same_continuation(dataset: SegmentDataset, num_workers: int) -> None:
    whole = list(make_train_loader(dataset, global_batch_size=2, end_step=10))

    resumed = make_train_loader(
        dataset, global_batch_size=2, first_step=5, end_step=10, num_workers=num_workers
    )

    assert_equal(list(resumed), whole[5:])


def test_loader_without_an_end_goes_on(dataset: SegmentDataset) -> None:
    loader = make_train_loader(dataset, global_batch_size=1)

    last = next(itertools.islice(iter(loader), 500, None))

    assert torch.equal(last.waveform[0], dataset[500].waveform)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_state_is_left_alone(dataset: SegmentDataset, num_workers: int) -> None:
    before = torch.get_rng_state()

    list(make_train_loader(dataset, global_batch_size=2, end_step=3, num_workers=num_workers))

    assert torch.equal(torch.get_rng_state(), before)


def test_damaged_file_is_named_by_a_worker_too(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.flac", make_waveform(4_800, seed=0))
    content = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
    config = DataConfig(train_manifests=(Path("unused"),), segment_samples=4_800)
    damaged = SegmentDataset([Utterance(id="x", audio=tmp_path / "x.flac")], config, seed=0)

    with pytest.raises(AudioError, match=r"x\.flac: damaged"):
        next(iter(make_train_loader(damaged, global_batch_size=1, num_workers=1)))


def test_impossible_shares_are_refused(dataset: SegmentDataset) -> None:
    with pytest.raises(ValueError, match="global_batch_size = 5 must be a positive multiple"):
        make_train_loader(dataset, global_batch_size=5, world_size=2)
    with pytest.raises(ValueError, match="rank must be in 0 to 1, got 2"):
        make_train_loader(dataset, global_batch_size=4, rank=2, world_size=2)
    with pytest.raises(ValueError, match="0 <= 3 <= 2"):
        make_train_loader(dataset, global_batch_size=4, first_step=3, end_step=2)


def test_validation_reads_whole_utterances_in_order(utterances: list[Utterance]) -> None:
    clips = list(validation_clips(utterances))

    assert [clip.utterance for clip in clips] == utterances
    for number, clip in enumerate(clips):
        expected = remove_dc(make_waveform(4_000 + 1_111 * number, seed=number))
        assert clip.utterance_index == number
        # The files are rounded to 16 bits.
        torch.testing.assert_close(
            clip.waveform, torch.from_numpy(expected)[None, None], rtol=0, atol=2**-15
        )


def test_validation_clips_are_trimmed_to_their_beginning(utterances: list[Utterance]) -> None:
    clips = list(validation_clips(utterances, max_samples=6_000))

    assert [clip.waveform.shape[-1] for clip in clips] == [4_000, 5_111, 6_000, 6_000, 6_000]
    beginning = remove_dc(make_waveform(8_444, seed=4)[:6_000])
    torch.testing.assert_close(
        clips[4].waveform[0, 0], torch.from_numpy(beginning), rtol=0, atol=2**-15
    )
    with pytest.raises(ValueError, match="max_samples must be at least 1"):
        next(validation_clips(utterances, max_samples=0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_clip_is_validated_by_exactly_one_rank(
    utterances: list[Utterance], world_size: int
) -> None:
    of_ranks = [
        [
            clip.utterance_index
            for clip in validation_clips(utterances, rank=r, world_size=world_size)
        ]
        for r in range(world_size)
    ]

    assert sorted(itertools.chain(*of_ranks)) == list(range(5))


def test_batch_goes_to_a_device_with_all_that_networks_compute_with(dataset: SegmentDataset):
    (batch,) = make_train_loader(dataset, global_batch_size=2, end_step=1)
    features = FrameFeatures(torch.zeros(2, 15, 3, dtype=torch.float16), torch.ones(2, 15).bool())
    words = ((), (Word("so", 1.0, 2.0),))
    batch = batch._replace(
        guidance=BatchGuidance(text=features, words=words), codes=torch.zeros(2, 8, 15).long()
    )

    moved = batch.to(torch.device("meta"))  # as far from the CPU as a GPU is

    assert moved.guidance is not None
    there = [moved.waveform, moved.codes, *moved.guidance.text]
    assert {each.device.type for each in there} == {"meta"}
    assert moved.guidance.words == words
    for number in (1, 2, 3):  # looked at on the CPU, without waiting
        assert torch.equal(moved[number], batch[number])


def test_pinned_batch_is_the_batch(dataset: SegmentDataset, monkeypatch: pytest.MonkeyPatch):
    (batch,) = make_train_loader(dataset, global_batch_size=2, end_step=1)
    pinned: list[torch.Tensor] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        pinned.append(self)
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)

    # What the loader's thread calls where there is a GPU.
    found = torch.utils.data._utils.pin_memory.pin_memory(batch)

    assert [each.shape for each in pinned] == [batch.waveform.shape]
    assert_equal([found], [batch])
