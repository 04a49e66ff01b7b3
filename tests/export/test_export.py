"""Exported codecs: the codes and waveforms of torch at any length, and no torch to run them."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from tests.scripts import ROOT, load_script
from typer.testing import CliRunner

from dmcodec import cli
from dmcodec.audio import read_audio, write_audio
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.codec.spectral_decoder import SpectralConfig

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from dmcodec.export.comparison import compare_export
from dmcodec.export.networks import export_onnx
from dmcodec.export.onnx_codec import BOOKS_NAME, OnnxCodec
from dmcodec.tokens.bitstream import loads


def make_codec(decoder: SpectralConfig | None = None, **seanet: object) -> Codec:
    decoders = {} if decoder is None else {"decoder": decoder}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(9)
        codec = Codec(
            CodecConfig(
                seanet=SEANetConfig(num_filters=4, latent_dim=8, **seanet),
                quantizer=QuantizerConfig(codebook_size=32, num_codebooks=3),
                **decoders,
            )
        )
        if (
            not decoders and "activation" not in seanet
        ):  # so that tolerances mean something; Snake is loud enough
            codec.decoder.conv_out.conv.weight.data *= 10
    codec.model_id = "export-test"
    return codec.eval()


CODECS = {
    "paper": make_codec(),
    "causal snake": make_codec(is_causal=True, is_encoder_bidirectional=False, activation="snake"),
    "spectral": make_codec(
        SpectralConfig(
            channels=12, num_blocks=1, upsampling=2, fine_channels=8, num_fine_blocks=1, n_fft=640
        )
    ),
}


@pytest.fixture(scope="module", params=CODECS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A codec, its export, and the export's folder."""
    folder = tmp_path_factory.mktemp("export")
    codec = CODECS[request.param]
    export_onnx(codec, folder)
    return codec, OnnxCodec(folder, num_threads=1), folder


def test_any_length_and_batch_equal_torch(pair: tuple) -> None:
    codec, exported, _ = pair
    rng = np.random.default_rng(1)
    for batch_size, num_samples in ((1, 1), (1, 319), (2, 321), (3, 1600), (1, 7777), (2, 16000)):
        waveforms = (0.1 * rng.standard_normal((batch_size, num_samples))).astype(np.float32)
        encoded = codec.encode(waveforms)

        codes = exported.encode(waveforms)
        np.testing.assert_array_equal(codes, encoded.codes.numpy())
        np.testing.assert_array_equal(exported.encode(waveforms[0]), codes[0])
        np.testing.assert_allclose(
            exported.decode(codes, num_samples), codec.decode(encoded).numpy(), atol=5e-6, rtol=1e-4
        )
        np.testing.assert_allclose(
            exported.decode(codes[0, :2], num_samples),
            codec.decode(encoded, num_codebooks=2)[0].numpy(),
            atol=5e-6,
            rtol=1e-4,
        )


