import json
import pickle  # noqa: TID251 (what worker processes do to a store)
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from dmcodec.teachers.alignment import FeatureTrack, Word, masked_track
from dmcodec.teachers.store import (
    _HEAD,
    FeatureStore,
    StoredUtterance,
    StoreError,
    StoreInfo,
    create_store,
    list_shards,
    next_shard_number,
    write_shard,
)

INFO = StoreInfo({"teacher": "text", "layers": "mean"}, {"language_model": "abc"}, 6)


def make_track(num_frames: int, seed: int = 0) -> FeatureTrack:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_frames // 3 + 1, 6)).astype(np.float32)
    return FeatureTrack(rows, rng.integers(-1, len(rows), num_frames, dtype=np.int32))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    create_store(tmp_path, INFO)
    write_shard(
        tmp_path,
        0,
        INFO,
        [
            StoredUtterance("a/1", make_track(20), [Word("hé", 3.5, 100), Word("lost")]),
            StoredUtterance("silent", masked_track(7, 6)),
        ],
    )
    write_shard(tmp_path, 1, INFO, [StoredUtterance("b", make_track(11, seed=1))])
    return tmp_path


def test_every_slice_equals_the_slice_of_the_whole(store):
    reader = FeatureStore(store)
    whole = make_track(20).dense().astype(np.float16)
    mask = make_track(20).mask

    for start in range(20):
        values, found = reader.read("a/1", start, 5 if start <= 15 else None)
        stop = start + 5 if start <= 15 else 20
        np.testing.assert_array_equal(values, whole[start:stop])
        np.testing.assert_array_equal(found, mask[start:stop])
    np.testing.assert_array_equal(reader.read("b")[0], make_track(11, 1).dense().astype("<f2"))


def test_store_knows_its_utterances_words_and_lengths(store):
    reader = FeatureStore(store, settings=INFO.settings, models=INFO.models)

    assert reader.utterance_ids == ["a/1", "silent", "b"]
    assert len(reader) == 3
    assert "b" in reader
    assert "c" not in reader
    assert reader.num_frames("a/1") == 20
    assert reader.words("a/1") == (Word("hé", 3.5, 100), Word("lost"))
    assert reader.feature_dim == 6
    values, mask = reader.read("silent")
    assert values.shape == (7, 6)
    assert not mask.any()


def test_lasting_features_are_stored_once(tmp_path):
    create_store(tmp_path, INFO)
    rows = np.ones((1, 6), np.float32)

    path = write_shard(
        tmp_path,
        0,
        INFO,
        [StoredUtterance("long", FeatureTrack(rows, np.zeros(10_000, dtype=np.int32)))],
    )

    assert path.stat().st_size < 10_000 * 4 + 500  # 4 bytes a frame instead of 12


def test_slices_are_mapped_not_read_whole(store):
    reader = FeatureStore(store)
    reader.read("b", 2, 3)

    frame_rows, rows = reader._map(1)

    assert isinstance(frame_rows, np.memmap)
    assert isinstance(rows, np.memmap)


def test_store_survives_the_way_to_a_worker_process(store):
    reader = FeatureStore(store)
    expected = reader.read("b")[0]

    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301

    assert not copy._maps
    np.testing.assert_array_equal(copy.read("b")[0], expected)


def test_missing_utterances_and_slices_outside_are_errors(store):
    reader = FeatureStore(store)
    with pytest.raises(StoreError, match="no features of 'c'"):
        reader.read("c")
    with pytest.raises(StoreError, match="frames 8 to 12 of 'b', which has 11"):
        reader.read("b", 8, 4)
    with pytest.raises(StoreError, match="frames -1"):
        reader.read("b", -1, 4)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"settings": {**INFO.settings, "layers": 9}}, "layers: 'mean' there, 9 here"),
        ({"settings": {"teacher": "text"}}, "layers: 'mean' there, None here"),
        ({"models": {"language_model": "def"}}, "language_model: 'abc' there, 'def' here"),
    ],
)
def test_store_of_other_teachers_or_settings_is_refused(store, wanted, message):
    with pytest.raises(StoreError, match=message):
        FeatureStore(store, **wanted)


def test_job_of_another_teacher_does_not_touch_a_store(store):
    other = StoreInfo(INFO.settings, {"language_model": "def"}, 6)

    with pytest.raises(StoreError, match="other models"):
        create_store(store, other)
    with pytest.raises(StoreError, match="other features"):
        create_store(store, StoreInfo(INFO.settings, INFO.models, 7))
    write_shard(store, 2, other, [StoredUtterance("c", make_track(4))])
    with pytest.raises(StoreError, match="belongs to another store"):
        FeatureStore(store)


