"""DistillMOS: how good speech sounds, by a network that has no reference, 1 to 5.

The network and its weights are those of the package distillmos; here are its import, which must do
without torchaudio, and its windows, which are made for recordings of several lengths at once.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from math import ceil
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcodec.audio import Waveform
from dmcodec.metrics.measure import Group, Measure, Original, Outcomes
from dmcodec.packages import import_package

WINDOW_SAMPLES = 122_880
"""What the network takes, 7.68 s at 16 kHz: shorter recordings are continued with silence."""
_MAX_HOP_SAMPLES = 16_000
_MAX_WINDOWS_AT_ONCE = 4  # 0.3 GB each


@torch.inference_mode()
def distillmos(waveforms: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """The opinion score [B], 1 (bad) to 5 (excellent), of waveforms [B, T] at 16 kHz.

    A recording longer than 7.68 s is scored in windows that move by at most a second, and gets
    their mean, which takes up to 8 times as long: cut recordings where that matters. The level of
    a recording changes nothing. Silence gets a score that means nothing.

    Args:
        waveforms: on any device; the network is loaded there once.
        lengths: samples of each recording; all T without. What is beyond them changes nothing.

    Reference: Stahl and Gamper 2025, arXiv:2502.05356. Windows as in the package distillmos.
    """
    if waveforms.ndim != 2 or not waveforms.shape[1]:
        raise ValueError(f"DistillMOS: waveforms must be [B, T], got {tuple(waveforms.shape)}")
    lengths = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths
    if len(lengths) != len(waveforms) or not all(0 < n <= waveforms.shape[1] for n in lengths):
        raise ValueError(
            f"DistillMOS: {len(waveforms)} waveforms of up to {waveforms.shape[1]} samples cannot "
            f"have the lengths {list(lengths)}"
        )
    windows, counts = [], []
    for waveform, length in zip(waveforms.float(), lengths, strict=True):
        starts = _window_starts(length)
        counts.append(len(starts))
        windows += [waveform[start : min(length, start + WINDOW_SAMPLES)] for start in starts]
    network = _network(str(waveforms.device))
    parts = []
    for first in range(0, len(windows), _MAX_WINDOWS_AT_ONCE):
        some = windows[first : first + _MAX_WINDOWS_AT_ONCE]
        batch = torch.stack([F.pad(w, (0, WINDOW_SAMPLES - len(w))) for w in some])
        parts.append(network(batch))
    scores = torch.cat(parts)  # [windows of all recordings]
    return torch.stack([part.mean() for part in torch.split(scores, counts)])


def _window_starts(num_samples: int) -> list[int]:
    """First samples of the windows: spread evenly from the start to the end."""
    beyond = max(0, num_samples - WINDOW_SAMPLES)
    num_windows = ceil(beyond / _MAX_HOP_SAMPLES) + 1
    return [int(place * beyond) for place in np.linspace(0, 1, num_windows)]


@lru_cache(maxsize=2)
def _network(device: str) -> nn.Module:
    """The package's network, from windows [N, 122880] to scores [N]."""
    package = import_distillmos()
    # It draws random weights before it reads its own, and prints where it found those.
    with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):
        network = package.ConvTransformerSQAModel(segmenting_in_forward=False)
    return cast(nn.Module, network.to(device).eval().requires_grad_(False))


def import_distillmos() -> Any:
    """The package distillmos."""
    with _without_torchaudio():
        return import_package("distillmos", "DistillMOS")


@contextmanager
def _without_torchaudio() -> Iterator[None]:
    """Inside, `import torchaudio` gives an empty module; afterwards everything is as before.

    distillmos imports torchaudio for its command line alone, and a torchaudio that does not fit the
    torch at hand fails with any error, or takes the program with it.
    """
    before = sys.modules.get("torchaudio")
    if before is None:
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        yield
    finally:
        if before is None:
            del sys.modules["torchaudio"]


def _compute(original: Original, estimate: Waveform) -> Outcomes:
    waveform = torch.from_numpy(estimate)[None].to(original.config.device)
    return {"distillmos": distillmos(waveform).item()}


DISTILLMOS = Group(
    "distillmos",
    (
        Measure(
            "distillmos", "DistillMOS", "higher", 2, "DistillMOS, no reference",
            is_main=True, silent_score=1.0,
        ),
    ),
    _compute,
    modules=("distillmos", "xls_r_sqa"),
    distributions=("distillmos", "xls-r-sqa"),
    uses_original=False,
    is_slow=True,
)  # fmt: skip
