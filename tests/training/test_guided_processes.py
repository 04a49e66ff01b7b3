"""Two processes that are guided together learn what one learns."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_guidance import corpus, make_experiment

from dmcodec.training.loop import train

_WORKER = """
import sys
from pathlib import Path
import torch
from dmcodec.training.experiment import Experiment
from dmcodec.training.loop import train

torch.set_num_threads(1)
experiment = Experiment.model_validate_json(Path(sys.argv[1]).read_text())
train(experiment, Path(sys.argv[2]), device="cpu")
"""

__all__ = ["corpus"]


@pytest.mark.slow
def test_two_guided_processes_learn_what_one_learns(corpus, tmp_path):
    experiment = make_experiment(corpus, checkpoint_every_steps=4)
    (tmp_path / "worker.py").write_text(_WORKER)
    (tmp_path / "experiment.json").write_text(experiment.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = [tmp_path / "worker.py", tmp_path / "experiment.json", tmp_path / "two"]

    result = subprocess.run(
        [*launcher, "--nproc_per_node", "2", *worker], capture_output=True, text=True, check=False
    )
    train(experiment, tmp_path / "one", device="cpu")

    assert result.returncode == 0, result.stderr
    for name in ("codec", "heads"):
        file = Path("checkpoints") / "step_00000004" / f"{name}.safetensors"
        together, alone = load_file(tmp_path / "two" / file), load_file(tmp_path / "one" / file)
        # Sums over two halves round differently, and four steps of Adam carry that on.
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=1e-3, atol=2e-5, msg=key)
