"""The codec: SEANet encoder, residual vector quantizer, a decoder, and how users call them.

Reference: Ahasan et al. 2024, arXiv:2410.15017. Discriminators, losses and teachers belong to
training and live elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import ceil, log2, prod
from numbers import Integral
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from dmcodec.audio import MAX_SAMPLE_RATE
from dmcodec.codec.conv import ceil_div, length_mask
from dmcodec.codec.fast import fast_codec
from dmcodec.codec.inputs import Audio, to_waveforms
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.precision import Precision, check_weights, computing_in
from dmcodec.codec.quantizer import QuantizerConfig, QuantizerOutput, ResidualQuantizer
from dmcodec.codec.seanet import MAX_WEIGHTS, Decoder, Encoder, SEANetConfig
from dmcodec.codec.spectral_decoder import SpectralConfig, SpectralDecoder
from dmcodec.config import Record
from dmcodec.numpy_search import check_search_width

Codes = Tensor | np.ndarray | Sequence[object]
"""[B, K, L] or [K, L] integers, as users have them."""

LONG_FRAMES = 3000
"""Longer audio (a minute for the paper's codec) goes through long.py: bounded memory."""


class WaveformError(ValueError):
    """The decoder gave samples that are no sound."""


class SEANetDecoderConfig(Record):
    """The paper's decoder, the encoder's mirror image: its sizes are those of `SEANetConfig`."""

    kind: Literal["seanet"] = "seanet"


class CodecConfig(Record):
    """Everything that defines a codec's network; the defaults are the paper's."""

    sample_rate: int = Field(16000, ge=1, le=MAX_SAMPLE_RATE, description="Hz")
    seanet: SEANetConfig = SEANetConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    decoder: Annotated[SEANetDecoderConfig | SpectralConfig, Field(discriminator="kind")] = (
        SEANetDecoderConfig()
    )
    feature_dim: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="width of the linear map to the teachers' space; None: no map",
    )

    @model_validator(mode="after")
    def _check_books(self) -> Self:
        sizes = (self.quantizer.num_codebooks, self.quantizer.codebook_size, self.seanet.latent_dim)
        if prod(sizes) > MAX_WEIGHTS:
            raise ValueError(f"the codebooks would have {prod(sizes):.1e} numbers; take fewer")
        return self

    @model_validator(mode="after")
    def _check_decoder(self) -> Self:
        if isinstance(self.decoder, SpectralConfig):
            if self.seanet.is_causal:
                raise ValueError(
                    "the spectral decoder looks ahead: a causal codec needs decoder.kind = seanet"
                )
            self.decoder.check_hop_length(self.hop_length)
        return self

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.seanet.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop_length

    @property
    def bitrate_kbps(self) -> float:
        """Nominal bitrate of all books."""
        bits = ceil(log2(self.quantizer.codebook_size))
        return self.frame_rate * self.quantizer.num_codebooks * bits / 1000


@dataclass(frozen=True, eq=False)
class Encoded:
    """The codes of a batch of waveforms.

    codes: [B, K, L] int64, zero beyond each item's frames.
    lengths: [B] int64, frames of each item.
    num_samples: [B] int64, samples of each item; lengths = ceil(num_samples / hop_length).
    first_codebook: the book whose codes are row 0.
    """

    codes: Tensor
    lengths: Tensor
    num_samples: Tensor
    first_codebook: int = 0

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or self.codes.numel() == 0:
            raise ValueError(f"codes must be [B, K, L], got shape {tuple(self.codes.shape)}")
        _check_lengths(self.lengths, len(self.codes), self.codes.shape[-1], "lengths")
        if self.num_samples.shape != self.lengths.shape:
            raise ValueError(f"num_samples must be [B], got shape {tuple(self.num_samples.shape)}")

    def __len__(self) -> int:
        """Number of waveforms, B."""
        return len(self.lengths)

    def item(self, index: int) -> Tensor:
        """The codes of one waveform without padding, [K, L_i]."""
        return self.codes[index, :, : int(self.lengths[index])]

    def select_codebooks(self, first: int, stop: int) -> Self:
        """The same waveforms with books first..stop-1 only (numbered from 0)."""
        start = first - self.first_codebook
        end = stop - self.first_codebook
        if not 0 <= start < end <= self.codes.shape[1]:
            last = self.first_codebook + self.codes.shape[1] - 1
            raise ValueError(
                f"cannot select books {first} to {stop - 1}: books {self.first_codebook} to {last}"
                " are there"
            )
        return replace(self, codes=self.codes[:, start:end], first_codebook=first)


