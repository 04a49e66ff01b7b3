import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dmcodec.audio import write_audio
from dmcodec.config import load_config
from dmcodec.corpus.manifest import read_manifests
from dmcodec.data.dataset import SegmentDataset
from dmcodec.data.loader import SegmentBatch, make_train_loader
from dmcodec.training.experiment import Experiment
from dmcodec.training.loop import train
from dmcodec.training.state import TrainingState, new_state

CONFIGS = Path(__file__).parents[2] / "configs"

MakeExperiment = Callable[..., Experiment]


def make_speech(pitch_hz: float, num_samples: int, seed: int) -> np.ndarray:
    """Syllables of a harmonic tone with formants, and noise: enough like speech to be measured."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(num_samples) / 16_000
    glide = 1 + 0.1 * np.sin(2 * np.pi * 0.7 * time_s + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch_hz * glide) / 16_000
    waveform = np.zeros(num_samples)
    for harmonic in range(1, int(6_000 / pitch_hz)):
        formants = np.exp(-(((harmonic * pitch_hz - 700) / 500) ** 2)) + 0.3 / harmonic
        waveform += formants * np.sin(harmonic * phase + rng.uniform(0, 6))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_s + rng.uniform(0, 6)), 0, 1)
    waveform *= syllables * 0.2 / np.abs(waveform).max()
    return (waveform + 0.002 * rng.standard_normal(num_samples)).astype(np.float32)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (four speakers) and valid.jsonl (two others)."""
    folder = tmp_path_factory.mktemp("speech")
    for split, pitches in (("train", (95, 120, 180, 220)), ("valid", (110, 200))):
        entries = []
        for pitch_hz in pitches:
            for take in range(2):
                name = f"{split}-{pitch_hz}-{take}"
                waveform = make_speech(pitch_hz, 16_000 + 1_000 * take, seed=pitch_hz + take)
                write_audio(folder / f"{name}.flac", waveform)
                entries.append({"id": name, "audio": f"{name}.flac", "speaker": str(pitch_hz)})
        lines = [json.dumps(entry) + "\n" for entry in entries]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def tiny(speech: Path) -> MakeExperiment:
    """configs/tiny.toml on that speech, with assignments as `--set` takes them."""

    def make(*assignments: str, name: str = "tiny") -> Experiment:
        data = [
            f'data.train_manifests=["{speech / "train.jsonl"}"]',
            f'data.valid_manifest="{speech / "valid.jsonl"}"',
        ]
        return load_config(CONFIGS / f"{name}.toml", Experiment, [*data, *assignments])

    return make


@pytest.fixture(scope="session")
def finished_run(tiny: MakeExperiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of tiny.toml; look, do not touch."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(), folder, device="cpu")
    return folder


@pytest.fixture(scope="session")
def fresh_state() -> Callable[..., TrainingState]:
    """The state of a run that begins."""

    def make(experiment: Experiment, seed: int = 1) -> TrainingState:
        torch.manual_seed(seed)  # noqa: TID251 (as train does)
        return new_state(experiment)

    return make


@pytest.fixture
def make_batches() -> Callable[[Experiment, int], list[SegmentBatch]]:
    """The batches of the first steps of an experiment."""

    def make(experiment: Experiment, num_steps: int) -> list[SegmentBatch]:
        utterances = read_manifests(experiment.data.train_manifests)
        dataset = SegmentDataset(utterances, experiment.data, seed=experiment.seed)
        batch_size = experiment.batch_size
        return list(make_train_loader(dataset, global_batch_size=batch_size, end_step=num_steps))

    return make


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """A single process on the CPU in full precision, whatever ran before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
