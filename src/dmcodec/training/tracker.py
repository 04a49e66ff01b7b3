"""Where the numbers of a run go: JSONL always, TensorBoard beside it.

Only the main process has a tracker. Keys, each with a value at some steps:

    train/loss_<term>  train/loss_total  train/loss_discriminator      unweighted but the total
    train/gradient_norm  train/learning_rate  train/steps_per_s  train/audio_s_per_s
    train/data_wait_s_per_s                                            near 0: data come in time
    train/usage_<book>  train/perplexity_<book>                        books from 1
    valid/mel_distance  valid/stoi  valid/pesq_wb
    valid/loss_distill_text  valid/loss_distill_speech                 with such teachers
"""

import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from dmcodec.audio import Waveform
from dmcodec.config import parse_json
from dmcodec.storage import write_whole

logger = logging.getLogger(__name__)


class Tracker:
    """Appends to `metrics.jsonl` and to TensorBoard event files in the run's folder.

    Args:
        folder: of the run.
        sample_rate: of the clips, Hz.
        first_step: steps done already; what was logged beyond them is lost work and is dropped.
    """

    def __init__(self, folder: Path, sample_rate: int, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _drop_lines_beyond(self._path, first_step)
        self._jsonl = self._path.open("a", encoding="utf-8")
        self._tensorboard = folder / "tensorboard"
        threading.excepthook = _print_unless_of_tensorboard
        with _errors_named(self._tensorboard):
            self._writer = SummaryWriter(str(self._tensorboard), purge_step=first_step + 1)
        self._sample_rate = sample_rate

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line {"step": ..., key: value, ...} and one TensorBoard point for each key.

        JSON has no NaN or infinity: they become null.
        """
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with _errors_named(self._path):
            self._jsonl.write(json.dumps({"step": step, **line}) + "\n")
            self._jsonl.flush()
        with _errors_named(self._tensorboard):
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)

    def clip(
        self, step: int, name: str, waveform: Waveform, log_mel: npt.NDArray[np.float32]
    ) -> None:
        """Writes a waveform [T] and its log-mel spectrogram [M, L] to TensorBoard."""
        sound = np.clip(waveform, -1, 1)[None]
        low, high = float(log_mel.min()), float(log_mel.max())
        image = (log_mel[::-1] - low) / max(high - low, 1e-6)
        with _errors_named(self._tensorboard):
            self._writer.add_audio(name, sound, step, sample_rate=self._sample_rate)
            self._writer.add_image(f"{name}/log_mel", image[None].copy(), step)

    def close(self) -> None:
        """Flushes and closes the files."""
        with _errors_named(self._path):
            self._jsonl.close()
        with _errors_named(self._tensorboard):
            self._writer.close()


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Makes a full disk an error that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _print_unless_of_tensorboard(arguments: threading.ExceptHookArgs) -> None:
    """What ends a thread, printed; not of TensorBoard's writer, which raises it at a later call."""
    if type(arguments.thread).__module__.split(".")[0] != "tensorboard":
        threading.__excepthook__(arguments)


def _drop_lines_beyond(path: Path, last_step: int) -> None:
    """Keeps the lines of steps up to `last_step`; a line that a kill cut short goes too."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= last_step]
    if len(kept) == len(lines):
        return
    logger.info("%s: dropped %d lines beyond step %d", path, len(lines) - len(kept), last_step)
    write_whole(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return int(parse_json(line)["step"])
    except (ValueError, LookupError, TypeError, OverflowError):
        return math.inf
