"""benchmarks/gpu.py, on the CPU and tiny: every row is made, or says why not."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.scripts import load_script

from dmcodec.codec.seanet import Encoder, SEANetConfig

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
TINY = ["--device", "cpu", "--models", "tiny", "--seconds", "0.5", "--least-seconds", "0"]
TINY += ["--compile-backend", "eager", "--minutes", "1000"]


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The benchmark as a module."""
    return load_script("benchmarks/gpu.py")


@pytest.fixture(scope="module")
def rehearsal(gpu: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files of a rehearsal of plain layers and graphs."""
    folder = tmp_path_factory.mktemp("gpu")
    words = [*TINY, "--batches", "1", "2", "--workers", "0", "1", "--ways", "plain", "graph"]
    words += ["--output", str(folder / "gpu.json"), "--markdown", str(folder / "gpu.md")]
    assert gpu.main(words) == 0
    return folder


def read_rows(folder: Path) -> list[dict[str, Any]]:
    (run,) = json.loads((folder / "gpu.json").read_text())
    return run["rows"]


def test_float32_gives_the_codes_of_the_cpu_and_bfloat16_nearly_so(rehearsal: Path) -> None:
    rows = {(row["precision"], row["of"]): row for row in read_rows(rehearsal) if "of" in row}

    for of in ("clips alone", "a mixed batch", "pieces of 1 s"):
        assert rows["float32", of]["is_right"]
        assert rows["float32", of]["differ_percent"] < 0.2
        assert 0.2 < rows["bfloat16", of]["differ_percent"] < 20
        assert 1e-4 < rows["bfloat16", of]["worst_gap"] < 0.1
    assert abs(rows["float32", "sound"]["change"]) < 1e-3
    assert 1e-5 < abs(rows["bfloat16", "sound"]["change"]) < 0.1
    assert rows["float32", "training step"]["change"] < 1e-6  # the CPU against itself


def test_every_work_has_its_speed_or_the_reason_why_not(rehearsal: Path) -> None:
    rows = [row for row in read_rows(rehearsal) if row["kind"] == "speed"]
    done = {(row["work"], row["precision"], row["way"]) for row in rows if "ms" in row}
    reasons = {row["skipped"] for row in rows if "ms" not in row}

    works = ("encode", "decode", "train", "reconstruct")
    assert done == {(work, p, "plain") for work in works for p in ("float32", "bfloat16")} | {
        ("load", "-", "0 workers"),
        ("load", "-", "1 workers"),
    }
    assert reasons == {
        "precision tf32 is of CUDA devices, not of 'cpu'",
        "CUDA graphs are not for cpu",
        "a step looks at values on its way (books in use, finite losses)",
    }
    for row in rows:
        if "ms" in row and row["load"] == "2 x 0.5 s":
            assert row["hours_per_hour"] == pytest.approx(2 * 0.5 / (row["ms"] / 1000))
    assert {row["load"] for row in rows if row["work"] == "train"} == {"2 x 0.3 s"}


def test_tables_hold_every_row(rehearsal: Path) -> None:
    lines = (rehearsal / "gpu.md").read_text().splitlines()

    assert len([line for line in lines if line.startswith("| tiny |")]) == len(
        [row for row in read_rows(rehearsal) if row["model"] == "tiny"]
    )
    assert "| tiny | encode | 1 x 0.5 s | tf32 | plain |" in "\n".join(lines)
    assert any("device cpu" in line and torch.__version__ in line for line in lines)


def test_compiled_networks_are_measured(gpu: Any, tmp_path: Path) -> None:
    words = [*TINY, "--batches", "1", "--ways", "compile", "--precisions", "bfloat16"]
    words += ["--no-checks"]

    assert gpu.main([*words, "--output", str(tmp_path / "gpu.json")]) == 0

    rows = read_rows(tmp_path)
    assert {row["kind"] for row in rows} == {"speed"}
    assert [row["work"] for row in rows if "ms" in row] == ["encode", "decode", "train"]
    assert all(row["first_s"] > row["ms"] / 1000 for row in rows)  # compiling is in it


def test_next_call_makes_what_is_missing(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    machine = {"device": "here"}
    made: list[str] = []

    def row(name: str, problem: Exception | None = None) -> tuple[dict[str, str], Any]:
        def make() -> dict[str, Any]:
            made.append(name)
            if problem is not None:
                raise problem
            return {"ms": 1.0}

        return {"kind": "speed", "work": name}, make

    first = gpu.Report(path, machine, 10)
    for each in (row("a"), row("b", torch.OutOfMemoryError()), row("c", RuntimeError("odd"))):
        first.add(*each)
    written = json.loads(path.read_text())[0]["rows"]
    late = gpu.Report(path, machine, 0)
    late.add(*row("d"))
    again = gpu.Report(path, machine, 10)
    for name in "abcd":
        again.add(*row(name))
    other = gpu.Report(path, {"device": "another"}, 10)
    other.add(*row("a"))

    assert [each.get("skipped", each.get("failed")) for each in written] == [
        None,
        "out of memory",
        "RuntimeError: odd",
    ]
    assert late.rows[-1]["skipped"] == "no time was left"
    assert made == ["a", "b", "c", "b", "c", "d", "a"]
    runs = json.loads(path.read_text())
    assert [(run["machine"]["device"], len(run["rows"])) for run in runs] == [
        ("here", 4),
        ("another", 1),
    ]


def test_gap_is_that_of_the_first_book_that_differs(gpu: Any) -> None:
    books = torch.tensor([[[0.0], [4.0], [7.0]], [[1.0], [-1.0], [2.0]]])
    encoder = lambda waveform: torch.tensor([[[1.0, 1.0, 1.0]]])  # noqa: E731
    codec = SimpleNamespace(encoder=encoder, quantizer=SimpleNamespace(codebooks=books))
    expected = torch.tensor([[0, 0, 0], [1, 1, 0]])
    found = torch.tensor([[0, 1, 0], [2, 0, 0]])

    gaps = gpu.gaps_of(codec, torch.zeros(960), expected, found)

    # Frame 1, book 2: residual 1, entries -1 (distance 4) and 2 (1). Frame 2, book 1: 0 (1), 4 (9).
    assert gaps.tolist() == [0.75, 8.0]


def test_captured_network_replays(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls only: what a graph replays is known to a GPU alone."""
    calls: list[str] = []
    stream = SimpleNamespace(wait_stream=lambda other: calls.append("wait"))
    fakes = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda side: contextlib.nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: calls.append("replay")),
        "graph": lambda graph: contextlib.nullcontext(calls.append("capture")),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    network = Encoder(SEANetConfig(num_filters=2, latent_dim=4)).eval()
    example = torch.randn(2, 1, 960)

    with torch.no_grad():
        replay = gpu.captured(network, example, "float32")
        found = replay(example, None)

        assert torch.equal(found, network(example))
    assert calls == ["wait", "wait", "capture", "replay"]


_ONLY_LIGHT = """
import importlib.abc, runpy, sys
HEAVY = {"pystoi", "pesq", "matplotlib", "tensorboard", "transformers", "pyarrow", "datasets",
         "accelerate", "librosa", "scipy", "onnx", "huggingface_hub", "typer", "rich"}

class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in HEAVY else real(name, *rest)
sys.meta_path.insert(0, Refusing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_light_dependencies_are_enough(tmp_path: Path) -> None:
    words = [*TINY, "--batches", "1", "--workers", "0", "--ways", "plain", "--precisions"]
    words += ["float32", "--output", str(tmp_path / "gpu.json")]

    result = subprocess.run(
        [sys.executable, "-c", _ONLY_LIGHT, str(SCRIPT), *words], capture_output=True, text=True
    )

    assert result.returncode == 0, result.stderr[-2000:]
    rows = read_rows(tmp_path)
    assert {row["skipped"] for row in rows if "skipped" in row} == {"accelerate is not installed"}
    assert [row["measure"] for row in rows if row.get("of") == "sound"] == ["SI-SDR, dB"]
    assert {row["work"] for row in rows if "ms" in row} == {"encode", "decode", "load"}
