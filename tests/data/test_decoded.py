"""Decoded speech in memory and on disk gives the segments that the sound files give."""

import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from dmcodec.audio import AudioError, write_audio
from dmcodec.corpus.manifest import Utterance
from dmcodec.data.dataset import DataConfig, SegmentDataset
from dmcodec.data.loader import make_train_loader
from dmcodec.storage import lock_folder


def make_config(**changes: Any) -> DataConfig:
    return DataConfig(train_manifests=(Path("unused"),), segment_samples=3_200, **changes)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Five files of 16 bits, the last two segments of one; one is shorter than a segment."""
    rng = np.random.default_rng(4)
    made = []
    for number, num_samples in enumerate((9_000, 1_001, 7_777, 30_000)):
        path = tmp_path / f"u{number}.flac"
        write_audio(path, rng.uniform(-0.3, 0.3, num_samples).astype(np.float32))
        made.append(Utterance(id=f"u{number}", audio=path))
    whole = made.pop()
    return [
        *made,
        whole.model_copy(update={"id": "a", "start_samples": 500, "num_samples": 9_001}),
        whole.model_copy(update={"id": "b", "start_samples": 17_001, "num_samples": 12_000}),
    ]


def assert_same_segments(dataset: SegmentDataset, expected: SegmentDataset) -> None:
    for n in range(60):
        found, wanted = dataset[n], expected[n]
        assert torch.equal(found.waveform, wanted.waveform)
        assert found[1:4] == wanted[1:4]


def test_segments_are_those_of_the_sound_files(utterances: list[Utterance], tmp_path: Path) -> None:
    expected = SegmentDataset(utterances, make_config(), seed=3)
    in_memory = SegmentDataset(utterances, make_config(use_preload=True), seed=3)
    on_disk = SegmentDataset(utterances, make_config(cache=tmp_path / "cache"), seed=3)
    again = SegmentDataset(utterances, make_config(cache=tmp_path / "cache"), seed=3)

    assert {expected[n].utterance_index for n in range(60)} == set(range(5))
    for dataset in (in_memory, on_disk, again):
        assert_same_segments(dataset, expected)


def test_workers_read_the_cache(utterances: list[Utterance], tmp_path: Path) -> None:
    expected = SegmentDataset(utterances, make_config(), seed=3)
    on_disk = SegmentDataset(utterances, make_config(cache=tmp_path / "cache"), seed=3)

    found, wanted = (
        list(make_train_loader(each, global_batch_size=3, end_step=4, num_workers=workers))
        for each, workers in ((on_disk, 2), (expected, 0))
    )

    assert all(torch.equal(a.waveform, b.waveform) for a, b in zip(found, wanted, strict=True))


def test_cache_is_made_once(utterances: list[Utterance], tmp_path: Path) -> None:
    config = make_config(cache=tmp_path / "cache")
    SegmentDataset(utterances, config, seed=3)
    (path,) = (tmp_path / "cache").glob("*.npy")
    before = path.stat()

    SegmentDataset(utterances, config, seed=4)

    assert path.stat() == before
    assert np.load(path).shape == (9_000 + 1_001 + 7_777 + 9_001 + 12_000,)
    assert np.load(path).dtype == np.int16


def test_changed_sound_is_decoded_anew(utterances: list[Utterance], tmp_path: Path) -> None:
    config = make_config(cache=tmp_path / "cache")
    SegmentDataset(utterances, config, seed=3)
    write_audio(utterances[0].audio, np.full(9_000, 0.25, dtype=np.float32))
    os.utime(utterances[0].audio, (1, 1))  # whatever the clock of the file system resolves

    found = SegmentDataset(utterances, config, seed=3)

    assert_same_segments(found, SegmentDataset(utterances, make_config(), seed=3))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_other_kinds_of_files_are_rounded_to_16_bits(tmp_path: Path) -> None:
    waveform = np.array([0.0, 1e-5, 3e-5, 0.5, 1.2, -1.5], dtype=np.float32)
    soundfile.write(tmp_path / "x.wav", waveform, 16_000, subtype="FLOAT")
    utterance = Utterance(id="x", audio=tmp_path / "x.wav")

    SegmentDataset([utterance], make_config(cache=tmp_path / "cache"), seed=3)

    (path,) = (tmp_path / "cache").glob("*.npy")
    assert np.load(path).tolist() == [0, 0, 1, 16_384, 32_767, -32_768]


def test_cache_that_another_process_makes_is_waited_for(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    config = make_config(cache=tmp_path / "cache")
    expected = SegmentDataset(utterances, config, seed=3)
    (path,) = (tmp_path / "cache").glob("*.npy")
    aside = path.rename(tmp_path / "aside.npy")

    def finish() -> None:
        time.sleep(0.3)
        aside.rename(path)

    with lock_folder(tmp_path / "cache"):  # the other process
        thread = threading.Thread(target=finish)
        thread.start()
        found = SegmentDataset(utterances, config, seed=3)
        thread.join()

    assert_same_segments(found, expected)


def test_damaged_sound_leaves_no_cache(utterances: list[Utterance], tmp_path: Path) -> None:
    content = utterances[2].audio.read_bytes()
    utterances[2].audio.write_bytes(content[: len(content) // 2])

    with pytest.raises(AudioError, match=r"u2\.flac: damaged"):
        SegmentDataset(utterances, make_config(cache=tmp_path / "cache"), seed=3)

    assert not list(tmp_path.glob("cache/*.npy"))


@pytest.mark.parametrize("size", [0, 50, 5_000])
def test_damaged_cache_is_named(utterances: list[Utterance], tmp_path: Path, size: int) -> None:
    config = make_config(cache=tmp_path / "cache")
    SegmentDataset(utterances, config, seed=3)
    (path,) = (tmp_path / "cache").glob("*.npy")
    os.truncate(path, size)

    with pytest.raises(ValueError, match=r"decoded-.*\.npy is damaged: delete it"):
        SegmentDataset(utterances, config, seed=3)


def test_full_disk_is_an_error_that_names_the_cache(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(OSError, match=r"File too large.*decoded-"):
            SegmentDataset(utterances, make_config(cache=tmp_path / "cache"), seed=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)

    assert not list(tmp_path.glob("cache/*.npy"))


def test_memory_and_disk_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        make_config(cache=tmp_path, use_preload=True)
