"""Lists and folders of published corpora: their names, their layouts, and what is wrong in them."""

import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmcodec.audio import dump_wav, read_audio, write_audio
from dmcodec.corpus.manifest import Utterance, read_manifest, read_manifests
from dmcodec.corpus.sources import measure, read_utterance

LENGTHS = (1_000, 2_001, 350)


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Three sound files x0.wav ... in a folder `clips`."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, length in enumerate(LENGTHS):
        write_audio(folder / f"x{number}.wav", 0.1 * rng.standard_normal(length))
    return sorted(folder.iterdir())


def write(path: Path, *lines: object) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def check_sounds(utterances: list[Utterance], sounds: list[Path]) -> None:
    """Each utterance is the sound file at its place."""
    assert len(utterances) == len(sounds)
    for utterance, path in zip(utterances, sounds, strict=True):
        np.testing.assert_array_equal(read_utterance(utterance), read_audio(path))


def about(utterances: list[Utterance]) -> list[tuple[str, str | None, str | None]]:
    return [(each.id, each.text, each.speaker) for each in utterances]


# Names of columns.


def test_common_voice_keeps_text_and_speaker(
    sounds: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write(
        tmp_path / "train.tsv",
        "client_id\tpath\tsentence\tup_votes\tage",
        'abc\tx0.wav\tsie "sagt" ja\t2\t',
        "def\tx1.wav\tnein\t3\tteens",
    )

    utterances = read_manifest(table)

    assert about(utterances) == [("x0", 'sie "sagt" ja', "abc"), ("x1", "nein", "def")]
    check_sounds(utterances, sounds[:2])
    assert "not used: age, up_votes" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_hugging_face_folder_is_read_by_its_metadata(
    kind: str, sounds: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"file_name": "x0.wav", "transcription": "a, b", "speaker_id": 7},
        {"file_name": "x2.wav", "transcription": "c", "speaker_id": 8},
    ]
    if kind == "jsonl":
        write(tmp_path / "clips" / "metadata.jsonl", *rows)
    else:
        lines = ["file_name,transcription,speaker_id", 'x0.wav,"a, b",7', "x2.wav,c,8"]
        write(tmp_path / "clips" / "metadata.csv", *lines)

    for folder in (tmp_path / "clips", tmp_path):  # of one split, of several
        utterances = read_manifest(folder)
        assert about(utterances) == [("x0", "a, b", "7"), ("x2", "c", "8")]
        check_sounds(utterances, [sounds[0], sounds[2]])
        assert "1 sound files are in no metadata list and left out: " in caplog.text
        assert any(message.endswith("x1.wav") for message in caplog.messages)


def test_metadata_of_something_else_hides_no_sound(sounds: list[Path], tmp_path: Path) -> None:
    write(tmp_path / "clips" / "metadata.csv", "licence,year", "none,1999")
    check_sounds(read_manifest(tmp_path / "clips"), sounds)


def test_columns_of_other_names_are_given(sounds: list[Path], tmp_path: Path) -> None:
    table = write(tmp_path / "m.csv", "clip,wort,sentence", "clips/x0.wav,hallo,other")
    columns = {"audio": "clip", "text": "wort"}

    (utterance,) = read_manifests([table], columns=columns)

    assert (utterance.text, utterance.audio) == ("hallo", sounds[0])
    plain = write(tmp_path / "plain.jsonl", {"audio": "y.wav", "text": "ja"})
    assert [u.text for u in read_manifests([plain, table], columns=columns)] == ["ja", "hallo"]
    with pytest.raises(ValueError, match=r"m\.csv: has no column wrt; there are clip, wort, "):
        read_manifests([table], columns={"audio": "clip", "text": "wrt"})
    with pytest.raises(ValueError, match="there is no key txt to give a column to; there are id"):
        read_manifests([table], columns={"txt": "wort"})
    with pytest.raises(ValueError, match=r"no header line names .*--column audio=COLUMN"):
        read_manifest(table)