def test_leftovers_of_a_killed_job_are_removed_and_numbers_go_on(store):
    (store / ".writing_shard_000002.feat").write_bytes(b"half")
    assert FeatureStore(store).utterance_ids == ["a/1", "silent", "b"]

    create_store(store, INFO)

    assert not list(store.glob(".writing_*"))
    assert next_shard_number(store) == 2


def test_any_change_of_the_index_and_any_cut_is_noticed(store):
    path = list_shards(store)[0]
    data = path.read_bytes()
    for position in range(0, 150, 3):
        broken = bytearray(data)
        broken[position] ^= 0x55
        path.write_bytes(broken)
        with pytest.raises(StoreError):
            FeatureStore(store)
    for length in (0, 10, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(StoreError):
            FeatureStore(store)


def test_damaged_frame_rows_are_noticed_when_read(store):
    path = list_shards(store)[1]
    layout = FeatureStore(store)._layouts[1]
    data = bytearray(path.read_bytes())
    data[layout.frames_offset : layout.frames_offset + 4] = (10**6).to_bytes(4, "little")
    path.write_bytes(data)

    with pytest.raises(StoreError, match="a row is not there"):
        FeatureStore(store).read("b")


def test_features_that_float16_cannot_hold_or_of_another_width_are_refused(tmp_path):
    create_store(tmp_path, INFO)
    track = FeatureTrack(np.full((1, 6), 1e6, np.float32), np.zeros(1, dtype=np.int32))
    with pytest.raises(ValueError, match="not finite in float16"):
        write_shard(tmp_path, 0, INFO, [StoredUtterance("big", track)])
    with pytest.raises(ValueError, match="H = 6"):
        write_shard(tmp_path, 0, INFO, [StoredUtterance("wide", masked_track(2, 7))])
    assert not list_shards(tmp_path)


def test_folder_without_a_store_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="dmcodec teach"):
        FeatureStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "something", "version": 9}')
    with pytest.raises(StoreError, match="version 9"):
        FeatureStore(tmp_path)


def test_stores_are_read_without_torch():
    code = "import sys, dmcodec.teachers.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def rewrite_index(path: Path, change) -> None:
    """Changes what a shard's index says, with a checksum that fits."""
    data = path.read_bytes()
    magic, version, _, size = _HEAD.unpack(data[: _HEAD.size])
    table = json.loads(data[_HEAD.size : _HEAD.size + size])
    text = change(table)
    text = text if isinstance(text, bytes) else json.dumps(table).encode()
    head = _HEAD.pack(magic, version, zlib.crc32(text), len(text))
    path.write_bytes(head + text + data[_HEAD.size + size :])


def set_first(**changes):
    return lambda table: table["utterances"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        set_first(num_frames="x"),
        set_first(num_rows=-1),
        set_first(first_row=None),
        set_first(words=7),
        set_first(words=[["hé"]]),
        set_first(words=[["hé", "a", "b"]]),
        lambda table: table.update(utterances=3),
        lambda table: table.update(num_rows="many"),
        lambda table: table.pop("store"),
        lambda table: b"[]",
        lambda table: b"\xff\xfe",
        lambda table: b"[" * 100_000,
    ],
)
def test_index_of_wrong_contents_with_a_good_checksum_is_an_error(store, change):
    rewrite_index(store / "shard_000000.feat", change)

    with pytest.raises(StoreError, match=r"shard_000000\.feat: damaged: its index"):
        FeatureStore(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(feature_dim="wide"),
        lambda table: table.update(feature_dim=10**12),
        lambda table: table.update(feature_dim=0),
        lambda table: table.update(models=3),
        lambda table: table.update(settings=[]),
        lambda table: table.clear(),
    ],
)
def test_store_that_says_nonsense_of_itself_is_an_error(store, change):
    table = json.loads((store / "store.json").read_text())
    change(table)
    (store / "store.json").write_text(json.dumps(table))

    with pytest.raises(StoreError, match=r"store\.json: damaged"):
        FeatureStore(store)


def test_store_that_is_nested_too_deeply_is_an_error(store):
    (store / "store.json").write_text("[" * 100_000)

    with pytest.raises(StoreError, match=r"store\.json: damaged: it is nested too deeply"):
        FeatureStore(store)


def test_features_that_are_not_finite_are_an_error(store):
    path = store / "shard_000001.feat"
    path.write_bytes(path.read_bytes()[:-12] + b"\x00\x7e" * 6)  # the last row is NaN

    reader = FeatureStore(store)

    with pytest.raises(StoreError, match="features of 'b' are not finite"):
        reader.read("b")
    assert np.isfinite(reader.read("a/1")[0]).all()
