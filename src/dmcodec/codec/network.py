"""The codec's network: SEANet encoder, residual vector quantizer and a decoder.

Reference: Ahasan et al. 2024, arXiv:2410.15017. How users call it is in model.py; discriminators,
losses and teachers belong to training and live elsewhere.
"""

from dataclasses import dataclass
from hashlib import blake2b
from math import ceil, log2, prod
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dmcodec.audio import MAX_SAMPLE_RATE
from dmcodec.codec.conv import ceil_div, length_mask
from dmcodec.codec.precision import Precision
from dmcodec.codec.quantizer import QuantizerConfig, QuantizerOutput, ResidualQuantizer
from dmcodec.codec.seanet import MAX_WEIGHTS, Decoder, Encoder, SEANetConfig
from dmcodec.codec.spectral_decoder import SpectralConfig, SpectralDecoder
from dmcodec.config import Record


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
class CodecOutput:
    """What a training pass gives: the decoded waveform [B, 1, T] and the quantizer's output.

    `quantizer` is None where the codes were given: encoder and books then did not run.
    """

    waveform: Tensor
    quantizer: QuantizerOutput | None


class CodecNetwork(nn.Module):
    """Waveform to latents, codes, quantized latents and waveform.

    `forward` is for training. Weights are plain tensors; training adds weight normalization
    (conv.py) and removes it before export.

    Attributes:
        model_id: name for people, saved with no model.
        precision: in which whoever runs the codec wants it to compute, see precision.py; saved with
            no model. `forward` does not look at it.
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
    def num_parameters(self) -> int:
        """Weights, and the numbers in the codebooks."""
        learned = sum(each.numel() for each in self.parameters())
        return learned + self.quantizer.codebooks.numel()

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
        num_books: Tensor | None = None,
        update: bool = False,
    ) -> CodecOutput:
        """Encodes, quantizes and decodes [B, 1, T] with gradients; the result is [B, 1, T].

        Args:
            waveform: at the codec's sample rate, zero beyond each item's samples.
            num_samples: [B] samples of each item; None when every item fills T.
            codes: [B, K, L] of these waveforms, zero beyond each item's frames: only the decoder
                runs. None: encoder and books give them.
            num_books: [B] from how many books each item is decoded, 1 to K; None: from all.
            update: move the codebooks (training steps only).
        """
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise ValueError(f"waveform must be [B, 1, T], got shape {tuple(waveform.shape)}")
        if num_books is not None:
            books = self.config.quantizer.num_codebooks
            check_lengths(num_books, len(waveform), books, "num_books")
            num_books = num_books.to(waveform.device)
        if num_samples is not None:
            check_lengths(num_samples, len(waveform), waveform.shape[-1], "num_samples")
            is_full = bool((num_samples == waveform.shape[-1]).all())  # free when on the CPU
            num_samples = None if is_full else num_samples.to(waveform.device)
        lengths = None if num_samples is None else ceil_div(num_samples, self.config.hop_length)
        if codes is None:
            latents = self.encoder(waveform, num_samples)
            output = self.quantizer(latents, lengths, num_books=num_books, update=update)
            quantized = output.quantized
        else:
            output, quantized = None, self.quantizer.decode(codes, num_books=num_books)
        decoded = self.decoder(quantized, lengths)[..., : waveform.shape[-1]]
        if num_samples is not None:
            decoded = _zero_beyond(decoded, num_samples)
        return CodecOutput(decoded, output)

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


def _zero_beyond(waveform: Tensor, num_samples: Tensor) -> Tensor:
    """Zeroes the samples of [B, 1, T] at or beyond each item's number of samples [B]."""
    return waveform.masked_fill(~length_mask(num_samples, waveform.shape[-1])[:, None], 0.0)


def check_lengths(lengths: Tensor, batch_size: int, size: int, name: str) -> None:
    """Raises ValueError unless there is one whole number in 1..size for each item."""
    is_fit = lengths.shape == (batch_size,) and not lengths.is_floating_point()
    if not is_fit or bool(((lengths < 1) | (lengths > size)).any()):
        raise ValueError(
            f"{name} must be {batch_size} whole numbers from 1 to {size}, got {lengths.tolist()}"
        )