def test_numbers_are_read_as_text(tmp_path: Path) -> None:
    lines = write(
        tmp_path / "m.jsonl",
        {"audio": "a", "id": 7, "speaker": 19, "text": 1999},
        {"audio": "b", "id": 8.0, "speaker": float("nan"), "text": 0.5},
    )
    assert about(read_manifest(lines)) == [("7", "1999", "19"), ("8", "0.5", None)]


# Ids that are made from names.


def test_segments_without_ids_are_named_by_their_samples(tmp_path: Path) -> None:
    lines = [
        {"audio_filepath": "talk.wav", "offset": 0.0, "duration": 1.5},
        {"audio_filepath": "talk.wav", "offset": 1.5, "duration": 2},
        {"audio_filepath": "talk.wav", "offset": 3.5},
        {"audio_filepath": "b/talk.wav", "offset": 0.0, "duration": 1.5},
    ]
    ids = [each.id for each in read_manifest(write(tmp_path / "nemo.json", *lines))]
    assert ids == ["talk_0-24000", "talk_24000-56000", "talk_56000-end", "b/talk_0-24000"]


def test_files_of_one_stem_keep_their_suffixes(tmp_path: Path) -> None:
    for name in ("x.wav", "x.flac", "y.wav"):
        (tmp_path / name).touch()
    assert [each.id for each in read_manifest(tmp_path)] == ["x.flac", "x.wav", "y"]


def test_equal_names_in_two_folders_get_as_much_of_them_as_is_needed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/sub", "b/sub", "c")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "x.wav").touch()
    lines = write(tmp_path / "m.jsonl", {"audio": "elsewhere/x.wav", "id": "x"})

    utterances = read_manifests([lines, *folders])

    assert [each.id for each in utterances] == ["x", "a/sub/x.wav", "b/sub/x.wav", "c/x.wav"]


def test_parquet_files_of_one_name_in_two_folders(sounds: list[Path], tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        cells = [path.read_bytes() for path in sounds[:2]]
        pq.write_table(pa.table({"audio": cells}), tmp_path / folder / "t.parquet")

    utterances = read_manifests([tmp_path / "train", tmp_path / "test" / "t.parquet"])

    assert [each.id for each in utterances] == ["train/t/0", "train/t/1", "test/t/0", "test/t/1"]
    check_sounds(utterances, sounds[:2] * 2)


def test_the_same_sound_twice_is_an_error_that_names_both(tmp_path: Path) -> None:
    lines = write(tmp_path / "m.jsonl", {"audio": "x.wav"}, {"audio": "x.wav"})
    with pytest.raises(ValueError, match=r"m\.jsonl:2: the id '.*x.wav' is already used .*:1"):
        read_manifest(lines)


@pytest.mark.parametrize("mark", ["\u3000", "\u202f", "\u200c", "\u200d", "\u00a0"])
def test_valid_characters_in_ids_are_taken(mark: str, tmp_path: Path) -> None:
    lines = write(tmp_path / "m.jsonl", {"audio": "a.wav", "id": f"a{mark}b"})
    assert read_manifest(lines)[0].id == f"a{mark}b"


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    waveform = 0.1 * np.ones(500)
    folder = bytes(tmp_path) + b"/caf\xe9"
    Path(folder.decode(errors="surrogateescape")).mkdir()
    path = Path((folder + b"/\xfc.wav").decode(errors="surrogateescape"))
    path.write_bytes(dump_wav(waveform, 16_000))

    (utterance,) = read_manifest(tmp_path)

    assert utterance.id == "caf%E9/%FC"
    assert len(read_utterance(utterance)) == 500


# One bad line, one empty folder.


def test_bad_lines_and_lists_are_handed_on_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = write(
        tmp_path / "m.jsonl",
        {"audio": "a.wav"},
        "{oops",
        {"text": "no sound"},
        {"audio": "b.wav", "duration": "long"},
        {"audio": "c.wav", "id": "../c"},
        '{"audio": "d.wav", "text": "half a character \\ud800"}',
        {"audio": "e.wav"},
    )
    (tmp_path / "empty").mkdir()
    problems: list[str] = []

    utterances = read_manifests(
        [lines, tmp_path / "empty", tmp_path / "gone.jsonl"], on_problem=problems.append
    )

    assert [each.id for each in utterances] == ["a", "e"]
    starts = [f"{lines}:{number}: " for number in (2, 3, 4, 5, 6)]
    starts += [f"{tmp_path / 'empty'}: holds no utterances", f"{tmp_path / 'gone.jsonl'}: no such"]
    assert all(said.startswith(start) for said, start in zip(problems, starts, strict=True))
    assert "text: " in problems[4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", b'{"a":' + b"[" * 200_000, r"m\.jsonl:1: its JSON is nested too deeply"),
        ("m.jsonl", b'{"audio": ' + b"9" * 5_000 + b"}", r"m\.jsonl:1: not one JSON object"),
        ("m.jsonl", b'{"audio": "a", "duration": NaN}', r"m\.jsonl:1: duration: .* got nan"),
        ("m.jsonl", b'{"audio": "a", "duration": 1e400}', r"m\.jsonl:1: duration: .* got inf"),
        ("m.csv", b'audio,text\na.wav,"open', r"m\.csv:2: is no CSV"),
        ("m.csv", b"audio,text\na.wav,b,c", r"m\.csv:2: has another number of columns .* 3 inste"),
        ("m.txt", b"/root\nx.wav\tmany\n", r"m\.txt:2: expected 'path<tab>samples'"),
    ],
)
def test_malformed_lines_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / name)


