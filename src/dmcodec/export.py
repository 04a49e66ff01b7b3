"""Codecs to ONNX: one file from waveform to codes, one back, with any batch and any length.

The files run in onnx_codec.py, or wherever ONNX runs. What they are worth against torch is
measured here too.
"""

import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dmcodec.audio import read_audio
from dmcodec.codec.checkpoint import check_values
from dmcodec.codec.engine import TorchCodec
from dmcodec.codec.model import Codec
from dmcodec.codec.precision import check_weights
from dmcodec.onnx_codec import (
    BOOKS_NAME,
    CONFIG_NAME,
    DECODER_NAME,
    ENCODER_NAME,
    FORMAT,
    OnnxCodec,
    hash_part,
)
from dmcodec.packages import import_package
from dmcodec.storage import replace_together, write_whole
from dmcodec.tokens.bitstream import make_header

_OPSET = 17


class _WaveformToCodes(nn.Module):
    """[B, 1, T] -> codes [B, K, L] int64, L = ceil(T / hop_length), and latents [B, D, L]."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes with all books, greedily; numpy_search.py makes other codes of the latents."""
        latents = self.codec.encoder(waveform)
        return self.codec.quantizer.encode(latents), latents


class _CodesToWaveform(nn.Module):
    """[B, K, L] int64 -> [B, 1, L * hop_length]; a code of -1 adds nothing."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        # The entry before the first is zero: code -1.
        self.books = F.pad(codec.quantizer.codebooks, (0, 0, 1, 0))  # [K, V + 1, D]
        self.decoder = codec.decoder

    def forward(self, codes: Tensor) -> Tensor:
        """Sums the code vectors and decodes."""
        total = F.embedding(codes[:, 0] + 1, self.books[0])  # [B, L, D]
        for book in range(1, len(self.books)):
            total = total + F.embedding(codes[:, book] + 1, self.books[book])
        decoded: Tensor = self.decoder(total.transpose(1, 2))
        return decoded


def export_onnx(codec: Codec, folder: Path, *, use_int8: bool = False) -> None:
    """Writes encoder.onnx, decoder.onnx, codebooks.safetensors and codec.json.

    The last names the others by their hashes.

    Args:
        codec: in evaluation mode, with plain weights.
        folder: made if missing; files of these names are replaced when all are complete.
        use_int8: LSTM weights in 8 bits; smaller and faster, but some codes differ.

    Raises ModuleNotFoundError without onnx, CheckpointError for weights that are not finite.
    """
    import_package("onnx", "export")
    check_weights(codec)
    check_values(codec.state_dict(), codec.state_dict(), f"codec {codec.model_id!r}")
    config = codec.config
    header = make_header(TorchCodec(codec), 1, config.quantizer.num_codebooks)
    codec = copy.deepcopy(codec).cpu().eval()
    waveform = torch.zeros(2, 1, 10 * config.hop_length + 1)
    codes = torch.zeros(2, config.quantizer.num_codebooks, 10, dtype=torch.int64)
    found = ["codes", "latents"]
    with replace_together(folder) as aside:
        _export(_WaveformToCodes(codec), waveform, aside / ENCODER_NAME, "waveform", found)
        _export(_CodesToWaveform(codec), codes, aside / DECODER_NAME, "codes", ["waveform"])
        save_file({"codebooks": codec.quantizer.codebooks.float()}, aside / BOOKS_NAME)
        if use_int8:
            _quantize(aside / ENCODER_NAME)
            _quantize(aside / DECODER_NAME)
        table = {
            "format": FORMAT,
            **{name: value for name, value in vars(header).items() if name != "num_samples"},
            "lstm_weights": "int8" if use_int8 else "float32",
            "hashes": {
                name: hash_part((aside / name).read_bytes())
                for name in (ENCODER_NAME, DECODER_NAME, BOOKS_NAME)
            },
        }
        write_whole(aside / CONFIG_NAME, json.dumps(table, indent=2) + "\n")


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
            scores.append(_score(waveform, sound, exported.decode(codes, len(waveform)), rate))
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


def _export(network: nn.Module, example: Tensor, path: Path, given: str, made: list[str]) -> None:
    axes = {name: {0: "batch", 2: name} for name in (given, *made)}
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter by tracing is deprecated, but the other one fixes the LSTM's length; and
        # what tracing warns of (sizes read in Python) is seen to in conv.py.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=[given],
            output_names=made,
            dynamic_axes=axes,
        )


def _quantize(path: Path) -> None:
    """LSTM weights of an ONNX file in 8 bits, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, path, op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8)


def _score(
    original: np.ndarray, of_torch: np.ndarray, of_export: np.ndarray, sample_rate: int
) -> list[float]:
    """STOI of both, PESQ-WB of both; NaN where there is none."""
    from dmcodec.metrics.intelligibility import stoi
    from dmcodec.metrics.measure import Unmeasurable
    from dmcodec.metrics.opinion import pesq_wb

    values = []
    for measure in (stoi, pesq_wb):
        for decoded in (of_torch, of_export):
            try:
                values.append(measure(original, decoded, sample_rate))
            except Unmeasurable:
                values.append(float("nan"))
    return values


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
