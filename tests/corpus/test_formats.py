import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmcodec.audio import AudioError, read_audio, write_audio
from dmcodec.corpus.manifest import Utterance, read_manifest
from dmcodec.corpus.sources import measure, read_utterance

CUT: dict[str, Any] = {
    "id": "c1",
    "start": 0.5,
    "duration": 1.25,
    "channel": 0,
    "supervisions": [
        {"text": "HELLO", "speaker": "anna"},
        {"text": "THERE", "speaker": "anna"},
    ],
    "recording": {
        "id": "r1",
        "sources": [{"type": "file", "channels": [0], "source": "/data/r1.flac"}],
        "sampling_rate": 16000,
        "num_samples": 40_000,
        "duration": 2.5,
    },
    "type": "MonoCut",
}


def write_lines(path: Path, *lines: object) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def sounds(tmp_path: Path) -> dict[str, bytes]:
    """Three sound files by name."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number, length in enumerate((1_000, 2_001, 350)):
        write_audio(folder / f"x.{number}.flac", 0.1 * rng.standard_normal(length))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def check_waveforms(utterances: list[Utterance], tmp_path: Path) -> None:
    """Each utterance holds what the sound file at its place does."""
    expected = sorted((tmp_path / "sounds").iterdir())
    assert len(utterances) == len(expected)
    for utterance, path in zip(utterances, expected, strict=True):
        waveform = read_audio(path)
        np.testing.assert_array_equal(read_utterance(utterance), waveform)
        assert measure(utterance) == len(waveform)


def test_segments_of_jsonl_begin_at_their_offset(tmp_path: Path) -> None:
    manifest = write_lines(
        tmp_path / "m.jsonl",
        {"audio": "a.wav", "id": "a", "offset": 1.5, "duration": 2},
        {"audio": "a.wav", "id": "b", "offset": 0, "duration": 1.5},
        {"audio": "a.wav", "id": "c", "start_samples": 7, "num_samples": 9},
        {"audio": "a.wav", "id": "d", "duration": 2},
    )

    spans = [(each.start_samples, each.num_samples) for each in read_manifest(manifest)]

    assert spans == [(24_000, 32_000), (0, 24_000), (7, 9), (None, 32_000)]


def test_kaldi_segments_are_the_utterances(tmp_path: Path) -> None:
    scp = write_lines(tmp_path / "wav.scp", "r1 r1.wav", "r2 r2.wav", "r3 r3.wav")
    write_lines(tmp_path / "segments", "u1 r2 0.00 1.50", "u2 r1 2.0 -1")
    write_lines(tmp_path / "text", "u1 HELLO", "r1 UNUSED")
    write_lines(tmp_path / "utt2spk", "u2 anna")

    assert read_manifest(scp) == [
        Utterance(
            id="u1", audio=tmp_path / "r2.wav", start_samples=0, num_samples=24_000, text="HELLO"
        ),
        Utterance(id="u2", audio=tmp_path / "r1.wav", start_samples=32_000, speaker="anna"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u1 r1 0", r"segments:1: expected 'id recording start end'"),
        ("u1 r9 0 1", r"segments:1: there is no recording 'r9'"),
        ("u1 r1 -1 1", r"segments:1: .* -1\.0 s"),
        ("u1 r1 2 1", r"segments:1: num_samples: "),
        ("u1 r1 0 1\nu1 r1 1 2", r"segments:2: the id 'u1' is already used"),
    ],
)
def test_malformed_kaldi_segments_are_named(tmp_path: Path, line: str, message: str) -> None:
    scp = write_lines(tmp_path / "wav.scp", "r1 r1.wav")
    write_lines(tmp_path / "segments", line)

    with pytest.raises(ValueError, match=message):
        read_manifest(scp)


def test_lhotse_cuts_are_segments_or_whole_recordings(tmp_path: Path) -> None:
    whole = {**CUT, "id": "c2", "start": 0.0, "duration": 2.5, "supervisions": []}
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, (CUT, whole))).encode()))

    assert read_manifest(path) == [
        Utterance(
            id="c1",
            audio=Path("/data/r1.flac"),
            start_samples=8_000,
            num_samples=20_000,
            text="HELLO THERE",
            speaker="anna",
        ),
        Utterance(id="c2", audio=Path("/data/r1.flac"), num_samples=40_000),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "MixedCut", "tracks": []}, "'c1' is a MixedCut"),
        ({"recording": {**CUT["recording"], "channel_ids": [0, 1]}}, "one mono sound file"),
        (
            {"recording": {**CUT["recording"], "sources": [{"type": "command"}]}},
            "one mono sound file",
        ),
        ({"recording": {**CUT["recording"], "transforms": [{"name": "Speed"}]}}, "transformed"),
        ({"start": None}, "is not a Lhotse cut"),
    ],
)
def test_lhotse_cuts_that_would_be_read_wrongly_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"cuts\.jsonl:1: .*{message}"):
        read_manifest(write_lines(tmp_path / "cuts.jsonl", {**CUT, **changes}))


def test_cut_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"audio": "a"}\n')[:-9])
    with pytest.raises(ValueError, match="no whole compressed file"):
        read_manifest(path)


def write_parquet(path: Path, sounds: dict[str, bytes], **columns: list[Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": data, "path": name} for name, data in sounds.items()]
    pq.write_table(pa.table({**columns, "audio": cells}), path, row_group_size=2)
    return path


def test_parquet_rows_are_read_by_their_bytes(sounds: dict[str, bytes], tmp_path: Path) -> None:
    table = write_parquet(
        tmp_path / "t.parquet", sounds, speaker_id=[7, 8, 9], sentence=["a", "b", ""]
    )

    utterances = read_manifest(table)

    assert [(each.id, each.speaker, each.text) for each in utterances] == [
        ("x.0", "7", "a"),
        ("x.1", "8", "b"),
        ("x.2", "9", None),
    ]
    check_waveforms(utterances, tmp_path)


def test_folder_of_parquet_files_is_one_list(sounds: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    names = list(sounds)
    write_parquet(folder / "a.parquet", {name: sounds[name] for name in names[:2]}, id=["p", "q"])
    write_parquet(folder / "b.parquet", {names[2]: sounds[names[2]]}, id=["r"])

    utterances = read_manifest(folder)

    assert [each.id for each in utterances] == ["p", "q", "r"]
    check_waveforms(utterances, tmp_path)


def test_saved_dataset_is_read(sounds: dict[str, bytes], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs pip install 'dmcodec[data]'")
    cells = [{"bytes": data, "path": None} for data in sounds.values()]
    rows = datasets.Dataset.from_dict({"audio": cells, "text": ["a", "b", "c"]})
    rows.save_to_disk(tmp_path / "saved")

    utterances = read_manifest(tmp_path / "saved")

    assert [each.text for each in utterances] == ["a", "b", "c"]
    assert [each.id.rpartition("/")[2] for each in utterances] == ["0", "1", "2"]
    check_waveforms(utterances, tmp_path)


def test_tables_without_sound_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"sound": ["a.wav"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: has no column of sound files.* got sound"):
        read_manifest(tmp_path / "t.parquet")
    (tmp_path / "u.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"u\.parquet: cannot be read as a table"):
        read_manifest(tmp_path / "u.parquet")


def test_rows_without_bytes_say_so_when_they_are_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    cells = pa.array([None, {"bytes": None}], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"audio": cells}), tmp_path / "t.parquet")

    for utterance in read_manifest(tmp_path / "t.parquet"):
        with pytest.raises(AudioError, match="holds no sound file"):
            read_utterance(utterance)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_webdataset_tar_is_read(sounds: dict[str, bytes], tmp_path: Path) -> None:
    first, second, third = sounds.values()
    files = {
        "./d/a.flac": first,
        "./d/a.txt": b"hello\n",
        "./d/b.json": b'{"speaker": 5, "text": "there"}',
        "./d/b.flac": second,
        "no-sound.txt": b"x",
        "k" * 120 + ".flac": third,
    }
    utterances = read_manifest(write_tar(tmp_path / "t.tar", files))

    assert [(each.id, each.text, each.speaker) for each in utterances] == [
        ("d/a", "hello", None),
        ("d/b", "there", "5"),
        ("k" * 120, None, None),
    ]
    check_waveforms(utterances, tmp_path)


def test_damaged_tars_are_refused(sounds: dict[str, bytes], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.flac": next(iter(sounds.values()))})
    (utterance,) = read_manifest(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(AudioError, match=r"damaged|cut short"):
        read_utterance(utterance)
    path.write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(ValueError, match="is no tar"):
        read_manifest(path)


def test_segment_past_its_file_is_refused_unless_seconds_were_rounded(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 16_000))
    whole = read_audio(tmp_path / "a.wav")

    def cut(start: int, length: int) -> Utterance:
        return Utterance(id="u", audio=tmp_path / "a.wav", start_samples=start, num_samples=length)

    np.testing.assert_array_equal(read_utterance(cut(15_000, 1_160)), whole[15_000:])
    with pytest.raises(ValueError, match="'u' is samples 15000 to 16161 at 16000 Hz"):
        read_utterance(cut(15_000, 1_161))
    inside = read_utterance(cut(100, 1_000), start_samples=10, num_samples=20)
    np.testing.assert_array_equal(inside, whole[110:130])
    with pytest.raises(ValueError, match="which has 1000"):
        read_utterance(cut(100, 1_000), start_samples=990, num_samples=20)
    assert measure(cut(100, 1_000), 8_000) == 500


def test_parts_of_files_are_refused_where_whole_files_are_needed() -> None:
    with pytest.raises(ValueError, match="'u' is a part of a\\.wav"):
        _ = Utterance(id="u", audio=Path("a.wav"), start_samples=5).sound_file