def test_long_cells_are_read_and_endless_lines_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "word " * 40_000  # more than the csv module's own limit
    for name, delimiter in (("m.csv", ","), ("m.tsv", "\t")):
        lines = write(tmp_path / name, f"audio{delimiter}text", f"a.wav{delimiter}{text.strip()}")
        assert len(read_manifest(lines)[0].text or "") == len(text) - 1
    monkeypatch.setattr("dmcodec.corpus.lines.MAX_LINE", 10_000)
    with pytest.raises(ValueError, match=r"m\.tsv:2: a line of more than 10000 characters"):
        read_manifest(lines)


@pytest.mark.parametrize("content", [b"\n" * 10**6, b" " * 10**8, b'{"audio": "a"}\n' * 10**5])
def test_a_list_that_grows_without_measure_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(content))
    said = r"grows to more than|a line of more|10001 blank lines"
    with pytest.raises(ValueError, match=rf"m\.jsonl\.gz:\d+: ({said})"):
        read_manifest(tmp_path / "m.jsonl.gz")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_compressed_lists_of_every_kind(pack: Any, sounds: list[Path], tmp_path: Path) -> None:
    suffix = ".gz" if pack is gzip.compress else ".xz"
    (tmp_path / f"m.tsv{suffix}").write_bytes(pack(b"path\ttext\nx0.wav\thallo\n"))
    assert about(read_manifest(tmp_path / f"m.tsv{suffix}")) == [("x0", "hallo", None)]


# Layouts of other projects.


def test_fairseq_list_is_read(sounds: list[Path], tmp_path: Path) -> None:
    lines = [f"{path.name}\t{length}" for path, length in zip(sounds, LENGTHS, strict=True)]
    listed = write(tmp_path / "train.tsv", str(tmp_path / "clips"), *lines)
    write(tmp_path / "train.wrd", "one", "two", "three")

    utterances = read_manifest(listed)

    assert about(utterances) == [("x0", "one", None), ("x1", "two", None), ("x2", "three", None)]
    check_sounds(utterances, sounds)


