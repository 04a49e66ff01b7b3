"""Whether an exported codec gives what torch gives. benchmarks/onnx_speed.py says how fast."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dmcodec.audio import Waveform, read_audio
from dmcodec.codec.model import Codec
from dmcodec.export.onnx_codec import OnnxCodec


class Agreement(NamedTuple):
    """How well an export and torch agree.

    Attributes:
        num_codes: that were compared.
        num_equal: of these.
        largest_difference: of a sample, of the sound that both make of the same codes.
    """

    num_codes: int
    num_equal: int
    largest_difference: float


def compare_export(codec: Codec, folder: Path, speech: Sequence[Path] = ()) -> Agreement:
    """Encodes and decodes with a codec and with its export.

    Args:
        codec: what was exported.
        folder: of `export_onnx`.
        speech: sound files; none means tones in noise, which say less about codes.
    """
    rate = codec.config.sample_rate
    exported = OnnxCodec(folder, num_threads=torch.get_num_threads())
    num_codes = num_equal = 0
    largest = 0.0
    for waveform in [read_audio(path, sample_rate=rate) for path in speech] or [_tones(rate)]:
        encoded = codec.encode(waveform)
        expected = encoded.codes[0].cpu().numpy()  # [K, L]
        num_codes += expected.size
        num_equal += int((exported.encode(waveform) == expected).sum())
        sound = codec.decode(encoded)[0].cpu().numpy()  # [T]
        decoded = exported.decode(expected, len(waveform))
        largest = max(largest, float(np.abs(decoded - sound).max()))
    return Agreement(num_codes, num_equal, largest)


def _tones(sample_rate: int) -> Waveform:
    """Five seconds of gliding tones in noise, float32."""
    time_s = np.arange(5 * sample_rate) / sample_rate
    tones = sum(np.sin(2 * np.pi * f * (time_s + 0.1 * time_s**2)) / f for f in (120, 240, 600))
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    return (10 * tones + 0.01 * noise).astype(np.float32)
