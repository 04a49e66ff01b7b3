"""The codec: SEANet encoder, residual vector quantizer, SEANet decoder, and how users call them.

Reference: Ahasan et al. 2024, arXiv:2410.15017. Discriminators, losses and teachers belong to
training and live elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import ceil, log2
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dmcodec.codec.quantizer import QuantizerConfig, QuantizerOutput, ResidualQuantizer
from dmcodec.codec.seanet import Decoder, Encoder, SEANetConfig
from dmcodec.config import Record

Audio = str | Path | np.ndarray | Tensor


class CodecConfig(Record):
    """Everything that defines a codec's network; the defaults are the paper's."""

    sample_rate: int = Field(16000, ge=1, description="Hz")
    seanet: SEANetConfig = SEANetConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    feature_dim: int | None = Field(
        None, ge=1, description="width of the linear map to the teachers' space; None: no map"
    )

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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class CodecOutput:
    """What a training pass gives: the decoded waveform [B, 1, T] and the quantizer's output."""

    waveform: Tensor
    quantizer: QuantizerOutput


class Codec(nn.Module):
    """Speech waveforms to codes and back.

    `encode` and `decode` are for users: they take what users have and track no gradients.
    `forward` is for training. Weights are plain tensors; training adds weight normalization
    (conv.py) and removes it before export.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.seanet)
        self.quantizer = ResidualQuantizer(config.quantizer, config.seanet.latent_dim)
        self.decoder = Decoder(config.seanet)
        self.feature_map = (
            nn.Linear(config.seanet.latent_dim, config.feature_dim) if config.feature_dim else None
        )
        self.model_id = "untitled"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quantizer.codebooks.device

    def forward(
        self, waveform: Tensor, num_samples: Tensor | None = None, *, update: bool = False
    ) -> CodecOutput:
        """Encodes, quantizes and decodes [B, 1, T] with gradients; the result is [B, 1, T].

        Args:
            waveform: at the codec's sample rate, zero beyond each item's samples.
            num_samples: [B] samples of each item; None when every item fills T.
            update: move the codebooks (training steps only).
        """
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise ValueError(f"waveform must be [B, 1, T], got shape {tuple(waveform.shape)}")
        if num_samples is not None:
            is_full = bool((num_samples >= waveform.shape[-1]).all())  # free when on the CPU
            num_samples = None if is_full else num_samples.to(waveform.device)
        lengths = None if num_samples is None else self._frames(num_samples)
        latents = self.encoder(waveform, num_samples)
        quantized = self.quantizer(latents, lengths, update=update)
        decoded = self.decoder(quantized.quantized, lengths)[..., : waveform.shape[-1]]
        if num_samples is not None:
            decoded = _zero_beyond(decoded, num_samples)
        return CodecOutput(decoded, quantized)

    @torch.no_grad()
    def encode(
        self,
        audio: Audio | Sequence[Audio],
        *,
        num_codebooks: int | None = None,
        sample_rate: int | None = None,
    ) -> Encoded:
        """Codes of one or several waveforms; each gets the codes that it gets alone.

        Args:
            audio: a path to a sound file of any rate and channel count, a numpy array or tensor
                [T], [B, T] or [B, 1, T], or a list of any of these, which may differ in length.
            num_codebooks: the first n books only; None for all.
            sample_rate: Hz of arrays and tensors; None when it is the codec's. Files know theirs.

        Raises ValueError for empty, non-finite or wrongly shaped input, FileNotFoundError and
        `dmcodec.audio.AudioError` for files.
        """
        waveforms = self._waveforms(audio, sample_rate)
        num_samples = torch.tensor([len(w) for w in waveforms], device=self.device)
        batch = nn.utils.rnn.pad_sequence(waveforms, batch_first=True).to(self.device)[:, None]
        is_mixed = bool((num_samples != num_samples[0]).any())
        latents = self.encoder(batch, num_samples if is_mixed else None)
        codes = self.quantizer.encode(latents, num_codebooks)
        lengths = self._frames(num_samples)
        if is_mixed:
            beyond = torch.arange(codes.shape[-1], device=self.device) >= lengths[:, None]
            codes = codes.masked_fill(beyond[:, None], 0)
        return Encoded(codes, lengths, num_samples)

    @torch.no_grad()
    def decode(
        self,
        codes: Encoded | Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        num_codebooks: int | None = None,
        first_codebook: int = 0,
    ) -> Tensor:
        """Waveforms [B, T] float32 at the codec's sample rate, zero beyond each item's samples.

        Args:
            codes: the record of `encode` (gives exactly its num_samples), or codes [B, K, L] or
                [K, L] (gives lengths * hop_length samples).
            lengths: [B] frames of each item when codes are a tensor; None when all are L.
            num_codebooks: decode the first n of the given books only.
            first_codebook: for a tensor, the book whose codes are row 0.
        """
        if isinstance(codes, Encoded):
            if lengths is not None or first_codebook:
                raise ValueError("lengths and first_codebook are in the record already")
            encoded = codes
        else:
            encoded = self._as_encoded(codes, lengths, first_codebook)
        if num_codebooks is not None:
            first = encoded.first_codebook
            encoded = encoded.select_codebooks(first, first + num_codebooks)
        frames = encoded.lengths.to(self.device)
        quantized = self.quantizer.decode(encoded.codes.to(self.device), encoded.first_codebook)
        is_mixed = bool((frames != quantized.shape[-1]).any())
        waveform = self.decoder(quantized, frames if is_mixed else None)
        num_samples = encoded.num_samples.to(self.device)
        return _zero_beyond(waveform[:, 0, : int(num_samples.max())], num_samples)

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
        """16 hexadecimal digits that change with any weight that changes codes or sound."""
        digest = blake2b(self.config.model_dump_json().encode(), digest_size=8)
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        for part, module in parts.items():
            for name, weight in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name}".encode())
                digest.update(weight.detach().float().cpu().numpy().tobytes())
        digest.update(self.quantizer.codebooks.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _frames(self, num_samples: Tensor) -> Tensor:
        hop_length = self.config.hop_length
        return (num_samples + hop_length - 1) // hop_length

    def _as_encoded(
        self, codes: Tensor, lengths: Tensor | Sequence[int] | None, first_codebook: int
    ) -> Encoded:
        codes = codes[None] if codes.ndim == 2 else codes
        if codes.ndim != 3:
            raise ValueError(f"codes must be [B, K, L] or [K, L], got {tuple(codes.shape)}")
        frames = torch.as_tensor([codes.shape[-1]] * len(codes) if lengths is None else lengths)
        if frames.shape != codes.shape[:1] or bool((frames < 1).any()):
            raise ValueError(f"lengths must be {len(codes)} positive numbers of frames")
        if int(frames.max()) > codes.shape[-1]:
            raise ValueError(f"lengths exceed the {codes.shape[-1]} frames of the codes")
        return Encoded(
            codes[..., : int(frames.max())], frames, frames * self.config.hop_length, first_codebook
        )

    def _waveforms(self, audio: Audio | Sequence[Audio], sample_rate: int | None) -> list[Tensor]:
        """All waveforms in `audio` as float32 tensors [T] at the codec's sample rate."""
        if isinstance(audio, str | Path):
            from dmcodec.audio import read_audio

            samples = read_audio(Path(audio), sample_rate=self.config.sample_rate)
            return [torch.from_numpy(samples)]
        if isinstance(audio, np.ndarray | Tensor):
            waveforms = list(_rows(audio))
            if sample_rate not in (None, self.config.sample_rate):
                from dmcodec.audio import resample

                waveforms = [
                    torch.from_numpy(
                        resample(w.cpu().numpy(), sample_rate, self.config.sample_rate)
                    )
                    for w in waveforms
                ]
            return waveforms
        if not isinstance(audio, Sequence) or not audio:
            raise ValueError(
                "audio must be a path, a numpy array, a tensor or a non-empty list of these, "
                f"got {type(audio).__name__}"
            )
        return [w for one in audio for w in self._waveforms(one, sample_rate)]


