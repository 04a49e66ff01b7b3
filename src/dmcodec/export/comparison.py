"""What an exported codec is worth beside torch: equal codes, what is heard, speed."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dmcodec.audio import read_audio
from dmcodec.codec.model import Codec
from dmcodec.export.onnx_codec import OnnxCodec
from dmcodec.metrics.pair import STOI_AND_PESQ, score_pair


def measure_export(
    codec: Codec, folder: Path, speech: Sequence[Path], seconds: Sequence[float]
) -> Iterator[str]:
    """Lines of a report: equal codes and waveform error on each file, speed at each length.

    Args:
        codec: what was exported. Timed on as many threads as torch has, in turn with the export.
        folder: of `export_onnx`.
        speech: sound files; none means tones in noise, which say less about codes.
        seconds: durations to time; the sound is repeated to fill them.
    """
    rate = codec.config.sample_rate
    exported = OnnxCodec(folder, num_threads=torch.get_num_threads())
    waveforms = [read_audio(path, sample_rate=rate) for path in speech] or [_tones(rate)]
    num_equal = num_codes = 0
    worst = 0.0
    scores: list[list[float]] = []
    for waveform in waveforms:
        encoded = codec.encode(waveform)
        expected, codes = encoded.codes[0].numpy(), exported.encode(waveform)
        num_equal += int((codes == expected).sum())
        num_codes += expected.size
        sound = codec.decode(encoded)[0].numpy()
        decoded = exported.decode(expected, len(waveform))
        worst = max(worst, float(np.abs(decoded - sound).max()))
        if speech:
            both = (sound, exported.decode(codes, len(waveform)))
            found = [score_pair(waveform, each, rate).values for each in both]
            scores.append([each.get(name, np.nan) for name in STOI_AND_PESQ for each in found])
    yield f"equal codes: {num_equal} of {num_codes} ({num_equal / num_codes:.3%})"
    yield f"greatest waveform difference for equal codes: {worst:.1e}"
    if scores:
        means = [float(value) for value in np.nanmean(scores, axis=0)]
        yield (
            f"both ways, torch and exported, {len(scores)} files: STOI {means[0]:.4f} and "
            f"{means[1]:.4f}, PESQ-WB {means[2]:.3f} and {means[3]:.3f}"
        )
    for duration_s in seconds:
        waveform = np.resize(np.concatenate(waveforms), max(1, round(duration_s * rate)))
        encoded = codec.encode(waveform)
        codes = encoded.codes[0].numpy()
        torch_s, onnx_s = _interleaved(
            lambda w=waveform: codec.encode(w),  # type: ignore[misc]
            lambda w=waveform: exported.encode(w),  # type: ignore[misc]
        )
        torch_back_s, onnx_back_s = _interleaved(
            lambda e=encoded: codec.decode(e),  # type: ignore[misc]
            lambda c=codes: exported.decode(c),  # type: ignore[misc]
        )
        yield (
            f"{duration_s:g} s on {torch.get_num_threads()} threads: encode torch "
            f"{duration_s / torch_s:.1f}x, onnx {duration_s / onnx_s:.1f}x real time (ratio "
            f"{torch_s / onnx_s:.2f}); decode {duration_s / torch_back_s:.1f}x, "
            f"{duration_s / onnx_back_s:.1f}x (ratio {torch_back_s / onnx_back_s:.2f})"
        )


def _interleaved(*functions: Callable[[], object], repeats: int = 3) -> list[float]:
    """The shortest time of each in seconds, run in turn so that other load meets all alike.

    With one thread it is that thread's CPU time, which other load hardly changes; else wall time.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for number, function in enumerate(functions):
            started = clock()
            function()
            best[number] = min(best[number], clock() - started)
    return best


def _tones(sample_rate: int) -> np.ndarray:
    """Five seconds of gliding tones in noise, float32."""
    time_s = np.arange(5 * sample_rate) / sample_rate
    tones = sum(np.sin(2 * np.pi * f * (time_s + 0.1 * time_s**2)) / f for f in (120, 240, 600))
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    return (10 * tones + 0.01 * noise).astype(np.float32)
