"""Two processes that work together give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmcodec.training.checkpoint import list_checkpoints, load_checkpoint
from dmcodec.training.loop import train
from dmcodec.training.state import new_state
from dmcodec.training.validation import validate

# The STFT distance divides norms over a process's own part of the batch, so it is left out: a mean
# of ratios is not the ratio of means. An odd number of clips gives the processes unequal shares.
ASSIGNMENTS = (
    "num_steps=6",
    "losses.stft_weight=0",
    "adversary.start_step=2",
    "validation.every_steps=6",
    "validation.max_clips=3",
    "checkpoint_every_steps=6",
    "log_every_steps=2",
)

_WORKER = """
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from safetensors.torch import save_file
from dmcodec.training import interruption, loop
from dmcodec.training.experiment import Experiment
from dmcodec.training.state import unwrapped

torch.set_num_threads(1)
states, step = [], loop.train_step

def keep_state(state, *arguments):
    states.append(state)
    return step(state, *arguments)

loop.train_step = keep_state
experiment = Experiment.model_validate_json(Path(sys.argv[1]).read_text())
rank, options = os.environ["RANK"], json.loads(sys.argv[3])
if "stop_after_s" in options:  # the main process's clock ticks with each step, the other's stands
    interruption.time = SimpleNamespace(monotonic=lambda: 0 if rank == "1" else len(states))
scores = loop.train(experiment, Path(sys.argv[2]), **options).scores
tensors = {k: v.clone() for k, v in unwrapped(states[-1].codec).state_dict().items()}
save_file(tensors, f"{sys.argv[2]}/rank_{rank}.safetensors")
Path(f"{sys.argv[2]}/rank_{rank}.json").write_text(json.dumps(scores))
"""


def run_two_processes(folder: Path, **options: object) -> Path:
    """Trains experiment.json of a folder with two processes; gives the folder of the run."""
    (folder / "worker.py").write_text(_WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = [folder / "worker.py", folder / "experiment.json", folder / "run", json.dumps(options)]
    result = subprocess.run(
        [*launcher, "--nproc_per_node", "2", *worker],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def two_processes(tiny, tmp_path_factory) -> Path:
    """The folder of a run by two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "experiment.json").write_text(tiny(*ASSIGNMENTS).model_dump_json())
    return run_two_processes(folder)


@pytest.fixture(scope="module")
def one_process(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    train(tiny(*ASSIGNMENTS), folder, device="cpu")
    return folder


def last_checkpoint(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[-1]


def test_processes_agree_bit_for_bit(two_processes):
    first, second = (load_file(two_processes / f"rank_{rank}.safetensors") for rank in (0, 1))

    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("name", ["codec", "average", "discriminators"])
def test_two_processes_learn_what_one_learns(two_processes, one_process, name):
    together = load_file(last_checkpoint(two_processes) / f"{name}.safetensors")
    alone = load_file(last_checkpoint(one_process) / f"{name}.safetensors")

    # Sums over two halves round differently, and six steps of Adam carry that on.
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=2e-5)


def test_two_processes_log_what_one_logs(two_processes, one_process):
    together, alone = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (two_processes, one_process)
    )

    assert [line.keys() for line in together] == [line.keys() for line in alone]
    for line, expected in zip(together, alone, strict=True):
        for name, value in line.items():
            if not name.endswith("_per_s"):
                assert value == pytest.approx(expected[name], rel=2e-3, abs=1e-4), name


def test_scores_of_two_processes_are_those_of_one(tiny, two_processes, accelerator):
    scores = [json.loads((two_processes / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    experiment = tiny(*ASSIGNMENTS)
    state = new_state(experiment)
    load_checkpoint(state, experiment, last_checkpoint(two_processes))

    alone = validate(state, experiment, accelerator, None)

    assert scores[0] == scores[1] == alone


def test_two_processes_stop_at_the_same_step_and_go_on(tiny, two_processes, tmp_path):
    (tmp_path / "experiment.json").write_text(tiny(*ASSIGNMENTS).model_dump_json())

    folder = run_two_processes(tmp_path, stop_after_s=3)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step_00000003"]
    run_two_processes(tmp_path, resume=True)

    for rank in (0, 1):
        found, expected = (
            load_file(each / f"rank_{rank}.safetensors") for each in (folder, two_processes)
        )
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
