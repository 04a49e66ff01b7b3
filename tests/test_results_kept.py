"""Commands neither lose nor mix results, nor say that they wrote what they did not."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from dmcodec import cli
from dmcodec.audio import write_audio
from dmcodec.cli.terminal import show_logs
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.storage import lock_folder
from dmcodec.tokenize.pipeline import Speed
from dmcodec.tokens.bitstream import loads


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small untrained codec."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(7)
        config = CodecConfig(
            seanet=SEANetConfig(num_filters=2, latent_dim=4, num_lstm_layers=1),
            quantizer=QuantizerConfig(codebook_size=8, num_codebooks=2),
        )
        folder = tmp_path_factory.mktemp("models") / "t[red]$x$["
        Codec(config).save_pretrained(folder)
    return folder


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A second of noise, in a file of its own folder."""
    path = tmp_path / "in" / "x.wav"
    path.parent.mkdir()
    noise = 0.1 * np.random.default_rng(3).standard_normal(16_000)
    write_audio(path, noise.astype(np.float32))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


class Program(NamedTuple):
    """How the whole program ended."""

    returncode: int
    stdout: str
    stderr: str


def program(capsys: pytest.CaptureFixture[str], *arguments: object) -> Program:
    """The whole program, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dmcodec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return Program(int(stop.value.code or 0), *capsys.readouterr())


def test_python_m_dmcodec_is_the_command() -> None:
    from dmcodec import __version__

    done = subprocess.run(
        [sys.executable, "-m", "dmcodec", "--version"], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (0, f"dmcodec {__version__}\n")


def test_reconstruct_never_replaces_its_input(model: Path, sound: Path) -> None:
    before = sound.read_bytes()

    result = run("reconstruct", sound, "-o", sound.parent, "--force", "--model", model)

    assert result.exit_code == 1
    assert "x.wav is one of the inputs and is not replaced" in result.output
    assert "wrote" not in result.output
    assert sound.read_bytes() == before
    assert list(sound.parent.iterdir()) == [sound]


def test_no_result_of_one_input_replaces_another(model: Path, sound: Path) -> None:
    # The codes of x.flac would replace a .dmc that is to be encoded too, under a hard link.
    shutil.copy(sound, sound.with_suffix(".dmc"))
    (sound.parent / "b").mkdir()
    os.link(sound.with_suffix(".dmc"), sound.parent / "b" / "y.wav")
    before = (sound.parent / "b" / "y.wav").read_bytes()

    result = run("encode", sound, sound.parent / "b" / "y.wav", "--force", "--model", model)

    assert "x.dmc is one of the inputs" in result.output
    assert (sound.parent / "b" / "y.wav").read_bytes() == before
    assert loads((sound.parent / "b" / "y.dmc").read_bytes()).header.num_samples == 16_000


def test_paths_with_dots_stay_inside_the_output(
    model: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    shutil.copy(sound, tmp_path / "a" / "y.wav")
    shutil.copy(sound, tmp_path / "x.wav")
    monkeypatch.chdir(tmp_path)

    result = run("encode", "a", "a/../x.wav", "-o", "w/out/deep", "--model", model)

    assert result.exit_code == 0, result.output
    found = sorted(p.relative_to(tmp_path / "w").as_posix() for p in tmp_path.rglob("*.dmc"))
    assert found == ["out/deep/x.dmc", "out/deep/y.dmc"]


_FULL = """
import resource, signal
from dmcodec.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
main()
"""


def test_reconstruct_on_a_full_disk_says_that_it_failed(
    model: Path, sound: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["reconstruct", sound, "-o", out, "--model", model]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, *map(str, command)], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "wrote" not in done.stdout
    assert "x.wav: cannot be written: File too large" in done.stderr
    assert "STOI" in done.stdout  # what was measured is shown
    assert list(out.iterdir()) == []  # nothing of a set that is not whole


def test_files_of_a_reconstruction_are_replaced_together(
    model: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run("reconstruct", sound, "-o", out, "--model", model)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before.keys() == {"x.dmc", "x.png", "x.wav"}
    write_audio(sound, np.linspace(-0.5, 0.5, 9_000, dtype=np.float32))
    monkeypatch.setattr("dmcodec.reconstruction.plot_reconstruction", stop)

    stopped = run("reconstruct", sound, "-o", out, "--force", "--model", model)

    assert isinstance(stopped.exception, KeyboardInterrupt) or stopped.exit_code == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_file_as_output_folder_is_one_sentence(
    model: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")

    for command in ("encode", "reconstruct", "tokenize", "export"):
        given = [] if command == "export" else [sound.parent]
        done = program(capsys, command, *given, "-o", tmp_path / "out", "--model", model)

        assert done.returncode == 1
        assert f"{tmp_path / 'out'} is a file: name a folder for the results" in done.stderr
        assert "run the same command again" not in done.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_tokenize_in_which_all_fails_fails(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="shards are Parquet: pip install 'dmcodec[data]'")
    lines = [json.dumps({"id": f"{n}", "audio": f"missing{n}.wav"}) for n in range(3)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))

    done = program(
        capsys, "tokenize", tmp_path / "m.jsonl", "-o", tmp_path / "out", "--model", model
    )

    assert done.returncode == 1
    assert "none of the 3 utterances could be tokenized" in done.stderr


def test_names_are_data_and_never_markup(model: Path, sound: Path, tmp_path: Path) -> None:
    names = ("[red]a[/red]", "[/bold]b", "$c$d$", ":smile:")
    for name in names:
        shutil.copy(sound, tmp_path / "in" / f"{name}.wav".replace("/", "_"))
    result = run("reconstruct", sound.parent, "-o", tmp_path / "out", "--model", model)

    assert result.exit_code == 0, result.output
    assert "t[red]$x$[" in result.output
    for name in names:
        assert f"{name}.wav".replace("/", "_") in result.output
    assert len(list((tmp_path / "out").glob("*.png"))) == 5
    shown = run("info", model)
    assert "t[red]$x$[" in shown.output
    (tmp_path / "[u]z.dmc").write_bytes((tmp_path / "out" / "x.dmc").read_bytes())
    assert "[u]z.dmc" in run("info", tmp_path / "[u]z.dmc").output


CLEAR = "\x1b[2J\x9b31m\x07\x7f\r\u2028"
SHOWN = r"\x1b[2J\x9b31m\x07\x7f\r\u2028"


def test_controls_in_names_do_not_reach_the_terminal(
    model: Path,
    sound: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    kept = "\u3000\u200c\u200d.wav"
    folder = tmp_path / "in"
    shutil.copy(sound, folder / f"{CLEAR}.wav")
    shutil.copy(sound, folder / kept)
    shutil.copy(sound, os.fsencode(folder) + b"/\xff.wav")
    (folder / f"no\n{CLEAR}.wav").write_bytes(b"no sound")
    named = tmp_path / f"m{CLEAR}"
    shutil.copytree(model, named)
    (tmp_path / "list.jsonl").write_text(json.dumps({"audio": f"gone{CLEAR}.wav"}))
    said = ""
    for arguments, code in (
        (("reconstruct", folder, "-o", tmp_path / "out", "--model", named), 1),
        (("reconstruct", tmp_path / "list.jsonl", "--model", model), 1),
        (("info", named), 0),
        (("info", tmp_path / f"gone{CLEAR}.dmc"), 1),
        (("encode", f"--{CLEAR}"), 2),
    ):
        done = program(capsys, *arguments)
        assert done.returncode == code, done.stderr
        assert SHOWN in done.stdout + done.stderr, arguments
        said += done.stdout + done.stderr

    assert not set("\x1b\x9b\x07\x7f\r\u2028") & set(said)
    assert kept in said
    assert r" \xff.wav " in said
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_controls_in_logged_names_do_not_reach_the_terminal() -> None:
    show_logs()
    record = logging.LogRecord("dmcodec.x", logging.WARNING, "x.py", 1, "%s: a", (CLEAR,), None)

    assert logging.lastResort is not None
    assert logging.lastResort.format(record) == f"{SHOWN}: a"


def test_info_names_the_file_and_looks_at_its_codes(
    model: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("encode", sound, "--model", model)
    path = sound.with_suffix(".dmc")
    assert "(whole)" in run("info", path).output
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    shown = run("info", path)
    path.write_bytes(b"RIFF of another kind")
    refused = program(capsys, "info", path)

    assert "damaged" in shown.output
    assert "(whole)" not in shown.output
    assert refused.returncode == 1
    assert f"{path}: not a .dmc file" in refused.stderr


@pytest.mark.parametrize("device", ["meta", "mps", "cuda:99", "nonsense"])
def test_devices_that_compute_nothing_are_refused_in_a_sentence(
    model: Path, sound: Path, device: str
) -> None:
    result = run("encode", sound, "--model", model, "--device", device)

    assert result.exit_code == 1
    assert isinstance(result.exception, cli.CommandError)
    text = str(result.exception)
    assert text.startswith(f"device {device!r} cannot be used: ")
    assert len(text) < 300
    assert "\n" not in text


@pytest.mark.parametrize("count", [5000, 100_000])
def test_more_threads_than_any_machine_has_are_refused(
    model: Path, sound: Path, count: int
) -> None:
    result = run("encode", sound, "--model", model, "--threads", count)

    assert result.exit_code == 2
    assert "--threads" in result.output
    with pytest.raises(ValueError, match=f"num_readers is {count}; this machine has"):
        Speed(num_readers=count)


@pytest.mark.parametrize(
    ("option", "value", "command"),
    [
        ("--seconds", "abc", ["export"]),
        ("--seconds", "1,nan", ["export"]),
        ("--batch-seconds", "inf", ["tokenize", "IN"]),
        ("--batch-seconds", "nan", ["tokenize", "IN"]),
        ("--max-seconds", "inf", ["tokenize", "IN"]),
    ],
)
def test_wrong_durations_name_the_option_before_any_work(
    model: Path, sound: Path, tmp_path: Path, option: str, value: str, command: list[str]
) -> None:
    given = [str(sound.parent) if word == "IN" else word for word in command]
    result = run(*given, "-o", tmp_path / "out", "--model", model, option, value)

    assert result.exit_code in (1, 2)
    text = str(result.exception) + result.output
    assert option in text
    assert not (tmp_path / "out").exists()


def test_sizes_beyond_the_memory_are_one_sentence(
    sound: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmcodec.codec.model.load", lambda model: torch.empty(1 << 60))

    done = program(capsys, "encode", sound)

    assert done.returncode == 1
    assert "not enough memory for these sizes" in done.stderr


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("seanet", "num_filters", 10**9),
        ("seanet", "num_lstm_layers", 10**6),
        ("seanet", "num_residual_layers", 10**6),
        ("seanet", "latent_dim", 10**12),
        ("seanet", "kernel_size", 10**9),
        ("seanet", "strides", [2] * 1000),
        ("seanet", "strides", [10**6]),
        ("seanet", "dilation_base", 10**6),
        ("quantizer", "num_codebooks", 10**9),
        ("quantizer", "kmeans_max_vectors", 10**12),
        (None, "sample_rate", 10**12),
        (None, "feature_dim", 10**12),
    ],
)
def test_config_of_an_impossible_codec_is_refused_before_anything_is_built(
    model: Path, sound: Path, tmp_path: Path, group: str | None, key: str, value: object
) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    table = json.loads(path.read_text())
    (table if group is None else table[group])[key] = value
    path.write_text(json.dumps(table))

    result = run("encode", sound, "--model", tmp_path / "model")

    assert result.exit_code == 1
    assert key in str(result.exception)
    assert isinstance(result.exception, ValueError)


def test_sizes_that_are_only_together_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        SEANetConfig(num_filters=4096, strides=(2,) * 8)
    with pytest.raises(ValueError, match="codebooks would have"):
        CodecConfig(
            seanet=SEANetConfig(latent_dim=4096),
            quantizer=QuantizerConfig(num_codebooks=64, codebook_size=65536),
        )


@pytest.mark.parametrize("num_filters", [2, 16])
@pytest.mark.parametrize("num_residual_layers", [1, 3])
def test_the_estimate_of_weights_is_near(num_filters: int, num_residual_layers: int) -> None:
    config = SEANetConfig(
        num_filters=num_filters, latent_dim=64, num_residual_layers=num_residual_layers
    )
    codec = Codec(CodecConfig(seanet=config))

    counted = sum(each.numel() for each in codec.parameters())

    assert config.num_weights == pytest.approx(counted, rel=0.15)


def test_a_command_waits_for_nobody(
    model: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_folder(tmp_path / "out"):
        done = program(capsys, "tokenize", sound.parent, "-o", tmp_path / "out", "--model", model)

    assert done.returncode == 1
    assert f"another job is writing to {tmp_path / 'out'}: wait for it or stop it" in done.stderr