@dataclass(frozen=True, eq=False)
class CodecOutput:
    """What a training pass gives: the decoded waveform [B, 1, T] and the quantizer's output.

    `quantizer` is None where the codes were given: encoder and books then did not run.
    """

    waveform: Tensor
    quantizer: QuantizerOutput | None


class Codec(nn.Module):
    """Speech waveforms to codes and back.

    `encode` and `decode` are for users: they take what users have and track no gradients.
    Where torch's own `encoder.compile(...)` and `decoder.compile(...)` were called, they run what
    these made, on a GPU; on the CPU fast.py is faster.
    `forward` is for training. Weights are plain tensors; training adds weight normalization
    (conv.py) and removes it before export.

    Attributes:
        precision: in which `encode` and `decode` compute, see precision.py; a choice of whoever
            runs the codec, saved with no model.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.seanet)
        self.quantizer = ResidualQuantizer(config.quantizer, config.seanet.latent_dim)
        self.decoder: Decoder | SpectralDecoder
        if isinstance(config.decoder, SpectralConfig):
            self.decoder = SpectralDecoder(
                config.decoder,
                latent_dim=config.seanet.latent_dim,
                hop_length=config.hop_length,
            )
        else:
            self.decoder = Decoder(config.seanet)
        self.feature_map = (
            nn.Linear(config.seanet.latent_dim, config.feature_dim) if config.feature_dim else None
        )
        self.model_id = "untitled"
        self.precision: Precision = "float32"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quantizer.codebooks.device

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        *,
        codes: Tensor | None = None,
        update: bool = False,
    ) -> CodecOutput:
        """Encodes, quantizes and decodes [B, 1, T] with gradients; the result is [B, 1, T].

        Args:
            waveform: at the codec's sample rate, zero beyond each item's samples.
            num_samples: [B] samples of each item; None when every item fills T.
            codes: [B, K, L] of these waveforms, zero beyond each item's frames: only the decoder
                runs. None: encoder and books give them.
            update: move the codebooks (training steps only).
        """
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise ValueError(f"waveform must be [B, 1, T], got shape {tuple(waveform.shape)}")
        if num_samples is not None:
            _check_lengths(num_samples, len(waveform), waveform.shape[-1], "num_samples")
            is_full = bool((num_samples == waveform.shape[-1]).all())  # free when on the CPU
            num_samples = None if is_full else num_samples.to(waveform.device)
        lengths = None if num_samples is None else ceil_div(num_samples, self.config.hop_length)
        if codes is None:
            output = self.quantizer(self.encoder(waveform, num_samples), lengths, update=update)
            quantized = output.quantized
        else:
            output, quantized = None, self.quantizer.decode(codes)
        decoded = self.decoder(quantized, lengths)[..., : waveform.shape[-1]]
        if num_samples is not None:
            decoded = _zero_beyond(decoded, num_samples)
        return CodecOutput(decoded, output)

    @torch.no_grad()
    def encode(
        self,
        audio: Audio | Sequence[Audio],
        *,
        num_codebooks: int | None = None,
        search_width: int = 1,
        sample_rate: float | None = None,
    ) -> Encoded:
        """Codes of one or several waveforms; each gets the codes that it gets alone.

        Args:
            audio: a path to a sound file of any rate and channel count, its bytes or the open file,
                a numpy array or tensor [T], [B, T] or [B, 1, T], or a list of any of these, which
                may differ in length.
            num_codebooks: the first n books only; None for all.
            search_width: choices that are followed from book to book. 1: the nearest entry of each
                book, as the paper has it. More, such as 16, sound better at the same bitrate and
                take longer; the codes are then the best for these books together (search.py).
            sample_rate: Hz of arrays and tensors; None when it is the codec's. Files know theirs.

        Raises ValueError for input that is empty, not finite, far beyond full scale (integers that
        were not divided) or wrongly shaped and for weights that are not float32, FileNotFoundError
        and `dmcodec.audio.AudioError` for files.
        """
        check_weights(self)
        _check_number("num_codebooks", num_codebooks)
        check_search_width(search_width)
        waveforms = [
            w.to(self.device) for w in to_waveforms(audio, sample_rate, self.config.sample_rate)
        ]
        longest = LONG_FRAMES * self.config.hop_length
        together = iter(
            self._encode_together(
                [w for w in waveforms if len(w) <= longest], num_codebooks, search_width
            )
        )
        codes = [
            next(together)
            if len(w) <= longest
            else encode_long(self, [w], num_codebooks=num_codebooks, search_width=search_width)[0]
            for w in waveforms
        ]
        num_samples = torch.tensor([len(w) for w in waveforms], device=self.device)
        return Encoded(
            _stack_padded(codes), ceil_div(num_samples, self.config.hop_length), num_samples
        )

    @torch.no_grad()
    def decode(
        self,
        codes: Encoded | Codes,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        num_codebooks: int | None = None,
        first_codebook: int = 0,
    ) -> Tensor:
        """Waveforms [B, T] float32 at the codec's sample rate, zero beyond each item's samples.

        Args:
            codes: the record of `encode` (gives exactly its num_samples), or codes [B, K, L] or
                [K, L] as a tensor, an array or nested lists (gives lengths * hop_length samples).
            lengths: [B] frames of each item when codes are a tensor; None when all are L.
            num_codebooks: decode the first n of the given books only.
            first_codebook: for a tensor, the book whose codes are row 0.
        """
        check_weights(self)
        _check_number("num_codebooks", num_codebooks)
        _check_number("first_codebook", first_codebook)
        if isinstance(codes, Encoded):
            if lengths is not None or first_codebook:
                raise ValueError("lengths and first_codebook are in the record already")
            encoded = codes
        else:
            encoded = self._as_encoded(codes, lengths, first_codebook)
        first = encoded.first_codebook
        if num_codebooks is not None:
            encoded = encoded.select_codebooks(first, first + num_codebooks)
        hop_length = self.config.hop_length
        num_samples, frames = encoded.num_samples.to(self.device), encoded.lengths.to(self.device)
        if not torch.equal(ceil_div(num_samples, hop_length), frames):
            raise ValueError(
                f"lengths and num_samples do not belong together at {hop_length} samples per"
                " frame: are these the codes of another codec?"
            )
        items = [encoded.item(i).to(self.device) for i in range(len(encoded))]
        together = iter(
            self._decode_together([c for c in items if c.shape[1] <= LONG_FRAMES], first)
        )
        waveforms = [
            next(together)
            if c.shape[1] <= LONG_FRAMES
            else torch.cat(list(decode_long(self, c, size, first_codebook=first)))
            for c, size in zip(items, num_samples.tolist(), strict=True)
        ]
        decoded = _stack_padded([w[:size] for w, size in zip(waveforms, num_samples, strict=True)])
        if not bool(torch.isfinite(decoded).all()):
            raise WaveformError("decoding gave NaN or infinite samples: the weights are damaged")
        return decoded

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path, *, revision: str | None = None) -> Self:
        """A codec from a local folder or a Hugging Face Hub id, in evaluation mode on the CPU."""
        from dmcodec.codec.checkpoint import load_pretrained

        return load_pretrained(cls, folder_or_id, revision=revision)

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype = torch.float32, card: str | None = None
    ) -> None:
        """Writes config.json, model.safetensors and README.md (the card) into a folder."""
        from dmcodec.codec.checkpoint import save_pretrained

        save_pretrained(self, Path(folder), dtype=dtype, card=card)

    def push_to_hub(self, repo_id: str, *, private: bool = False, card: str | None = None) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face Hub; gives the address."""
        from dmcodec.codec.checkpoint import push_to_hub

        return push_to_hub(self, repo_id, private=private, card=card)

    @torch.no_grad()
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with whatever changes codes or sound, and with no more.

        Those are the weights of the plain form (see `remove_weight_norm`) and the settings that
        their shapes do not show. How the books are learned, and the feature map, are left out.
        """
        seanet = self.config.seanet
        settings: list[object] = [self.config.sample_rate, seanet.strides, seanet.dilation_base]
        settings += [seanet.activation] + ["causal"] * seanet.is_causal
        if isinstance(self.decoder, SpectralDecoder):
            settings += ["spectral", self.decoder.upsampling]
        digest = blake2b(repr(settings).encode(), digest_size=8)
        for name, weight in sorted(self.state_dict().items()):
            if name.startswith(("encoder.", "decoder.")) or name == "quantizer.codebooks":
                digest.update(f"{name}{list(weight.shape)}".encode())
                digest.update(weight.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _encode_together(
        self, waveforms: list[Tensor], num_codebooks: int | None, search_width: int
    ) -> list[Tensor]:
        """Codes [K, L_i] of waveforms [T_i], computed as one batch."""
        if not waveforms:
            return []
        fast = fast_codec(self)
        if fast is not None:
            latents = fast.encoder(waveforms)  # [D, L_i] each
            joined = torch.cat(latents, dim=1)[None]
            codes = self.quantizer.encode(joined, num_codebooks, search_width=search_width)[0]
            return list(torch.split(codes, [x.shape[1] for x in latents], dim=1))
        sizes = torch.tensor([len(w) for w in waveforms], device=self.device)
        is_mixed = bool((sizes != sizes[0]).any())
        with computing_in(self.precision, self.device):
            latents = self.encoder(
                _stack_padded(waveforms)[:, None], sizes if is_mixed else None
            )  # [B, D, L]
        codes = self.quantizer.encode(latents, num_codebooks, search_width=search_width)
        frames = ceil_div(sizes, self.config.hop_length).tolist()
        return [row[:, :length] for row, length in zip(codes, frames, strict=True)]

    def _decode_together(self, codes: list[Tensor], first_codebook: int) -> list[Tensor]:
        """Waveforms [L_i * hop_length, or more] of codes [K, L_i], computed as one batch."""
        if not codes:
            return []
        fast = fast_codec(self)
        if fast is not None:
            return fast.decoder([self.quantizer.decode(c[None], first_codebook)[0] for c in codes])
        frames = torch.tensor([c.shape[1] for c in codes], device=self.device)
        is_mixed = bool((frames != frames[0]).any())
        quantized = self.quantizer.decode(_stack_padded(codes), first_codebook)
        with computing_in(self.precision, self.device):
            waveforms = self.decoder(quantized, frames if is_mixed else None)
        return list(waveforms[:, 0].float())

    def _as_encoded(
        self, codes: Codes, lengths: Tensor | Sequence[int] | None, first_codebook: int
    ) -> Encoded:
        codes = _to_tensor(codes)
        codes = codes[None] if codes.ndim == 2 else codes
        if codes.ndim != 3:
            raise ValueError(f"codes must be [B, K, L] or [K, L], got shape {tuple(codes.shape)}")
        frames = torch.as_tensor([codes.shape[-1]] * len(codes) if lengths is None else lengths)
        return Encoded(codes, frames, frames * self.config.hop_length, first_codebook)


def _stack_padded(items: list[Tensor]) -> Tensor:
    """Items [..., L_i] as one tensor [B, ..., max L], zero beyond each item's end."""
    longest = max(item.shape[-1] for item in items)
    return torch.stack([F.pad(item, (0, longest - item.shape[-1])) for item in items])


