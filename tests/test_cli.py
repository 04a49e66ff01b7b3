"""The command line as users meet it: results, exit codes, and one clear sentence for errors."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from dmcodec import cli
from dmcodec.audio import AudioError, SoundBytes, audio_info, read_audio, write_audio
from dmcodec.cli.options import CommandError, describe_problem
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.tokens.bitstream import loads

EXAMPLE = Path(__file__).parent.parent / "examples" / "4077-13754-0000.flac"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small untrained codec."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(7)
        config = CodecConfig(
            seanet=SEANetConfig(num_filters=4, latent_dim=8, num_lstm_layers=1),
            quantizer=QuantizerConfig(codebook_size=64, num_codebooks=4),
        )
        folder = tmp_path_factory.mktemp("models") / "tiny"
        Codec(config).save_pretrained(folder)
    return folder


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A folder with two sound files that differ in kind only, and one in a folder below."""
    folder = tmp_path / "speech"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(3)
    waveform = (0.1 * rng.standard_normal(5000)).astype(np.float32)
    write_audio(folder / "a.1.wav", waveform, 16000)
    write_audio(folder / "a.1.flac", waveform, 16000)
    write_audio(folder / "below" / "b.wav", waveform[:321], 8000)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def sentence(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and error text of the whole program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dmcodec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0), capsys.readouterr().err.strip()


def test_encode_then_decode_gives_every_sample_back(model: Path, tmp_path: Path) -> None:
    codes, sound = tmp_path / "codes", tmp_path / "sound"
    assert run("encode", EXAMPLE, "-o", codes, "--model", model).exit_code == 0
    assert run("decode", codes, "-o", sound, "--model", model).exit_code == 0

    decoded = read_audio(sound / "4077-13754-0000.wav")
    codec = Codec.from_pretrained(model)
    expected = codec.decode(codec.encode(EXAMPLE))[0].numpy()
    np.testing.assert_allclose(decoded, expected, atol=1 / 32768)
    assert audio_info(sound / "4077-13754-0000.wav").num_samples == audio_info(EXAMPLE).num_samples


def test_folders_keep_their_layout_and_names_never_collide(
    model: Path, speech: Path, tmp_path: Path
) -> None:
    result = run("encode", speech, "-o", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output
    written = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.dmc")
    )
    assert written == ["a.1.flac.dmc", "a.1.wav.dmc", "below/b.dmc"]


def test_first_codebooks_are_the_beginning_of_all(model: Path, tmp_path: Path) -> None:
    run("encode", EXAMPLE, "-o", tmp_path / "all", "--model", model)
    run("encode", EXAMPLE, "-o", tmp_path / "two", "--model", model, "--num-codebooks", 2)

    full = loads((tmp_path / "all" / "4077-13754-0000.dmc").read_bytes())
    two = loads((tmp_path / "two" / "4077-13754-0000.dmc").read_bytes())
    assert two.header.num_codebooks == 2
    np.testing.assert_array_equal(two.codes, full.codes[:2])


def test_search_width_gives_the_codes_of_encode_and_a_sound(model: Path, tmp_path: Path) -> None:
    codec = Codec.from_pretrained(model)
    expected = codec.encode(EXAMPLE, search_width=8).item(0).numpy()
    options = ("--model", model, "--search-width", 8)

    encoded = run("encode", EXAMPLE, "-o", tmp_path, *options)
    reconstructed = run("reconstruct", EXAMPLE, "-o", tmp_path / "r", *options)

    for result in (encoded, reconstructed):
        assert result.exit_code == 0, result.output
    for folder in (tmp_path, tmp_path / "r"):
        codes = loads((folder / "4077-13754-0000.dmc").read_bytes()).codes
        np.testing.assert_array_equal(codes, expected)
    assert (expected != codec.encode(EXAMPLE).item(0).numpy()).any()


