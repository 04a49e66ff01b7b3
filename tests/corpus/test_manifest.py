import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from dmcodec.corpus.manifest import Utterance, read_manifest, read_manifests


def write_lines(path: Path, *entries: object) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_utterance(number: int, speaker: str | None, num_samples: int | None = 100) -> Utterance:
    return Utterance(id=f"u{number}", audio=Path("x"), speaker=speaker, num_samples=num_samples)


def test_jsonl_line_becomes_an_utterance(tmp_path: Path) -> None:
    entry = {
        "id": "librispeech-103-1240",
        "audio": "librispeech/103.flac",
        "duration_s": 14.085,
        "speaker": "103",
        "corpus": "LibriSpeech",
        "text": "",
        "licence": "CC BY 4.0",
        "source": "somewhere",
    }
    manifest = write_lines(tmp_path / "train.jsonl", entry)

    assert read_manifest(manifest) == [
        Utterance(
            id="librispeech-103-1240",
            audio=tmp_path / "librispeech/103.flac",
            num_samples=225_360,
            speaker="103",
            corpus="LibriSpeech",
            text=None,
            licence="CC BY 4.0",
            source="somewhere",
        )
    ]


def test_nemo_keys_are_read_and_other_keys_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"audio_filepath": "/data/a.1.wav", "duration": 1.5, "text": "wörter", "lang": "de"}
    manifest = write_lines(tmp_path / "nemo.json", entry, "")

    (utterance,) = read_manifest(manifest)

    assert utterance == Utterance(
        id="data/a.1", audio=Path("/data/a.1.wav"), num_samples=24_000, text="wörter"
    )
    assert "not used: lang" in caplog.text


def test_exact_num_samples_is_preferred_to_seconds(tmp_path: Path) -> None:
    manifest = write_lines(
        tmp_path / "m.jsonl", {"audio": "a.wav", "num_samples": 1_234, "duration_s": 0.08}
    )

    assert read_manifest(manifest)[0].num_samples == 1_234


def test_folder_names_with_dots_and_same_stems_survive(tmp_path: Path) -> None:
    for name in ["a.1.wav", "a.2.wav", "s1/x.wav", "s2/x.wav", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    utterances = read_manifest(tmp_path)

    assert [each.id for each in utterances] == ["a.1", "a.2", "s1/x", "s2/x"]
    assert [each.audio for each in utterances] == [
        tmp_path / name for name in ["a.1.wav", "a.2.wav", "s1/x.wav", "s2/x.wav"]
    ]


def test_kaldi_scp_takes_text_and_speakers_from_beside_it(tmp_path: Path) -> None:
    scp = write_lines(tmp_path / "wav.scp", "u1 wavs/u 1.wav", "u2\t/data/u2.wav")
    write_lines(tmp_path / "text", "u1 HELLO  THERE", "u3 UNUSED")
    write_lines(tmp_path / "utt2spk", "u1 anna", "u2 ben")

    assert read_manifest(scp) == [
        Utterance(id="u1", audio=tmp_path / "wavs/u 1.wav", text="HELLO  THERE", speaker="anna"),
        Utterance(id="u2", audio=Path("/data/u2.wav"), speaker="ben"),
    ]


def test_tsv_with_a_header_is_read(tmp_path: Path) -> None:
    tsv = write_lines(
        tmp_path / "m.tsv", "id\tpath\tduration\tspeaker\ttext", 'u1\ta.wav\t2\tanna\tso "he" said'
    )

    assert read_manifest(tsv) == [
        Utterance(
            id="u1",
            audio=tmp_path / "a.wav",
            num_samples=32_000,
            speaker="anna",
            text='so "he" said',
        )
    ]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("m.jsonl", ["{}"], r"m\.jsonl:1: needs 'audio'"),
        ("m.jsonl", ['{"audio": "a.wav"}', "{oops"], r"m\.jsonl:2: not one JSON object a line"),
        ("m.jsonl", ["[1]"], r"m\.jsonl:1: expected a JSON object, got list"),
        ("m.jsonl", ['{"audio": "a", "duration_s": "x"}'], r"m\.jsonl:1: duration: could not"),
        ("m.jsonl", ['{"audio": "a", "duration_s": -1}'], r"m\.jsonl:1: duration: .* -1"),
        ("m.jsonl", ['{"audio": "a", "num_samples": 0}'], r"m\.jsonl:1: num_samples: "),
        ("m.jsonl", ['{"audio": "a", "offset": -1.5}'], r"m\.jsonl:1: offset: .* -1\.5"),
        ("m.jsonl", ['{"audio": "a", "id": "../a"}'], r"m\.jsonl:1: id: .*'\.\./a'"),
        ("m.jsonl", ['{"audio": "a", "id": "/a"}'], r"m\.jsonl:1: id: .*'/a'"),
        ("m.jsonl", ['{"audio": "a", "id": "a\\nb"}'], r"m\.jsonl:1: id: "),
        ("m.jsonl", ['{"audio": "a", "id": [7]}'], r"m\.jsonl:1: id: .*string"),
        ("m.jsonl", [""], r"m\.jsonl: holds no utterances"),
        ("m.tsv", ["id\tpath", "u1"], r"m\.tsv:2: has another number of columns"),
        ("m.tsv", ["id\tpath", "u1\ta\tb"], r"m\.tsv:2: has another number of columns"),
        ("m.tsv", ["id\tname", "u1\ta.wav"], r"m\.tsv:1: no header line names a column of sou"),
        ("m.tsv", ["id\tpath", "u1\t"], r"m\.tsv:2: needs 'audio'"),
        ("wav.scp", ["u1"], r"wav\.scp:1: expected 'id path'"),
        ("wav.scp", ["u1 sox a.wav -t wav - |"], r"wav\.scp:1: 'u1' is a command pipe"),
        ("m.xml", ["<a/>"], r"m\.xml: a manifest is a folder or a file .*\.jsonl"),
    ],
)
def test_malformed_manifest_is_named_with_the_line(
    tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    manifest = write_lines(tmp_path / name, *lines)

    with pytest.raises(ValueError, match=message):
        read_manifest(manifest)


def test_other_unreadable_manifests_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read_manifest(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="holds no utterances"):
        read_manifest(tmp_path)
    (tmp_path / "m.jsonl").write_bytes(b'{"audio": "\xff"}')
    with pytest.raises(ValueError, match=r"m\.jsonl: is not UTF-8"):
        read_manifest(tmp_path / "m.jsonl")


def test_id_used_twice_names_both_places(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", {"audio": "x.wav"}, {"audio": "y.wav", "id": "y"})
    second = write_lines(tmp_path / "b.jsonl", {"audio": "z.wav"}, {"audio": "z.wav", "id": "y"})

    with pytest.raises(ValueError, match=r"b\.jsonl:2: the id 'y' .* by .*a\.jsonl:2"):
        read_manifests([first, second])


def test_several_manifests_are_joined_in_order(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", {"audio": "y.wav"})
    second = write_lines(tmp_path / "b.jsonl", {"audio": "x.wav"})

    assert [each.id for each in read_manifests([first, second])] == ["y", "x"]


def test_record_is_frozen_and_strict() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_utterance(0, "a").id = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Utterance(id="a", audio=Path("a"), speker="x")  # type: ignore[call-arg]