def _to_tensor(codes: Codes) -> Tensor:
    """Codes as a tensor; integers only, whatever holds them."""
    if isinstance(codes, Tensor):
        return codes
    try:
        array = np.asarray(codes)
    except ValueError as error:
        raise ValueError("codes in lists must have one length: give lengths and padding") from error
    if array.dtype.kind not in "iu":
        raise ValueError(f"codes must be integers, got {type(codes).__name__} of {array.dtype}")
    return torch.from_numpy(array.astype(np.int64))


def _check_number(name: str, value: object) -> None:
    """Raises ValueError unless it is a whole number, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")


def _zero_beyond(waveform: Tensor, num_samples: Tensor) -> Tensor:
    """Zeroes the samples of [B, 1, T] at or beyond each item's number of samples [B]."""
    return waveform.masked_fill(~length_mask(num_samples, waveform.shape[-1])[:, None], 0.0)


def _check_lengths(lengths: Tensor, batch_size: int, size: int, name: str) -> None:
    """Raises ValueError unless there is one whole number in 1..size for each item."""
    is_fit = lengths.shape == (batch_size,) and not lengths.is_floating_point()
    if not is_fit or bool(((lengths < 1) | (lengths > size)).any()):
        raise ValueError(
            f"{name} must be {batch_size} whole numbers from 1 to {size}, got {lengths.tolist()}"
        )
