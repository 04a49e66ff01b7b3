import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dmcodec.tokens.shards import (
    CorpusInfo,
    ShardError,
    TokenRow,
    dump_shard,
    dump_webdataset,
    load_shard,
    read_info,
    read_rows,
    read_summary,
)

pytest.importorskip("pyarrow", reason="shards are Parquet: pip install 'dmcodec[data]'")

INFO = CorpusInfo(
    model_id="tiny",
    model_hash="0011223344556677",
    sample_rate=16_000,
    hop_length=320,
    num_codebooks=3,
    codebook_size=1024,
    shard_size=2,
    max_samples=100_000,
    manifest_hash="00",
    num_utterances=3,
)


def make_row(name: str, num_frames: int) -> TokenRow:
    codes = np.random.default_rng(num_frames).integers(0, 1024, (3, num_frames))
    return TokenRow(
        id=name,
        codes=codes.astype(np.uint16),
        num_samples=320 * num_frames - 5,
        speaker="anna" if num_frames % 2 else None,
        text="wörter",
        source_hash="ab" * 16,
        model_hash=INFO.model_hash,
    )


ROWS = [make_row("a/x.1", 5), make_row("a_b%", 1), make_row("c", 8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "codec_info.json").write_text(INFO.model_dump_json(indent=2))
    for number, rows in enumerate((ROWS[:2], ROWS[2:])):
        data = dump_shard(rows, [], INFO.settings_hash())
        (tmp_path / f"shard-{number:06d}.parquet").write_bytes(data)
    return tmp_path


def assert_same(found: TokenRow, expected: TokenRow) -> None:
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.codes.dtype == np.uint16
    assert {**vars(found), "codes": 0} == {**vars(expected), "codes": 0}


def test_rows_come_back_as_they_were(folder: Path) -> None:
    for found, expected in zip(read_rows(folder), ROWS, strict=True):
        assert_same(found, expected)


def test_pandas_opens_the_shards(folder: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pip install 'dmcodec[data]'")

    table = pandas.read_parquet(folder / "shard-000000.parquet")

    assert list(table.columns) == [
        "id", "codes", "num_frames", "num_samples", "speaker", "text", "source_hash", "model_hash",
    ]  # fmt: skip
    assert list(table["id"]) == ["a/x.1", "a_b%"]
    np.testing.assert_array_equal(np.stack(table["codes"][0]), ROWS[0].codes)
    assert list(table["num_frames"]) == [5, 1]


def test_datasets_opens_the_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs pip install 'dmcodec[data]'")
    files = [str(path) for path in sorted(folder.glob("*.parquet"))]

    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(folder / "cache")
    )

    assert rows["id"][:] == [row.id for row in ROWS]
    np.testing.assert_array_equal(rows[2]["codes"], ROWS[2].codes)
    assert rows.features["codes"].feature.feature.dtype == "uint16"


def test_webdataset_tar_holds_codes_and_the_rest() -> None:
    with tarfile.open(fileobj=io.BytesIO(dump_webdataset(ROWS))) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]

    assert list(files) == [
        "a/x%2E1.npy", "a/x%2E1.json", "a_b%25.npy", "a_b%25.json", "c.npy", "c.json",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(io.BytesIO(files["a/x%2E1.npy"])), ROWS[0].codes)
    about = json.loads(files["a/x%2E1.json"])
    assert (about["id"], about["num_frames"], about["text"]) == ("a/x.1", 5, "wörter")


def test_webdataset_opens_the_tar(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="needs pip install 'dmcodec[data]'")
    (tmp_path / "s.tar").write_bytes(dump_webdataset(ROWS))

    samples = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False).decode())

    assert [sample["json"]["id"] for sample in samples] == [row.id for row in ROWS]
    np.testing.assert_array_equal(samples[2]["npy"], ROWS[2].codes)


def test_summary_is_in_the_footer(tmp_path: Path) -> None:
    failure = {"id": "z", "audio": "/z.wav", "reason": "gone"}
    path = tmp_path / "s.parquet"
    path.write_bytes(dump_shard(ROWS, [failure], INFO.settings_hash()))

    summary = read_summary(path, INFO.settings_hash())

    assert (summary.num_rows, summary.failures) == (3, [failure])
    assert summary.num_samples == sum(row.num_samples for row in ROWS)