def test_bad_input_is_refused(pair: tuple, tmp_path: Path) -> None:
    _, exported, folder = pair
    with pytest.raises(ValueError, match="NaN or infinite"):
        exported.encode(np.array([0.0, np.inf], np.float32))
    with pytest.raises(ValueError, match=r"must be \[T\] or \[B, T\]"):
        exported.encode(np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="dtype int16; give float samples"):
        exported.encode(np.zeros(400, np.int16))
    blocks = [np.zeros(400, np.float32), np.full(400, 7, np.int16)]
    with pytest.raises(ValueError, match="dtype int16; give float samples"):
        exported.encode_parts(blocks)
    waveform = np.linspace(-0.5, 0.5, 700, dtype=np.float32)
    codes = exported.encode(waveform)
    np.testing.assert_array_equal(exported.encode(waveform.tolist()), codes)
    np.testing.assert_array_equal(exported.decode(codes.tolist()), exported.decode(codes))
    with pytest.raises(ValueError, match="codes must be integers"):
        exported.decode(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"0\.\.31"):
        exported.decode(np.full((3, 4), 32))
    with pytest.raises(FileNotFoundError, match=r"codec\.json is missing"):
        OnnxCodec(tmp_path)
    (tmp_path / "codec.json").write_text('{"format": "other"}')
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match="format 'other'"):
        OnnxCodec(tmp_path)
    (tmp_path / "codec.json").write_text('{"format": "dmcodec-onnx/1"}')
    with pytest.raises(ValueError, match=r"codec\.json cannot be used: KeyError"):
        OnnxCodec(tmp_path)
    (tmp_path / "codec.json").write_bytes((folder / "codec.json").read_bytes())
    (tmp_path / "encoder.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"encoder\.onnx cannot be loaded"):
        OnnxCodec(tmp_path)


@pytest.mark.parametrize("num_samples", [1, 320, 3201, 16_000, 16_123])
def test_long_sound_in_windows_equals_the_whole(
    pair: tuple, num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, exported, _ = pair
    rng = np.random.default_rng(num_samples)
    waveform = (0.1 * rng.standard_normal(num_samples)).astype(np.float32)
    whole = exported.encode(waveform)
    sound = exported.decode(whole, num_samples)
    blocks = np.split(waveform, sorted(rng.integers(0, num_samples + 1, 3)))
    # Random weights forget within a few frames; a trained codec's windows are 10 s wide.
    monkeypatch.setattr("dmcodec.export.onnx_codec.WINDOW_FRAMES", 10)
    monkeypatch.setattr("dmcodec.export.onnx_codec.CONTEXT_FRAMES", 30)

    codes, counted = exported.encode_parts(blocks, num_codebooks=2)
    decoded = np.concatenate(list(exported.decode_parts(whole, num_samples)))

    assert counted == num_samples
    np.testing.assert_array_equal(codes, whole[:2])
    np.testing.assert_allclose(decoded, sound, atol=1e-3)  # of full scale: not quite forgotten
    with pytest.raises(ValueError, match="audio is empty"):
        exported.encode_parts([np.zeros(0, np.float32)])


def test_search_finds_the_codes_of_torch(pair: tuple) -> None:
    codec, exported, _ = pair
    waveforms = (0.1 * np.random.default_rng(4).standard_normal((2, 7777))).astype(np.float32)
    expected = codec.encode(waveforms, num_codebooks=2, search_width=5).codes.numpy()

    codes = exported.encode(waveforms, num_codebooks=2, search_width=5)
    long, counted = exported.encode_parts([waveforms[0]], num_codebooks=2, search_width=5)

    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(long, expected[0])
    assert counted == 7777
    assert (codes != exported.encode(waveforms, num_codebooks=2)).any()
    with pytest.raises(ValueError, match="search_width is 0"):
        exported.encode(waveforms, search_width=0)


def test_exports_without_books_are_greedy_and_say_so(tmp_path: Path) -> None:
    codec = CODECS["paper"]
    export_onnx(codec, tmp_path)
    (tmp_path / BOOKS_NAME).unlink()
    exported, waveform = OnnxCodec(tmp_path), np.zeros(400, np.float32)

    np.testing.assert_array_equal(exported.encode(waveform), codec.encode(waveform).item(0))
    with pytest.raises(FileNotFoundError, match=r"codebooks.* is missing.*export the codec again"):
        exported.encode(waveform, search_width=2)
    for damaged in (b"no books", save({"codebooks": np.zeros((3, 31, 8), np.float32)})):
        (tmp_path / BOOKS_NAME).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot be loaded|is of another codec"):
            exported.encode(waveform, search_width=2)


_WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchaudio"):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Refuse())
sys.argv = ["dmcodec", *sys.argv[1:]]
from dmcodec.cli import main
main()
"""


def test_the_command_line_encodes_and_decodes_without_torch(pair: tuple, tmp_path: Path) -> None:
    codec, _, folder = pair
    waveform = (0.1 * np.random.default_rng(2).standard_normal(5000)).astype(np.float32)
    write_audio(tmp_path / "a.wav", waveform)

    def run(*arguments: object) -> None:
        command = [sys.executable, "-c", _WITHOUT_TORCH, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("encode", tmp_path / "a.wav", "-o", tmp_path, "--backend", "onnx", "--model", folder)
    run("decode", tmp_path / "a.dmc", "-o", tmp_path / "b", "--backend", "onnx", "--model", folder)
    onnx = ("--backend", "onnx", "--model", folder)
    run("encode", tmp_path / "a.wav", "-o", tmp_path / "s", "--search-width", 4, *onnx)

    codec.save_pretrained(tmp_path / "export-test")
    with_torch = ["--model", str(tmp_path / "export-test")]
    result = CliRunner().invoke(
        cli.app, ["encode", str(tmp_path / "a.wav"), "-o", str(tmp_path / "t"), *with_torch]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "t" / "a.dmc").read_bytes() == (tmp_path / "a.dmc").read_bytes()
    searched = codec.encode(tmp_path / "a.wav", search_width=4).item(0).numpy()
    np.testing.assert_array_equal(loads((tmp_path / "s" / "a.dmc").read_bytes()).codes, searched)
    encoded = codec.encode(tmp_path / "a.wav")
    expected = codec.decode(encoded)[0].numpy().clip(-1, 1)
    np.testing.assert_allclose(
        read_audio(tmp_path / "b" / "a.wav"), expected, atol=1 / 32768, rtol=1e-4
    )


def test_damage_is_skipped_without_torch_too(pair: tuple, tmp_path: Path) -> None:
    _, _, folder = pair
    write_audio(tmp_path / "a.wav", np.full(320 * 600, 0.1, np.float32))
    given = ["--backend", "onnx", "--model", str(folder), "-o", str(tmp_path / "b")]
    result = CliRunner().invoke(cli.app, ["encode", str(tmp_path / "a.wav"), *given])
    assert result.exit_code == 0, result.output
    path = tmp_path / "b" / "a.dmc"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    is_valid = loads(bytes(data), on_damage="skip").is_frame_valid.repeat(320)

    refused = CliRunner().invoke(cli.app, ["decode", str(path), *given])
    result = CliRunner().invoke(cli.app, ["decode", str(path), *given, "--skip-damage"])

    assert refused.exit_code == 1
    assert "are damaged and silent" in result.output
    sound = read_audio(tmp_path / "b" / "a.wav")
    assert len(sound) == len(is_valid)
    assert not sound[~is_valid].any()
    assert sound[is_valid].any()


def test_comparison_counts_equal_codes_and_finds_another_codec(pair: tuple, tmp_path: Path) -> None:
    codec, _, folder = pair
    speech = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path, num_samples in zip(speech, (3300, 700), strict=True):
        noise = 0.1 * np.random.default_rng(num_samples).standard_normal(num_samples)
        write_audio(path, noise.astype(np.float32))
    other = copy.deepcopy(codec)
    other.quantizer.codebooks.neg_()

    same = compare_export(codec, folder, speech)
    different = compare_export(other, folder, speech)

    assert same.num_codes == different.num_codes == 3 * (11 + 3)
    assert same.num_equal == same.num_codes
    assert same.largest_difference < 1e-4
    assert different.num_equal < same.num_codes / 2
    assert different.largest_difference > 1e-3


def test_int8_keeps_most_codes(tmp_path: Path) -> None:
    codec = CODECS["paper"]
    export_onnx(codec, tmp_path / "float32")
    export_onnx(codec, tmp_path / "int8", use_int8=True)

    found = compare_export(codec, tmp_path / "int8")

    small, large = (
        (tmp_path / kind / "encoder.onnx").stat().st_size for kind in ("int8", "float32")
    )
    assert small < 0.8 * large
    # How many depends on the processor's integer products.
    assert 0.5 < found.num_equal / found.num_codes <= 1


def test_command_says_how_many_codes_are_equal(tmp_path: Path) -> None:
    CODECS["paper"].save_pretrained(tmp_path / "model")
    write_audio(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 6400, dtype=np.float32))
    given = ["--model", tmp_path / "model", "-o", tmp_path / "onnx", "--speech", tmp_path / "a.wav"]

    result = CliRunner().invoke(cli.app, ["export", *map(str, given)])

    assert result.exit_code == 0, result.output
    assert "equal codes: 60 of 60 (100.000%)" in result.output
    assert "greatest waveform difference for equal codes: " in result.output


def test_benchmark_prints_a_row_for_each_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    CODECS["paper"].save_pretrained(tmp_path / "model")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    given = ["--model", tmp_path / "model", "--seconds", "0.1", "0.3", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["onnx_speed.py", *map(str, given)])

    load_script("benchmarks/onnx_speed.py").main()

    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [row[0].strip() for row in rows[2:]] == ["0.1 s", "0.3 s"]
    for row in rows[2:]:
        encode_torch, encode_onnx, ratio = map(float, row[1:4])
        assert ratio == pytest.approx(encode_onnx / encode_torch, rel=0.1)


@pytest.fixture
def exported(pair: tuple, tmp_path: Path) -> Path:
    """A copy of an export that may be changed."""
    return Path(shutil.copytree(pair[2], tmp_path / "export"))


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "codec.json"])
def test_parts_of_two_exports_are_refused(exported: Path, tmp_path: Path, name: str) -> None:
    codec = make_codec()
    with torch.no_grad():  # the same shapes, other weights
        for part in (codec.encoder, codec.decoder):
            part.conv_in.conv.bias += 0.1
    export_onnx(codec, tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, exported / name)

    with pytest.raises(ValueError, match=r"coder\.onnx cannot be loaded: it is damaged or not of"):
        OnnxCodec(exported)


def test_interrupted_export_leaves_the_older_one_whole(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}

    def stop(*arguments: object) -> str:
        raise KeyboardInterrupt

    # Both networks are written by then.
    monkeypatch.setattr("dmcodec.export.networks.hash_part", stop)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(make_codec(dilation_base=3), exported)

    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "codec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_rate": 10**12},
        {"sample_rate": 0},
        {"hop_length": 10**12},
        {"num_codebooks": 10**9},
        {"codebook_size": 10**9},
        {"sample_rate": float("inf")},
        {"hashes": 3},
        {"model_hash": "?"},
    ],
)
def test_impossible_sizes_in_an_export_are_refused(
    exported: Path, changes: dict[str, object]
) -> None:
    change_config(exported, **changes)

    with pytest.raises(ValueError, match=r"codec\.json cannot be used"):
        OnnxCodec(exported)


def test_config_that_is_nested_too_deeply_is_refused(exported: Path) -> None:
    (exported / "codec.json").write_text("[" * 100_000)

    with pytest.raises(ValueError, match=r"codec\.json cannot be used: .*nested too deeply"):
        OnnxCodec(exported)


@pytest.mark.parametrize("changes", [{"num_codebooks": 2}, {"hop_length": 160}])
def test_export_that_does_not_fit_its_config_is_not_blamed_on_the_recording(
    exported: Path, changes: dict[str, object], tmp_path: Path
) -> None:
    change_config(exported, hashes={}, **changes)  # of an earlier version, without hashes
    write_audio(tmp_path / "a.wav", np.zeros(1000))

    given = ["encode", tmp_path / "a.wav", "--backend", "onnx", "--model", exported]
    result = CliRunner().invoke(cli.app, [str(each) for each in given])

    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(str(exported))
    assert "export the codec again" in str(result.exception)


def test_weights_that_are_not_finite_or_not_float32_are_not_exported(tmp_path: Path) -> None:
    codec = make_codec()
    with pytest.raises(ValueError, match="float32: call"):
        export_onnx(codec.half(), tmp_path / "x")
    codec = make_codec()
    with torch.no_grad():
        codec.encoder.conv_in.conv.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"conv_in\.conv\.bias holds NaN"):
        export_onnx(codec, tmp_path / "x")

    assert not (tmp_path / "x").exists()


def test_threads_beyond_any_machine_are_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="num_threads is 5000; this machine has"):
        OnnxCodec(exported, num_threads=5000)
