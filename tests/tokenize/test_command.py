import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from dmcodec import cli
from dmcodec.audio import write_audio
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.corpus.manifest import read_manifest
from dmcodec.tokens.shards import read_info, read_rows

pytest.importorskip("pyarrow", reason="shards are Parquet: pip install 'dmcodec[data]'")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = CodecConfig.model_validate(
        {
            "seanet": {"num_filters": 2, "latent_dim": 8, "num_lstm_layers": 1},
            "quantizer": {"num_codebooks": 3, "codebook_size": 64},
        }
    )
    Codec(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "speech").mkdir()
    for number in range(5):
        write_audio(tmp_path / "speech" / f"{number}.wav", 0.1 * rng.standard_normal(3_000))
    lines = [{"id": f"u{n}", "audio": f"speech/{n}.wav"} for n in range(5)]
    lines.append({"id": "cut", "audio": "speech/0.wav", "offset": 0.1, "duration": 0.05})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "m.jsonl"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(each) for each in ("tokenize", *arguments)])


def test_command_writes_shards_and_says_what_it_did(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = ("-o", out, "--model", model, "--shard-size", 4, "--num-codebooks", 2)

    first = run(manifest, *settings)
    second = run(manifest, *settings)

    assert first.exit_code == 0, first.output
    assert "6 done, 0 failed" in first.output
    assert "hours an hour" in first.output
    assert "0 done, 6 were there, 0 failed" in second.output
    rows = list(read_rows(out))
    assert [row.id for row in rows] == ["u0", "u1", "u2", "u3", "u4", "cut"]
    assert [row.codes.shape for row in rows] == [(2, 10)] * 5 + [(2, 3)]
    assert read_info(out).num_shards == 2


def test_search_width_is_an_option(model: Path, manifest: Path, tmp_path: Path) -> None:
    result = run(manifest, "-o", tmp_path / "out", "--model", model, "--search-width", 3)

    assert result.exit_code == 0, result.output
    assert read_info(tmp_path / "out").search_width == 3


def test_failures_are_named_and_counted(model: Path, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "speech" / "3.wav").write_bytes(b"")
    settings = ("-o", tmp_path / "out", "--model", model, "--shard-size", 2)

    allowed = run(manifest, *settings)
    assert allowed.exit_code == 0
    assert "u3: " in allowed.output
    assert "5 done, 1 failed (listed in failures.jsonl)" in allowed.output
    refused = run(manifest, *settings, "--max-failures", 0)
    assert refused.exit_code == 1
    assert "1 of 6 utterances failed, more than --max-failures 0" in str(refused.exception)
    assert run(manifest, *settings, "--max-failures", "16%").exit_code == 1
    assert run(manifest, *settings, "--max-failures", "17%").exit_code == 0


def test_webdataset_and_dmc_are_written_too(model: Path, manifest: Path, tmp_path: Path) -> None:
    run(manifest, "-o", tmp_path / "out", "--model", model, "--webdataset", "--dmc")

    assert (tmp_path / "out" / "shard-000000.tar").is_file()
    assert len(list((tmp_path / "out" / "dmc").glob("*.dmc"))) == 6


def test_full_disk_is_one_sentence(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmcodec.tokenize.job.write_durably", fail)
    result = run(manifest, "-o", tmp_path / "out", "--model", model)

    assert result.exit_code == 1
    assert isinstance(result.exception, cli.CommandError)
    assert "No space left on device; finished shards are kept" in str(result.exception)


def test_missing_packages_are_named_with_the_extra(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run(manifest, "-o", tmp_path / "a", "--model", model, "--ray")
    assert isinstance(result.exception, ModuleNotFoundError)
    assert "pip install 'dmcodec[data]'" in str(result.exception)

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run(manifest, "-o", tmp_path / "b", "--model", model)
    assert isinstance(result.exception, ModuleNotFoundError)
    assert "pip install 'dmcodec[data]'" in str(result.exception)


def test_no_thread_of_a_stopped_job_stays_behind(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "speech" / "0.wav").write_bytes(b"")
    run(manifest, "-o", tmp_path / "out", "--model", model, "--shard-size", 1, "--max-failures", 0)

    assert not [each for each in threading.enumerate() if each.name.startswith("reader")]
    assert torch.get_num_threads() == 1


def test_bad_lines_and_lists_are_named_and_the_rest_is_made(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    manifest.write_text(manifest.read_text() + "\n{oops\n")

    result = run(manifest, tmp_path / "empty", "-o", tmp_path / "out", "--model", model)

    assert result.exit_code == 1
    assert "m.jsonl:7: not one JSON object a line" in result.output
    assert f"{tmp_path / 'empty'}: holds no utterances" in result.output
    assert "6 done, 0 failed" in result.output
    assert "2 lines or lists could not be read" in result.output
    assert len(list(read_rows(tmp_path / "out"))) == 6
    nothing = run(tmp_path / "empty", "-o", tmp_path / "none", "--model", model)
    assert nothing.exit_code == 1
    assert not (tmp_path / "none").exists()


def test_columns_are_read_by_the_names_given(model: Path, manifest: Path, tmp_path: Path) -> None:
    table = tmp_path / "m.tsv"
    table.write_text("clip\tsatz\tsprecher\nspeech/0.wav\thallo du\t12\n")
    columns = ("--column", "audio=clip", "--column", "text=satz", "--column", "speaker=sprecher")

    result = run(table, *columns, "-o", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output
    (row,) = read_rows(tmp_path / "out")
    assert (row.id, row.text, row.speaker) == ("speech/0", "hallo du", "12")


def test_ids_too_long_for_files_fail_alone_and_odd_names_come_through(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path / "speech") + b"/caf\xe9.wav"))
    (tmp_path / "speech" / "0.wav").rename(odd)
    gone = Path(os.fsdecode(bytes(tmp_path / "speech") + b"/gone\xe9.wav"))
    lines = [
        {"id": "a" * 252, "audio": "speech/1.wav"},
        {"id": "ü" * 118, "audio": "speech/2.wav"},
        {"audio": str(odd)},
        {"audio": str(gone)},
    ]
    manifest.write_text("\n".join(map(json.dumps, lines)))

    result = run(manifest, "--dmc", "-o", tmp_path / "out", "--model", model)

    assert "2 done, 2 failed" in result.output
    assert "is too long for the name of a file; leave out --dmc" in result.output
    assert (tmp_path / "out" / "dmc" / f"{'ü' * 118}.dmc").is_file()
    assert [row.id.rpartition("/")[2] for row in read_rows(tmp_path / "out")][1:] == ["caf%E9"]
    failed = read_manifest(tmp_path / "out" / "failures.jsonl")
    assert [each.audio for each in failed] == [tmp_path / "speech" / "1.wav", gone]