def _rows(audio: np.ndarray | Tensor) -> Tensor:
    """[T], [B, T] or [B, 1, T] of float samples -> float32 [B, T]."""
    waveform = torch.as_tensor(audio)
    if not waveform.is_floating_point():
        raise ValueError(
            f"audio has dtype {waveform.dtype}; give float samples in [-1, 1]"
            " (16-bit samples divided by 32768)"
        )
    if waveform.ndim == 3 and waveform.shape[1] == 1:
        waveform = waveform[:, 0]
    elif waveform.ndim == 1:
        waveform = waveform[None]
    if waveform.ndim != 2:
        raise ValueError(
            f"audio must be [T], [B, T] or [B, 1, T] (mono), got shape {tuple(waveform.shape)}"
        )
    if waveform.numel() == 0:
        raise ValueError("audio is empty; give at least one sample")
    waveform = waveform.detach().float()
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError("audio holds NaN or infinite samples")
    return waveform


def _zero_beyond(waveform: Tensor, num_samples: Tensor) -> Tensor:
    """Zeroes the samples of [B, ..., T] at or beyond each item's number of samples [B]."""
    if bool((num_samples >= waveform.shape[-1]).all()):
        return waveform
    beyond = torch.arange(waveform.shape[-1], device=waveform.device) >= num_samples[:, None]
    shape = (len(num_samples),) + (1,) * (waveform.ndim - 2) + (waveform.shape[-1],)
    return waveform.masked_fill(beyond.reshape(shape), 0.0)
