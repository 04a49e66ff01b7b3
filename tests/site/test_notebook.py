"""examples/first_five_minutes.ipynb runs from top to bottom, and is kept without outputs."""

import json
import os
from pathlib import Path

import pytest
from tests.site.blocks import ROOT, write_program

NOTEBOOK = ROOT / "examples" / "first_five_minutes.ipynb"


def test_notebook_runs_and_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs pip install 'dmcodec[dev]'")
    nbformat = pytest.importorskip("nbformat", reason="needs pip install 'dmcodec[dev]'")
    pytest.importorskip("ipykernel", reason="needs pip install 'dmcodec[dev]'")
    (tmp_path / "here").mkdir()
    recording = "4077-13754-0000.flac"
    (tmp_path / "here" / recording).symlink_to(ROOT / "examples" / recording)
    write_program(tmp_path / "programs")
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "here")}}
    ).execute()  # raises where a cell does

    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "torch.Size([1, 8, 239])" in shown
    assert shown.count("<audio ") == 5
    assert shown.count("image/png") == 1
    assert "76480 samples at 16000 Hz" in shown


def test_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]

    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
