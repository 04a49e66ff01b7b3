from pathlib import Path

import numpy as np
import pytest
import torch

from dmcodec.audio import write_audio
from dmcodec.corpus.manifest import Utterance
from dmcodec.data.dataset import DataConfig, SegmentDataset
from dmcodec.data.features import TeacherStores
from dmcodec.data.loader import make_train_loader
from dmcodec.teachers.alignment import FeatureTrack, Word
from dmcodec.teachers.store import (
    FeatureStore,
    StoredUtterance,
    StoreError,
    StoreInfo,
    create_store,
    write_shard,
)

LENGTHS = [12_345, 3_200, 20_001, 500]
CONFIG = DataConfig(
    train_manifests=(Path("unused.jsonl"),), segment_samples=4_800, gain_db=(0.0, 0.0)
)


def frame_numbers(utterance: int, num_frames: int, width: int) -> FeatureTrack:
    """Features that name their utterance and frame; every fifth frame is masked."""
    rows = np.zeros((num_frames, width), dtype=np.float32)
    rows[:, 0], rows[:, 1] = utterance, np.arange(num_frames)
    frame_rows = np.arange(num_frames, dtype=np.int32)
    frame_rows[4::5] = -1
    return FeatureTrack(rows, frame_rows)


def make_store(folder: Path, width: int, lengths: list[int]) -> FeatureStore:
    info = StoreInfo({"width": width}, {}, width)
    create_store(folder, info)
    words = [
        Word("one", 0, 3_000),
        Word("lost"),
        Word("two", 3_000, 5_000),
        Word("3", 5_000, 7_000),
    ]
    items = [
        StoredUtterance(f"u{i}", frame_numbers(i, -(-length // 320), width), words)
        for i, length in enumerate(lengths)
    ]
    write_shard(folder, 0, info, items)
    return FeatureStore(folder)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for number, length in enumerate(LENGTHS):
        path = folder / f"u{number}.wav"
        waveform = np.random.default_rng(number).uniform(-0.3, 0.3, length).astype(np.float32)
        write_audio(path, waveform)
        made.append(Utterance(id=f"u{number}", audio=path))
    return made


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> TeacherStores:
    folder = tmp_path_factory.mktemp("stores")
    text = make_store(folder / "text", 4, LENGTHS)
    return TeacherStores(text=text, speech=make_store(folder / "speech", 3, LENGTHS), words=text)


@pytest.fixture(scope="module")
def dataset(utterances, stores) -> SegmentDataset:
    return SegmentDataset(utterances, CONFIG, seed=5, stores=stores)


def test_features_of_a_crop_begin_at_its_first_sample_over_320(dataset):
    starts = set()
    for n in range(40):
        segment = dataset[n]
        real = -(-segment.num_samples // 320)
        for features in (segment.guidance.text, segment.guidance.speech):
            frames = segment.start_samples // 320 + torch.arange(real)
            is_there = frames % 5 != 4
            assert torch.equal(features.mask[:real], is_there)
            assert not features.mask[real:].any()
            expected = torch.where(is_there, frames, 0).half()
            assert torch.equal(features.values[:real, 1], expected)
            named = features.values[:real, 0][is_there]
            assert (named == segment.utterance_index).all()
            assert len(features.values) == 15
        starts.add(segment.start_samples)
    assert len(starts) > 10


def test_words_wholly_inside_a_crop_come_with_times_from_its_start(dataset):
    seen = set()
    for n in range(60):
        segment = dataset[n]
        start, end = segment.start_samples, segment.start_samples + segment.num_samples
        whole = [("one", 0, 3_000), ("two", 3_000, 5_000), ("3", 5_000, 7_000)]
        inside = [Word(t, a - start, b - start) for t, a, b in whole if start <= a and b <= end]
        assert list(segment.guidance.words) == inside
        seen.add(len(inside))
    assert seen >= {0, 1, 2}


def test_audio_is_the_same_with_and_without_stores(utterances, dataset):
    plain = SegmentDataset(utterances, CONFIG, seed=5)

    for n in range(10):
        assert torch.equal(plain[n].waveform, dataset[n].waveform)
        assert plain[n].guidance is None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_carry_the_features_of_their_segments(dataset, num_workers):
    loader = make_train_loader(
        dataset, global_batch_size=3, first_step=2, end_step=4, num_workers=num_workers
    )

    for step, batch in enumerate(loader, start=2):
        assert batch.guidance.text.values.shape == (3, 15, 4)
        assert batch.guidance.speech.values.shape == (3, 15, 3)
        for item in range(3):
            guidance = dataset[3 * step + item].guidance
            assert torch.equal(batch.guidance.text.values[item], guidance.text.values)
            assert torch.equal(batch.guidance.speech.mask[item], guidance.speech.mask)
            assert batch.guidance.words[item] == guidance.words


def test_store_without_an_utterance_or_of_another_recording_is_refused(utterances, tmp_path):
    few = make_store(tmp_path / "few", 4, LENGTHS[:3])
    with pytest.raises(StoreError, match=r"1 of 4 utterances have no features, such as 'u3'"):
        SegmentDataset(utterances, CONFIG, seed=5, stores=TeacherStores(text=few))
    other = make_store(tmp_path / "other", 4, [*LENGTHS[:3], 700])
    with pytest.raises(StoreError, match="'u3' has 3 frames there and 2"):
        SegmentDataset(utterances, CONFIG, seed=5, stores=TeacherStores(speech=other))