def test_fairseq_texts_stay_with_their_sounds(sounds: list[Path], tmp_path: Path) -> None:
    lines = [f"{path.name}\t{length}" for path, length in zip(sounds, LENGTHS, strict=True)]
    lines[1] = lines[1].replace("\t", " ")
    listed = write(tmp_path / "train.tsv", str(tmp_path / "clips"), *lines)
    texts = write(tmp_path / "train.wrd", "one\u2028\x85more", "two", "three")
    problems: list[str] = []

    found = read_manifests([listed], on_problem=problems.append)

    assert about(found) == [("x0", "one\u2028\x85more", None), ("x2", "three", None)]
    assert len(problems) == 1
    write(texts, "one", "two")
    with pytest.raises(ValueError, match=r"train\.wrd: has 2 lines for 3 sounds"):
        read_manifest(listed)


def test_a_name_that_no_file_can_have_ends_no_list(sounds: list[Path], tmp_path: Path) -> None:
    assert (tmp_path / "clips").is_dir()
    rows = ["path,sentence", f"{'x' * 300}.wav,long", f"{sounds[0].name},one"]
    listed = write(tmp_path / "list.csv", *rows)
    nul = write(tmp_path / "nul.jsonl", '{"audio": "a\\u0000.wav"}')

    assert [each.text for each in read_manifest(listed)] == ["long", "one"]
    with pytest.raises(ValueError, match=r"nul\.jsonl:1: .* cannot be the name of a file"):
        read_manifest(nul)


def test_ljspeech_list_and_folder_are_read(sounds: list[Path], tmp_path: Path) -> None:
    (tmp_path / "clips").rename(tmp_path / "wavs")
    moved = [tmp_path / "wavs" / path.name for path in sounds]
    lines = ["x0|In 1990|in nineteen ninety", 'x1|he said "no|', "x2|plain"]
    listed = write(tmp_path / "metadata.csv", *lines)

    for source in (listed, tmp_path):
        utterances = read_manifest(source)
        assert about(utterances) == [
            ("x0", "in nineteen ninety", None),
            ("x1", 'he said "no', None),
            ("x2", "plain", None),
        ]
        check_sounds(utterances, moved)


def test_vits_file_lists_are_read(sounds: list[Path], tmp_path: Path) -> None:
    listed = write(tmp_path / "train.txt", "clips/x0.wav|12|hallo", "clips/x1.wav|13|ja")
    utterances = read_manifest(listed)
    assert about(utterances) == [("clips/x0", "hallo", "12"), ("clips/x1", "ja", "13")]
    check_sounds(utterances, sounds[:2])


RECORDING = {
    "id": "r1",
    "sources": [{"type": "file", "channels": [0], "source": "clips/x0.wav"}],
    "sampling_rate": 16_000,
    "num_samples": 1_000,
    "duration": 0.0625,
}


def test_lhotse_recordings_take_texts_from_their_supervisions(
    sounds: list[Path], tmp_path: Path
) -> None:
    listed = tmp_path / "a_recordings_b.jsonl.gz"
    listed.write_bytes(gzip.compress(json.dumps(RECORDING).encode()))
    said = [
        {"recording_id": "r1", "start": 0.03, "text": "there", "speaker": "anna"},
        {"recording_id": "r1", "start": 0.0, "text": "hallo", "speaker": "anna"},
    ]
    supervisions = "\n".join(map(json.dumps, said)).encode()
    (tmp_path / "a_supervisions_b.jsonl.gz").write_bytes(gzip.compress(supervisions))

    utterances = read_manifest(listed)

    assert about(utterances) == [("r1", "hallo there", "anna")]
    check_sounds(utterances, sounds[:1])


@pytest.mark.parametrize("value", ["NaN", "-1", "null", '"x"', "1e999"])
def test_lhotse_durations_that_are_none_are_named(value: str, tmp_path: Path) -> None:
    cut = '{"id": "c", "type": "MonoCut", "start": 0, "duration": %s, "recording": %s}'
    lines = write(tmp_path / "cuts.jsonl", cut % (value, json.dumps(RECORDING)))
    with pytest.raises(ValueError, match=r"cuts\.jsonl:1: is not a Lhotse cut .*: duration"):
        read_manifest(lines)