def test_shard_without_rows_is_a_shard() -> None:
    assert list(load_shard(dump_shard([], [], "00"))) == []


def test_unfinished_or_damaged_folders_are_refused(folder: Path) -> None:
    shard = folder / "shard-000001.parquet"
    data = bytearray(shard.read_bytes())
    for place in range(4, 40):  # in the first page
        data[place] ^= 255
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-000001\.parquet cannot be read"):
        list(read_rows(folder))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="run the same dmcodec tokenize command again"):
        list(read_rows(folder))
    info = INFO.model_dump()
    (folder / "codec_info.json").write_text(json.dumps({**info, "format": "dmcodec-tokens/2"}))
    with pytest.raises(ShardError, match=r"codec_info\.json cannot be read: format: "):
        read_info(folder)


def test_reading_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from dmcodec.tokens.shards import read_rows; "
        f"assert len(list(read_rows({str(folder)!r}))) == 3; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_books_of_unequal_length_are_refused(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(folder / "shard-000000.parquet")
    codes = [row.as_py() for row in table["codes"]]
    codes[0] = [codes[0][0][:-1], [*codes[0][1], 1], *codes[0][2:]]
    place = table.schema.get_field_index("codes")
    damaged = table.set_column(
        place, table.schema.field("codes"), pa.array(codes, table["codes"].type)
    )
    pq.write_table(damaged, folder / "other.parquet")

    with pytest.raises(ShardError, match="do not have"):
        list(load_shard(folder / "other.parquet"))
    wide = pa.array([row.as_py() for row in table["codes"]], pa.list_(pa.list_(pa.int64())))
    pq.write_table(table.set_column(place, "codes", wide), folder / "other.parquet")
    with pytest.raises(ShardError, match="codes are int64, not uint16"):
        list(load_shard(folder / "other.parquet"))


def test_shard_copied_under_another_number_is_refused(folder: Path) -> None:
    for number, rows in enumerate((ROWS[:2], ROWS[2:])):
        path = folder / f"shard-{number:06d}.parquet"
        path.write_bytes(dump_shard(rows, [], INFO.settings_hash(), number))
    assert len(list(read_rows(folder))) == 3
    shutil.copy(folder / "shard-000000.parquet", folder / "shard-000001.parquet")

    with pytest.raises(ShardError, match=r"000001\.parquet .* is a copy of shard 0: its own rows"):
        list(read_rows(folder))
    with pytest.raises(ShardError, match="is a copy of shard 0"):
        read_summary(folder / "shard-000001.parquet", INFO.settings_hash(), 1)


def change_row(**changes: object) -> TokenRow:
    return TokenRow(**{**vars(ROWS[0]), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            change_row(codes=np.where(ROWS[0].codes >= 0, 60_000, 0).astype(np.uint16)),
            "holds code 60000; books have 0 to 1023",
        ),
        (change_row(codes=ROWS[0].codes[:2]), "has 2 books of 5 codes .* 3 of 5 are due"),
        (change_row(num_samples=320 * 5 + 1), "3 books of 5 codes for 1601 .* 3 of 6 are due"),
        (change_row(num_samples=0), "for 0 samples"),
    ],
)
def test_rows_that_the_corpus_cannot_hold_are_refused(
    folder: Path, row: TokenRow, reason: str
) -> None:
    data = dump_shard([row, ROWS[1]], [], INFO.settings_hash(), 0)
    (folder / "shard-000000.parquet").write_bytes(data)

    with pytest.raises(ShardError, match=rf"shard-000000\.parquet .*'a/x\.1' .*{reason}"):
        list(read_rows(folder))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"settings": 1}',
        '{"num_samples": 1e999, "failures": []}',
        "[]",
        '{"failures": [[]]}',
        "\\ud800",
    ],
)
def test_shard_that_says_nonsense_of_itself_is_refused(tmp_path: Path, text: str) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(io.BytesIO(dump_shard(ROWS, [], INFO.settings_hash())))
    pq.write_table(table.replace_schema_metadata({b"dmcodec": text}), tmp_path / "s.parquet")
    assert pa is not None

    with pytest.raises(ShardError, match=r"s\.parquet"):
        read_summary(tmp_path / "s.parquet", INFO.settings_hash())
    with pytest.raises(ShardError, match=r"s\.parquet"):
        list(load_shard(tmp_path / "s.parquet", INFO))
