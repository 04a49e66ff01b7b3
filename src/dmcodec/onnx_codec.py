"""A codec that dmcodec export wrote, run by onnxruntime: numpy in, numpy out, no torch."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmcodec.audio import check_samples, overlapping_parts
from dmcodec.packages import import_package
from dmcodec.tokens.bitstream import Header

WINDOW_FRAMES, CONTEXT_FRAMES = 3000, 500
"""Long sound is worked on a minute at a time with 10 s on either side (the paper's codec)."""

FORMAT = "dmcodec-onnx/1"
ENCODER_NAME, DECODER_NAME, CONFIG_NAME = "encoder.onnx", "decoder.onnx", "codec.json"


class OnnxCodec:
    """Waveforms to codes and back with exported networks.

    Attributes: sample_rate (Hz), hop_length, num_codebooks, codebook_size, model_id, model_hash.
    """

    def __init__(self, folder: Path, *, num_threads: int | None = None) -> None:
        """Opens a folder of `dmcodec export`; `num_threads` None means one for each processor.

        Raises FileNotFoundError for a missing file, ValueError for another format,
        ModuleNotFoundError without onnxruntime.
        """
        onnxruntime = import_package("onnxruntime", "an exported codec")
        for name in (CONFIG_NAME, ENCODER_NAME, DECODER_NAME):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is no exported codec: {name} is missing")
        try:
            self._read_config(json.loads((folder / CONFIG_NAME).read_text("utf-8")))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_NAME} cannot be used: {error!r}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or os.cpu_count() or 1
        self._encoder, self._decoder = (
            self._open(onnxruntime, folder / name, options) for name in (ENCODER_NAME, DECODER_NAME)
        )

    @staticmethod
    def _open(onnxruntime: Any, path: Path, options: Any) -> Any:
        """A network ready to run; ValueError for a damaged file."""
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds have no base of their own
            raise ValueError(f"{path} cannot be loaded: {error}; export the codec again") from error

    def _read_config(self, config: dict[str, Any]) -> None:
        if config.get("format") != FORMAT:
            raise ValueError(f"format {config.get('format')!r}, not {FORMAT!r}")
        self.sample_rate, self.hop_length = int(config["sample_rate"]), int(config["hop_length"])
        self.num_codebooks = int(config["num_codebooks"])
        self.codebook_size = int(config["codebook_size"])
        self.model_id, self.model_hash = str(config["model_id"]), str(config["model_hash"])

    def encode(
        self, waveform: NDArray[np.float32], *, num_codebooks: int | None = None
    ) -> NDArray[np.int64]:
        """Codes [K, L] of a waveform [T], or [B, K, L] of a batch [B, T] of equal lengths.

        Raises ValueError for no samples, samples that are not float or not finite, and books that
        are not there.
        """
        if waveform.ndim not in (1, 2) or waveform.size == 0:
            raise ValueError(f"a waveform must be [T] or [B, T], got shape {waveform.shape}")
        check_samples(waveform)
        if not np.isfinite(waveform).all():
            raise ValueError("the waveform holds NaN or infinite samples")
        if num_codebooks is not None and not 1 <= num_codebooks <= self.num_codebooks:
            raise ValueError(f"num_codebooks is {num_codebooks}; there are {self.num_codebooks}")
        batch = np.atleast_2d(waveform.astype(np.float32))[:, None]  # [B, 1, T]
        codes: NDArray[np.int64] = self._encoder.run(None, {"waveform": batch})[0]
        codes = codes[:, :num_codebooks]
        return codes[0] if waveform.ndim == 1 else codes

    def decode(self, codes: NDArray[Any], num_samples: int | None = None) -> NDArray[np.float32]:
        """The waveform [num_samples] of codes [K, L], or [B, num_samples] of [B, K, L].

        K may be smaller than the codec's: the first books. `num_samples` None means all.
        """
        if codes.ndim not in (2, 3) or not 1 <= codes.shape[-2] <= self.num_codebooks:
            raise ValueError(f"codes must be [K, L] or [B, K, L], got shape {codes.shape}")
        if codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be integers, got {codes.dtype}")
        if codes.size == 0 or codes.min() < 0 or codes.max() >= self.codebook_size:
            raise ValueError(f"codes must lie in 0..{self.codebook_size - 1}")
        batch = codes[None] if codes.ndim == 2 else codes  # [B, K, L]
        # A book that is not used has code -1, which the exported network takes as nothing.
        missing = self.num_codebooks - batch.shape[1]
        batch = np.pad(batch.astype(np.int64), ((0, 0), (0, missing), (0, 0)), constant_values=-1)
        waveform: NDArray[np.float32] = self._decoder.run(None, {"codes": batch})[0][:, 0]
        waveform = waveform[:, :num_samples]
        return waveform[0] if codes.ndim == 2 else waveform

    def encode_long(
        self, blocks: Iterable[NDArray[np.float32]], *, num_codebooks: int | None = None
    ) -> tuple[NDArray[np.int64], int]:
        """Codes [K, L] of a waveform that comes in blocks [T_i], and its number of samples.

        Memory does not grow with the length. The network sees windows with context, so codes are
        those of the whole but for what its LSTM remembers from further away (docs/results.md).
        Raises ValueError for no samples, and as `encode` does.
        """
        found: list[NDArray[np.int64]] = []
        total_samples = 0
        parts = overlapping_parts(
            blocks, WINDOW_FRAMES * self.hop_length, CONTEXT_FRAMES * self.hop_length
        )
        for part, before, num_samples in parts:
            codes = self.encode(part, num_codebooks=num_codebooks)
            first, num_frames = before // self.hop_length, -(-num_samples // self.hop_length)
            found.append(codes[:, first : first + num_frames])
            total_samples += num_samples
        if not found:
            raise ValueError("audio is empty; give at least one sample")
        return np.concatenate(found, axis=1), total_samples

    def decode_long(self, codes: NDArray[Any], num_samples: int) -> Iterator[NDArray[np.float32]]:
        """The waveform of codes [K, L] in blocks [T_i] that add up to `num_samples`.

        In windows, as `encode_long`.
        """
        for start in range(0, codes.shape[1], WINDOW_FRAMES):
            first, stop = max(0, start - CONTEXT_FRAMES), start + WINDOW_FRAMES
            decoded = self.decode(codes[:, first : stop + CONTEXT_FRAMES])
            begin = (start - first) * self.hop_length
            end = min(stop * self.hop_length, num_samples) - first * self.hop_length
            yield decoded[begin:end]

    def header(self, num_samples: int, num_codebooks: int) -> Header:
        """The header of a .dmc file of this codec's codes."""
        return Header(
            sample_rate=self.sample_rate,
            hop_length=self.hop_length,
            num_codebooks=num_codebooks,
            codebook_size=self.codebook_size,
            num_samples=num_samples,
            model_id=self.model_id,
            model_hash=self.model_hash,
        )