def test_lhotse_cut_of_a_recording_without_a_length_is_a_segment(tmp_path: Path) -> None:
    cut = '{"id": "c", "type": "MonoCut", "start": 0, "duration": 0.5, "recording": %s}'
    recording = json.dumps(RECORDING | {"duration": float("nan")})
    lines = write(tmp_path / "cuts.jsonl", cut % recording)
    (utterance,) = read_manifest(lines)
    assert (utterance.start_samples, utterance.num_samples) == (0, 8_000)


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_lhotse_shar_folder_is_read(sounds: list[Path], tmp_path: Path) -> None:
    shar = tmp_path / "shar"
    shar.mkdir()
    cuts, files = [], {}
    for number, path in enumerate(sounds):
        recording = {**RECORDING, "sources": [{"type": "shar", "channels": [0], "source": ""}]}
        cuts.append(
            {
                "id": f"c.{number}",
                "type": "MonoCut",
                "start": 3.0,
                "duration": LENGTHS[number] / 16_000,
                "recording": recording,
                "supervisions": [{"text": f"t{number}", "speaker": "s"}],
            }
        )
        files |= {f"c.{number}.wav": path.read_bytes(), f"c.{number}.json": b"{}"}
    packed = gzip.compress("\n".join(map(json.dumps, cuts)).encode())
    (shar / "cuts.000000.jsonl.gz").write_bytes(packed)
    write_tar(shar / "recording.000000.tar", files)

    utterances = read_manifest(shar)

    assert about(utterances) == [(f"c.{n}", f"t{n}", "s") for n in range(3)]
    check_sounds(utterances, sounds)
    check_sounds(read_manifest(shar / "cuts.000000.jsonl.gz"), sounds)


