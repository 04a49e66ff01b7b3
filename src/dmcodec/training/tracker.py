"""Where the numbers of a run go: JSONL always, TensorBoard beside it.

Keys are `train/loss_mel`, `valid/stoi` and so on. Only the main process has a tracker.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from dmcodec.audio import Waveform


class Tracker:
    """Appends to `metrics.jsonl` and to TensorBoard event files in the run's folder."""

    def __init__(self, folder: Path, sample_rate: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._jsonl = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._sample_rate = sample_rate

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line {"step": ..., key: value, ...} and one TensorBoard point for each key."""
        self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
        self._jsonl.flush()
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def clip(self, step: int, name: str, waveform: Waveform, log_mel: np.ndarray) -> None:
        """Writes a waveform [T] and its log-mel spectrogram [M, L] to TensorBoard."""
        self._writer.add_audio(name, waveform[None], step, sample_rate=self._sample_rate)
        low, high = float(log_mel.min()), float(log_mel.max())
        image = (log_mel[::-1] - low) / max(high - low, 1e-6)
        self._writer.add_image(f"{name}/log_mel", image[None].copy(), step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._jsonl.close()
        self._writer.close()
