"""A codec that dmcodec export wrote, run by onnxruntime: numpy in, numpy out, no torch."""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from dmcodec.audio import MAX_SAMPLE_RATE, Waveform, check_samples, find_problem
from dmcodec.codec.search_limits import check_search_width
from dmcodec.config import parse_json
from dmcodec.export.numpy_search import BookSearch
from dmcodec.export.windows import encode_windows
from dmcodec.packages import import_package
from dmcodec.processes import check_count
from dmcodec.tokens.bitstream import make_header

WINDOW_FRAMES, CONTEXT_FRAMES = 3000, 500
"""Long sound is worked on a minute at a time with 10 s on either side (the paper's codec)."""

FORMAT = "dmcodec-onnx/1"
ENCODER_NAME, DECODER_NAME, CONFIG_NAME = "encoder.onnx", "decoder.onnx", "codec.json"
BOOKS_NAME = "codebooks.safetensors"  # of exports since search_width is there


def hash_part(data: bytes) -> str:
    """32 hexadecimal digits of a file of an export."""
    return blake2b(data, digest_size=16).hexdigest()


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
            self._read_config(parse_json((folder / CONFIG_NAME).read_bytes()))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"{folder / CONFIG_NAME} cannot be used: {error!r}") from error
        self._folder = folder
        self._search: BookSearch | None = None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = (
            check_count("num_threads", num_threads) or os.cpu_count() or 1
        )
        self._encoder, self._decoder = (
            self._open(onnxruntime, folder / name, options) for name in (ENCODER_NAME, DECODER_NAME)
        )
        self._try_out(folder)

    def _open(self, onnxruntime: Any, path: Path, options: Any) -> Any:
        """A network ready to run; ValueError for a file that is damaged, or of another export."""
        network = self._read_part(path)
        try:
            return onnxruntime.InferenceSession(
                network, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds have no base of their own
            raise ValueError(f"{path} cannot be loaded: {error}; export the codec again") from error

    def _read_part(self, path: Path) -> bytes:
        """A file of the export; ValueError unless it is the one that codec.json means."""
        data = path.read_bytes()
        # Exports of earlier versions do not say what their parts are.
        if self._hashes and self._hashes.get(path.name) != hash_part(data):
            raise ValueError(
                f"{path} cannot be loaded: it is damaged or not of the export that {CONFIG_NAME} "
                "beside it describes; export the codec again"
            )
        return data

    def _try_out(self, folder: Path) -> None:
        """Raises ValueError unless a frame of silence comes through as codec.json says."""
        try:
            codes = self.encode(np.zeros(self.hop_length, np.float32))
            found = (codes.shape, self.decode(codes).shape)
        except Exception as error:  # as above; the sound at hand is not to be blamed for it
            raise ValueError(f"{folder} does not work: {error}; export the codec again") from error
        due = ((self.num_codebooks, 1), (self.hop_length,))
        if found != due:
            raise ValueError(
                f"{folder}: {CONFIG_NAME} is of another codec than {ENCODER_NAME} and "
                f"{DECODER_NAME}: codes and sound of a frame are {found}, not {due}; export the "
                "codec again"
            )

    def _read_config(self, config: dict[str, Any]) -> None:
        if config.get("format") != FORMAT:
            raise ValueError(f"format {config.get('format')!r}, not {FORMAT!r}")
        self.sample_rate, self.hop_length = int(config["sample_rate"]), int(config["hop_length"])
        self.num_codebooks = int(config["num_codebooks"])
        self.codebook_size = int(config["codebook_size"])
        self.model_id, self.model_hash = str(config["model_id"]), str(config["model_hash"])
        self._hashes: dict[str, str] = dict(config.get("hashes", {}))
        make_header(self, 1, self.num_codebooks)  # refuses what no codec has
        if self.sample_rate > MAX_SAMPLE_RATE:
            raise ValueError(f"sample_rate is {self.sample_rate}; at most {MAX_SAMPLE_RATE}")

    def encode(
        self,
        waveform: NDArray[np.float32],
        *,
        num_codebooks: int | None = None,
        search_width: int = 1,
    ) -> NDArray[np.int64]:
        """Codes [K, L] of a waveform [T], or [B, K, L] of a batch [B, T] of equal lengths.

        `search_width` above 1 follows that many choices from book to book (codec/search.py).
        Raises ValueError for no samples, samples that are not float or not finite, books that are
        not there, and widths that are none.
        """
        waveform = check_samples(waveform)
        if waveform.ndim not in (1, 2) or waveform.size == 0:
            raise ValueError(f"a waveform must be [T] or [B, T], got shape {waveform.shape}")
        problem = find_problem(waveform)
        if problem is not None:
            raise ValueError(f"the waveform {problem}")
        if num_codebooks is not None and not 1 <= num_codebooks <= self.num_codebooks:
            raise ValueError(f"num_codebooks is {num_codebooks}; there are {self.num_codebooks}")
        batch = np.atleast_2d(waveform.astype(np.float32))[:, None]  # [B, 1, T]
        if check_search_width(search_width) > 1:
            search = self._open_search()
            (latents,) = self._encoder.run(["latents"], {"waveform": batch})  # [B, D, L]
            vectors = latents.transpose(0, 2, 1).reshape(-1, latents.shape[1])  # [B L, D]
            found = search(vectors, num_codebooks or self.num_codebooks, search_width)
            codes = found.reshape(len(batch), -1, found.shape[1]).transpose(0, 2, 1)
        else:
            (codes,) = self._encoder.run(["codes"], {"waveform": batch})
            codes = codes[:, :num_codebooks]
        return codes[0] if waveform.ndim == 1 else codes

    def decode(self, codes: NDArray[Any], num_samples: int | None = None) -> NDArray[np.float32]:
        """The waveform [num_samples] of codes [K, L], or [B, num_samples] of [B, K, L].

        K may be smaller than the codec's: the first books. `num_samples` None means all.
        """
        codes = np.asarray(codes)
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

    def encode_parts(
        self,
        parts: Iterable[NDArray[np.float32]],
        *,
        num_codebooks: int | None = None,
        search_width: int = 1,
    ) -> tuple[NDArray[np.int64], int]:
        """Codes [K, L] of a waveform that comes in parts [T_i], and its number of samples.

        Memory does not grow with the length. The network sees windows with context, so codes are
        those of the whole but for what its LSTM remembers from further away (docs/results.md).
        Raises ValueError for no samples, and as `encode` does.
        """
        num_samples = 0

        def counted() -> Iterator[Waveform]:
            nonlocal num_samples
            for part in map(check_samples, parts):
                num_samples += len(part)
                yield part

        windows = encode_windows(
            partial(self.encode, num_codebooks=num_codebooks, search_width=search_width),
            counted(),
            hop_length=self.hop_length,
            window_frames=WINDOW_FRAMES,
            context_frames=CONTEXT_FRAMES,
        )
        return np.concatenate(list(windows), axis=1), num_samples

    def decode_parts(self, codes: NDArray[Any], num_samples: int) -> Iterator[NDArray[np.float32]]:
        """The waveform of codes [K, L] in blocks [T_i] that add up to `num_samples`.

        In windows, as `encode_parts`.
        """
        for start in range(0, codes.shape[1], WINDOW_FRAMES):
            first, stop = max(0, start - CONTEXT_FRAMES), start + WINDOW_FRAMES
            decoded = self.decode(codes[:, first : stop + CONTEXT_FRAMES])
            begin = (start - first) * self.hop_length
            end = min(stop * self.hop_length, num_samples) - first * self.hop_length
            yield decoded[begin:end]

    def _open_search(self) -> BookSearch:
        """The search in the exported books, kept with its tables."""
        if self._search is None:
            path = self._folder / BOOKS_NAME
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing, so there is no search: export the codec again, or use "
                    "search width 1"
                )
            try:
                codebooks = load(self._read_part(path))["codebooks"]
            except (SafetensorError, KeyError) as error:
                raise ValueError(
                    f"{path} cannot be loaded: {error}; export the codec again"
                ) from error
            if codebooks.shape[:2] != (self.num_codebooks, self.codebook_size):
                raise ValueError(f"{path} is of another codec: its shape is {codebooks.shape}")
            self._search = BookSearch(codebooks)
        return self._search