def test_nemo_tarred_set_is_read(sounds: list[Path], tmp_path: Path) -> None:
    for shard, paths in enumerate((sounds[:2], sounds[2:])):
        write_tar(tmp_path / f"audio_{shard}.tar", {p.name: p.read_bytes() for p in paths})
    lines = [
        {"audio_filepath": path.name, "shard_id": number // 2, "text": f"t{number}"}
        for number, path in enumerate(sounds)
    ]
    listed = write(tmp_path / "tarred_audio_manifest.json", *lines)

    utterances = read_manifest(listed)

    assert about(utterances) == [("x0", "t0", None), ("x1", "t1", None), ("x2", "t2", None)]
    check_sounds(utterances, sounds)
    with pytest.raises(ValueError, match=r"json:1: .*audio_0\.tar does not hold 'y\.wav'"):
        read_manifest(write(listed, {"audio_filepath": "y.wav", "shard_id": 0}))


def test_kaldi_archives_are_read(sounds: list[Path], tmp_path: Path) -> None:
    archive, lines = b"", []
    for number, path in enumerate(sounds):
        archive += f"u{number} ".encode()
        lines.append(f"u{number} {tmp_path}/wav.ark:{len(archive)}")
        archive += path.read_bytes()
    (tmp_path / "wav.ark").write_bytes(archive)
    listed = write(tmp_path / "wav.scp", *lines)

    utterances = read_manifest(listed)

    assert [each.id for each in utterances] == ["u0", "u1", "u2"]
    check_sounds(utterances, sounds)
    assert [measure(each) for each in utterances] == list(LENGTHS)
    wrong = write(tmp_path / "wav.scp", f"u0 {tmp_path}/wav.ark:9")
    with pytest.raises(ValueError, match="no WAV file begins at byte 9"):
        read_utterance(read_manifest(wrong)[0])


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_compressed_tars_are_read(
    suffix: str, mode: str, sounds: list[Path], tmp_path: Path
) -> None:
    files = {f"a{n}.wav": path.read_bytes() for n, path in enumerate(sounds)}
    path = write_tar(tmp_path / f"t{suffix}", files | {"a1.txt": b"hallo"}, mode)

    utterances = read_manifest(path)

    assert [each.id for each in utterances] == ["a0", "a1", "a2"]
    check_sounds(utterances[::-1], sounds[::-1])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is no whole compressed tar"):
        read_manifest(path)


def test_saved_dataset_dict_names_its_splits(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"name its splits: .*/train, .*/test"):
        read_manifest(tmp_path)


def test_parquet_with_paths_or_arrays_is_read(sounds: list[Path], tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    waveforms = [read_audio(path) for path in sounds]
    names = [f"clips/{path.name}" for path in sounds]
    integers = [np.round(w * 32768).astype(np.int16) for w in waveforms]
    tables = {
        "path": {"audio": names, "sentence": ["a", "b", "c"]},
        "file": {"file": [str(path) for path in sounds]},
        "struct": {"audio": [{"bytes": None, "path": name} for name in names]},
        "array": {"audio": [{"array": w.tolist(), "sampling_rate": 16_000} for w in waveforms]},
        "list": {"audio": [w.tolist() for w in waveforms], "sampling_rate": [16_000] * 3},
        "int16": {"audio": [each.tolist() for each in integers], "sample_rate": [16_000] * 3},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=2)
        check_sounds(read_manifest(tmp_path / f"{name}.parquet"), sounds)
    assert [each.text for each in read_manifest(tmp_path / "path.parquet")] == ["a", "b", "c"]
    pq.write_table(pa.table({"audio": [[0.5, 0.25]]}), tmp_path / "no_rate.parquet")
    (utterance,) = read_manifest(tmp_path / "no_rate.parquet")
    with pytest.raises(ValueError, match="does not say its rate; needs a column sampling_rate"):
        read_utterance(utterance)


@pytest.mark.parametrize("rate", [-5, 10**12, 16_000.5, float("nan")])
def test_arrays_of_rates_that_are_none_are_refused(rate: float, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    tables = {
        "column": {"audio": [[0.5, 0.25]], "sampling_rate": [rate]},
        "struct": {"audio": [{"array": [0.5, 0.25], "sampling_rate": rate}]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        (utterance,) = read_manifest(tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=rf"{name}\.parquet: row 0: says .* samples a second"):
            read_utterance(utterance)


def test_sounds_stored_with_holes_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.wav")
    # Of GNU's old format: 512 bytes that stand for 2**40.
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (0, 512)
    head[483:495] = (1 << 87 | 1 << 40).to_bytes(12, "big")
    head[483] = 0x80
    head[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(head))[0]
    (tmp_path / "x.tar").write_bytes(bytes(head) + bytes(512 + 1024))

    (utterance,) = read_manifest(tmp_path / "x.tar")
    with pytest.raises(ValueError, match=r"a\.wav is stored with holes"):
        read_utterance(utterance)


def test_tar_sample_with_two_sounds_is_one_problem(sounds: list[Path], tmp_path: Path) -> None:
    data = sounds[0].read_bytes()
    path = write_tar(tmp_path / "t.tar", {"a.wav": data, "a.flac": data, "b.wav": data})
    problems: list[str] = []
    utterances = read_manifests([path], on_problem=problems.append)
    assert [each.id for each in utterances] == ["b"]
    assert problems == [f"{path}: sample 'a' holds two sound files"]


def test_dumped_wav_is_read_back_bit_for_bit() -> None:
    from dmcodec.audio import SoundBytes

    waveform = np.random.default_rng(0).standard_normal(999).astype(np.float32)
    data = dump_wav(waveform, 8_000)
    np.testing.assert_array_equal(read_audio(SoundBytes("x", data), sample_rate=8_000), waveform)
