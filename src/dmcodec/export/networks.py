"""Codecs to ONNX: one file from waveform to codes, one back, with any batch and any length.

The files run in onnx_codec.py, or wherever ONNX runs; comparison.py says whether they give what
torch gives.
"""

import copy
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dmcodec.codec.checkpoint import check_values
from dmcodec.codec.engine import TorchCodec
from dmcodec.codec.model import Codec
from dmcodec.codec.precision import check_weights
from dmcodec.export.onnx_codec import (
    BOOKS_NAME,
    CONFIG_NAME,
    DECODER_NAME,
    ENCODER_NAME,
    FORMAT,
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

    Raises ModuleNotFoundError without onnx, WeightsError for weights that are not finite.
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
