"""The example that adds codes to a dataset of Hugging Face, as one runs it."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.scripts import load_script

from dmcodec import Codec, write_audio

datasets = pytest.importorskip("datasets", reason="pip install 'dmcodec[data]'")
EXAMPLE = Path(__file__).parents[2] / "examples" / "datasets_map.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_script("examples/datasets_map.py")


def test_a_folder_and_what_was_saved_of_it_get_the_codes_of_each_recording(
    example, model, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    waveforms = [rng.uniform(-0.5, 0.5, size).astype(np.float32) for size in (4000, 900, 6400)]
    (tmp_path / "sound").mkdir()
    for number, waveform in enumerate(waveforms):
        write_audio(tmp_path / "sound" / f"{number}.wav", waveform)

    def run(source: str, output: str, batch_size: int) -> list[list[list[int]]]:
        options = ["-o", str(tmp_path / output), "--model", str(model)]
        options += ["--batch-size", str(batch_size)]
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / source), *options])
        example.main()
        rows = datasets.load_from_disk(str(tmp_path / output))
        assert rows["id"][:] == ["0", "1", "2"]
        return rows["codes"][:]

    together, alone = run("sound", "coded", 3), run("coded", "again", 1)

    codec = Codec.from_pretrained(model)
    files = [tmp_path / "sound" / f"{number}.wav" for number in range(3)]
    expected = [codec.encode(file).codes[0].tolist() for file in files]
    assert together == expected
    assert alone == expected