def test_threads_are_set_and_change_no_code(model: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            out = tmp_path / str(threads)
            result = run("encode", EXAMPLE, "-o", out, "--model", model, "--threads", threads)
            assert result.exit_code == 0, result.output
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

    one, two = ((tmp_path / n / "4077-13754-0000.dmc").read_bytes() for n in ("1", "2"))
    assert one == two


def test_reconstruct_replaces_nothing_unasked(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("encode", EXAMPLE, "-o", out, "--model", model)
    before = (out / "4077-13754-0000.dmc").read_bytes()

    result = run("reconstruct", EXAMPLE, "-o", out, "--model", model, "--num-codebooks", 2)

    assert result.exit_code == 1
    assert "4077-13754-0000.dmc exists: give --force" in result.output
    assert (out / "4077-13754-0000.dmc").read_bytes() == before


def test_reconstruct_takes_files_of_one_name(model: Path, speech: Path, tmp_path: Path) -> None:
    lines = []
    for number in (1, 2):
        (tmp_path / f"p{number}").mkdir()
        shutil.copy(speech / "a.1.wav", tmp_path / f"p{number}" / "001.wav")
        lines.append(f'{{"id": "p{number}/001", "audio": "p{number}/001.wav"}}\n')
    (tmp_path / "list.jsonl").write_text("".join(lines))
    files = [tmp_path / f"p{number}" / "001.wav" for number in (1, 2)]

    only_measured = run("reconstruct", *files, files[0], "--model", model)
    of_a_list = run("reconstruct", tmp_path / "list.jsonl", "-o", tmp_path / "o", "--model", model)

    assert only_measured.exit_code == 0, only_measured.output
    assert "mean of 2 files" in only_measured.output
    assert of_a_list.exit_code == 0, of_a_list.output
    assert sorted(p.name for p in (tmp_path / "o").rglob("*.dmc")) == ["001.dmc"] * 2


def test_an_id_and_a_file_of_one_name_give_two_results(
    model: Path, speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.jsonl").write_text(f'{{"id": "b", "audio": "{speech / "a.1.wav"}"}}\n')
    inputs = [tmp_path / "list.jsonl", speech / "below"]

    result = run("reconstruct", *inputs, "-o", tmp_path / "o", "--model", model)

    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in (tmp_path / "o").glob("*.dmc"))
    assert written == ["b.dmc", "b.wav.dmc"]


def test_errors_of_processes_that_read_data_are_one_sentence() -> None:
    dataset = _Broken()
    loader = torch.utils.data.DataLoader(dataset, num_workers=1)

    with pytest.raises(AudioError) as caught:
        next(iter(loader))

    assert describe_problem(caught.value) == "x.wav: damaged: near its end\nand more"
    assert describe_problem(FileNotFoundError(2, "No such file", "a.wav")) == "a.wav: No such file"


class _Broken(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise AudioError("x.wav: damaged: near its end\nand more")


def test_unreadable_files_are_named_and_the_others_go_on(
    model: Path, speech: Path, tmp_path: Path
) -> None:
    (speech / "broken.wav").write_bytes(b"RIFF this is not sound")
    result = run("encode", speech, tmp_path / "gone.wav", "-o", tmp_path / "o", "--model", model)

    assert result.exit_code == 1
    assert f"{speech / 'broken.wav'}: " in result.output
    assert f"{tmp_path / 'gone.wav'}: no such file" in result.output
    assert "3 done, 2 failed, more than --max-failures 0" in result.output
    assert len(list((tmp_path / "o").rglob("*.dmc"))) == 3


@pytest.mark.parametrize(("limit", "code"), [("1", 0), ("25%", 0), ("24%", 1), ("0", 1)])
def test_so_many_files_may_fail(
    limit: str, code: int, model: Path, speech: Path, tmp_path: Path
) -> None:
    (speech / "broken.wav").write_bytes(b"RIFF this is not sound")
    options = ("-o", tmp_path / "o", "--model", model, "--max-failures", limit)

    result = run("encode", speech, *options)

    assert result.exit_code == code
    assert f"{speech / 'broken.wav'}: " in result.output
    assert "encoding: 3 done, 1 failed" in result.output


def test_existing_results_are_replaced_only_when_asked(
    model: Path, speech: Path, tmp_path: Path
) -> None:
    source = speech / "below" / "b.wav"
    before = source.read_bytes()
    assert run("encode", source, "--model", model).exit_code == 0

    refused = run("decode", source.with_suffix(".dmc"), "--model", model)
    assert refused.exit_code == 1
    assert "give --force to replace it" in refused.output
    assert source.read_bytes() == before
    assert run("decode", source.with_suffix(".dmc"), "--model", model, "--force").exit_code == 0
    assert source.read_bytes() != before


def test_damage_is_reported_and_read_around_when_asked(model: Path, tmp_path: Path) -> None:
    run("encode", EXAMPLE, "-o", tmp_path, "--model", model)
    path = tmp_path / "4077-13754-0000.dmc"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the second and last chunk, which begins at frame 167
    path.write_bytes(data)

    refused = run("decode", path, "--model", model)
    assert refused.exit_code == 1
    assert "chunk 1: checksum mismatch" in refused.output

    read = run("decode", path, "--model", model, "--skip-damage", "-o", tmp_path / "out")
    assert read.exit_code == 0
    assert "chunks 1 are damaged and silent" in read.output
    waveform = read_audio(tmp_path / "out" / "4077-13754-0000.wav")
    assert np.abs(waveform[: 167 * 320]).max() > 0
    assert np.abs(waveform[167 * 320 :]).max() == 0


def test_codes_of_another_model_are_refused_unless_asked_for(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    codec = Codec.from_pretrained(other)
    with torch.no_grad():
        codec.quantizer.codebooks.add_(1.0)
    codec.save_pretrained(other)
    run("encode", EXAMPLE, "-o", tmp_path, "--model", model)
    path = tmp_path / "4077-13754-0000.dmc"

    refused = run("decode", path, "--model", other)
    assert refused.exit_code == 1
    assert "name the right one with --model" in refused.output
    assert run("decode", path, "--model", other, "--any-model").exit_code == 0


def test_reconstruct_writes_sound_codes_and_picture(model: Path, tmp_path: Path) -> None:
    result = run("reconstruct", EXAMPLE, "-o", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output
    for word in ("codes", "bitrate", "speed", "STOI", "PESQ-WB"):
        assert word in result.output
    files = sorted(p.suffix for p in (tmp_path / "out").iterdir())
    assert files == [".dmc", ".png", ".wav"]
    assert (tmp_path / "out" / "4077-13754-0000.png").read_bytes().startswith(b"\x89PNG")


def test_reconstruct_of_a_manifest_gives_means_and_what_is_missing(
    model: Path, speech: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(f'{{"audio": "{EXAMPLE}"}}\n{{"audio": "{speech / "a.1.wav"}"}}\n')

    result = run("reconstruct", manifest, "--model", model)

    assert result.exit_code == 0, result.output
    assert "mean of 2 files" in result.output
    assert "(n = 1)" in result.output  # STOI needs 0.4 s of speech: one clip has none
    assert "a.1.wav: STOI" in result.output


def test_info_describes_files_and_models(model: Path, tmp_path: Path) -> None:
    run("encode", EXAMPLE, "-o", tmp_path, "--model", model)
    about_file = run("info", tmp_path / "4077-13754-0000.dmc").output
    assert "76480 samples at 16000 Hz" in about_file
    assert "4 books of 64" in about_file

    about_model = run("info", model).output
    codec = Codec.from_pretrained(model)
    assert codec.fingerprint() in about_model
    assert codec.fingerprint() in about_file


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "missing.toml"], "no configuration file missing.toml"),
        (["encode", "x.wav", "--model", "no/such"], "no codec 'no/such'"),
        (["encode", "x.wav", "--device", "tpu9"], "device 'tpu9' cannot be used"),
        (["info", "codes/typo.dmc"], "codes/typo.dmc: no such file"),
        (["teach", "configs/small_guided.toml", "--device", "tpu9"], "'tpu9' cannot be used"),
        (["evaluate", "x.jsonl", "--system", "a=opus:6", "--device", "tpu9"], "cannot be used"),
        (["export", "-o", "README.md"], "README.md"),
        (["encode", "x.wav", "--precision", "tf32"], "precision tf32 is of CUDA devices, not of"),
        (["encode", "x.wav", "--backend", "onnx", "--device", "cuda"], "leave out --device"),
        (["encode", "x.wav", "--precision", "fp8"], "not one of float32, tf32, bfloat16"),
        (["decode", "x.dmc", "--model", "no/such"], "no codec 'no/such'"),
    ],
)
def test_wrong_arguments_end_with_one_sentence(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, text = sentence(capsys, *arguments)
    assert code == 1
    assert text.startswith("dmcodec: ")
    assert expected in text
    assert "Traceback" not in text


def test_unknown_keys_of_an_experiment_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Path(__file__).parent.parent / "configs" / "small.toml"
    code, text = sentence(capsys, "train", tiny, "--set", "optimizer.learnin_rate=1")
    assert code == 1
    assert "unknown key 'optimizer.learnin_rate'" in text


def test_misspelt_flags_are_errors() -> None:
    result = run("encode", "x.wav", "--num-codebook", 2)
    assert result.exit_code == 2
    assert "No such option" in result.output


def test_pipes_go_in_and_out(model: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "dmcodec.cli"]
    options = ["--model", str(model)]
    encoded = subprocess.run(
        [*program, "encode", "-", *options],
        input=EXAMPLE.read_bytes(),
        capture_output=True,
        check=True,
    ).stdout
    run("encode", EXAMPLE, "-o", tmp_path, "--model", model)
    assert encoded == (tmp_path / "4077-13754-0000.dmc").read_bytes()

    sound = subprocess.run(
        [*program, "decode", "-", *options], input=encoded, capture_output=True, check=True
    ).stdout
    run("decode", tmp_path / "4077-13754-0000.dmc", "--model", model)
    assert len(sound) == 44 + 2 * 76_480
    np.testing.assert_array_equal(
        read_audio(SoundBytes("stdout", sound)), read_audio(tmp_path / "4077-13754-0000.wav")
    )


def test_named_pipes_are_files(model: Path, tmp_path: Path) -> None:
    run("encode", EXAMPLE, "-o", tmp_path / "expected", "--model", model)
    (expected,) = (tmp_path / "expected").iterdir()
    for command, source, suffix in (("encode", EXAMPLE, ".dmc"), ("decode", expected, ".wav")):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(source.read_bytes(),))
        writer.start()
        result = run(command, pipe, "-o", tmp_path / "out", "--model", model)
        writer.join()
        assert result.exit_code == 0, result.output
        pipe.unlink()
        assert (tmp_path / "out" / f"pipe{suffix}").is_file()
    assert (tmp_path / "out" / "pipe.dmc").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("arguments", [("-", "x.wav"), ("-", "-o", "out")])
def test_stdin_goes_with_nothing_else(arguments: tuple[str, ...]) -> None:
    for command in ("encode", "decode"):
        result = run(command, *arguments)
        assert isinstance(result.exception, CommandError)
        assert "- reads stdin and writes stdout" in str(result.exception)


def test_one_empty_folder_ends_no_batch(model: Path, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("encode", "reconstruct"):
        result = run(command, tmp_path / "empty", speech, "--model", model)
        assert result.exit_code == 1
        assert f"folder {tmp_path / 'empty'} holds no file to work on" in result.output
        assert "3 done, 1 failed" in result.output


def test_one_sound_under_two_ids_and_names_too_long_are_said(
    model: Path, speech: Path, tmp_path: Path
) -> None:
    lines = [
        {"audio": str(speech / "a.1.wav"), "id": "one"},
        {"audio": str(speech / "a.1.wav"), "id": "two"},
        {"audio": "x" * 300 + ".wav", "id": "long"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))

    result = run("reconstruct", tmp_path / "list.jsonl", "--model", model)
    encoded = run("encode", "y" * 300, speech / "a.1.wav", "-o", tmp_path / "o", "--model", model)

    assert result.exit_code == encoded.exit_code == 1
    assert f"two: is {speech / 'a.1.wav'} once more, as one" in result.output
    assert "File name too long" in result.output
    assert "1 done, 2 failed" in result.output
    assert "1 done, 1 failed" in encoded.output


def test_reconstruct_lists_bad_lines_and_takes_columns(
    model: Path, speech: Path, tmp_path: Path
) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"clip,id\n{speech / 'a.1.wav'},one\nx\n")
    result = run("reconstruct", table, "--column", "audio=clip", "--model", model)
    assert result.exit_code == 1
    assert "list.csv:3: has another number of columns" in result.output
    assert "1 done, 1 failed" in result.output
    wrong = run("reconstruct", table, "--column", "clip", "--model", model)
    assert "--column 'clip' is not KEY=NAME" in str(wrong.exception)
