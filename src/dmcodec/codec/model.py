"""The codec as users call it: whatever holds speech to codes, and codes to waveforms.

The network is in network.py.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dmcodec.codec.batches import BUSY_FRAMES, in_batches, stack_padded
from dmcodec.codec.card import Card, card_text, sample_file
from dmcodec.codec.checkpoint import (
    CARD_NAME,
    load_bundled,
    load_pretrained,
    save_pretrained,
    upload_folder,
)
from dmcodec.codec.conv import ceil_div
from dmcodec.codec.fast import Inference
from dmcodec.codec.inputs import Audio, to_waveforms
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.network import CodecConfig as CodecConfig  # with `Codec` and `Encoded` for users
from dmcodec.codec.network import CodecNetwork, check_lengths
from dmcodec.codec.precision import check_weights, computing_in
from dmcodec.codec.search_limits import check_search_width

Codes = Tensor | np.ndarray | Sequence[object]
"""[B, K, L] or [K, L] integers, as users have them."""

LONG_FRAMES = 3000
"""Longer audio (a minute for the paper's codec) goes through long.py: `Codec.is_long`."""


class WaveformError(ValueError):
    """The decoder gave samples that are no sound."""


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
        check_lengths(self.lengths, len(self.codes), self.codes.shape[-1], "lengths")
        if self.num_samples.shape != self.lengths.shape:
            raise ValueError(f"num_samples must be [B], got shape {tuple(self.num_samples.shape)}")

    def __len__(self) -> int:
        """Number of waveforms, B."""
        return len(self.lengths)

    def as_transformers(self) -> dict[str, Tensor]:
        """The codes as the codecs of Hugging Face's transformers name and lay them out.

        `audio_codes` [B, K, L] is what Mimi's and DAC's `encode` give (EnCodec's have an axis of
        chunks before: `audio_codes[None]`), `padding_mask` [B, L] is 1 in each item's frames.
        """
        places = torch.arange(self.codes.shape[-1], device=self.codes.device)
        mask = places < self.lengths.to(self.codes.device)[:, None]  # [B, L]
        return {"audio_codes": self.codes, "padding_mask": mask.long()}

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


class Codec(CodecNetwork):
    """Speech waveforms to codes and back.

    `encode` and `decode` are for users: they take what users have and track no gradients.
    Where torch's own `encoder.compile(...)` and `decoder.compile(...)` were called, they run what
    these made, on a GPU; on the CPU fast.py is faster.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(config)
        self._inference = Inference()

    def train(self, mode: bool = True) -> Self:
        """As every module's; drops the weights that `encode` and `decode` have laid out."""
        self._inference = Inference()
        return super().train(mode)

    def is_long(self, num_samples: int) -> bool:
        """Whether a waveform of so many samples is worked on in pieces, for bounded memory."""
        return num_samples > LONG_FRAMES * self.config.hop_length

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
        short = [w for w in waveforms if not self.is_long(len(w))]
        together = iter(self._encode_together(short, num_codebooks, search_width))
        codes = [
            encode_long(self, [w], num_codebooks=num_codebooks, search_width=search_width)[0]
            if self.is_long(len(w))
            else next(together)
            for w in waveforms
        ]
        num_samples = torch.tensor([len(w) for w in waveforms], device=self.device)
        return Encoded(
            stack_padded(codes), ceil_div(num_samples, self.config.hop_length), num_samples
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
        sizes = num_samples.tolist()
        short = [c for c, size in zip(items, sizes, strict=True) if not self.is_long(size)]
        together = iter(self._decode_together(short, first))
        waveforms = [
            torch.cat(list(decode_long(self, c, size, first_codebook=first)))
            if self.is_long(size)
            else next(together)
            for c, size in zip(items, sizes, strict=True)
        ]
        decoded = stack_padded([w[:size] for w, size in zip(waveforms, num_samples, strict=True)])
        if not bool(torch.isfinite(decoded).all()):
            raise WaveformError("decoding gave NaN or infinite samples: the weights are damaged")
        return decoded

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path, *, revision: str | None = None) -> Self:
        """A codec from a local folder or a Hugging Face Hub id, in evaluation mode on the CPU."""
        return load_pretrained(cls, folder_or_id, revision=revision)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        card: str | Card | None = None,
        max_file_bytes: int | None = None,
    ) -> None:
        """Writes config.json, model.safetensors and README.md (the card) into a folder.

        Args:
            folder: made if missing; files of the same names are replaced.
            dtype: of floating-point weights on disk; float16 halves the size.
            card: the text, or what the text is to hold, with samples to hear; None leaves an
                existing card, or writes a short one.
            max_file_bytes: of a file of weights: more of them lie in shards (tensor_files.py).

        Raises ValueError for a dtype that is not floating, and for weights that do not fit it.
        """
        name = Path(folder).resolve().name
        self._save(Path(folder), dtype, card, name, "", max_file_bytes=max_file_bytes)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, card: str | Card | None = None
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face Hub; gives the address."""
        from huggingface_hub import hf_hub_url

        # The Hub shows a card at another address than that of the files beside it.
        beside = hf_hub_url(repo_id, CARD_NAME).removesuffix(CARD_NAME)
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), torch.float32, card, repo_id, beside)
            return upload_folder(repo_id, Path(folder), private=private)

    def _save(
        self,
        folder: Path,
        dtype: torch.dtype,
        card: str | Card | None,
        name: str,
        address: str,
        *,
        max_file_bytes: int | None = None,
    ) -> None:
        """The folder, under the name that `from_pretrained` will be given."""
        sounds = {}
        if isinstance(card, Card):
            for sample, audio in card.samples.items():
                original = to_waveforms(audio, None, self.config.sample_rate)[0]
                sounds[sample_file(sample, None)] = original.cpu()
                encoded = self.encode(original)
                for books in card.books_heard(self):
                    decoded = self.decode(encoded, num_codebooks=books)
                    sounds[sample_file(sample, books)] = decoded[0].cpu()
        if isinstance(card, Card) or (card is None and not (folder / CARD_NAME).exists()):
            card = card_text(self, card, name, address)
        save_pretrained(
            self, folder, dtype=dtype, card=card, sounds=sounds, max_file_bytes=max_file_bytes
        )

    def _encode_together(
        self, waveforms: list[Tensor], num_codebooks: int | None, search_width: int
    ) -> list[Tensor]:
        """Codes [K, L_i] of waveforms [T_i], computed as one batch."""
        if not waveforms:
            return []
        encoder = self._inference.encoder(self)
        if encoder is not None:
            latents = encoder(waveforms)  # [D, L_i] each
            joined = torch.cat(latents, dim=1)[None]
            codes = self.quantizer.encode(joined, num_codebooks, search_width=search_width)[0]
            return list(torch.split(codes, [x.shape[1] for x in latents], dim=1))
        return in_batches(
            lambda batch: self._encode_padded(batch, num_codebooks, search_width),
            waveforms,
            BUSY_FRAMES * self.config.hop_length,
        )

    def _encode_padded(
        self, waveforms: list[Tensor], num_codebooks: int | None, search_width: int
    ) -> list[Tensor]:
        """Codes [K, L_i] of waveforms [T_i] in one padded batch of the plain network."""
        sizes = torch.tensor([len(w) for w in waveforms], device=self.device)
        is_mixed = len({len(w) for w in waveforms}) > 1
        with computing_in(self.precision, self.device):
            latents = self.encoder(
                stack_padded(waveforms)[:, None], sizes if is_mixed else None
            )  # [B, D, L]
        codes = self.quantizer.encode(latents, num_codebooks, search_width=search_width)
        frames = [ceil_div(len(w), self.config.hop_length) for w in waveforms]
        return [row[:, :length] for row, length in zip(codes, frames, strict=True)]

    def _decode_together(self, codes: list[Tensor], first_codebook: int) -> list[Tensor]:
        """Waveforms [L_i * hop_length, or more] of codes [K, L_i], computed as one batch."""
        if not codes:
            return []
        decoder = self._inference.decoder(self)
        if decoder is not None:
            return decoder([self.quantizer.decode(c[None], first_codebook)[0] for c in codes])
        return in_batches(
            lambda batch: self._decode_padded(batch, first_codebook), codes, BUSY_FRAMES
        )

    def _decode_padded(self, codes: list[Tensor], first_codebook: int) -> list[Tensor]:
        """Waveforms [max L_i * hop_length] of codes [K, L_i] in one padded batch."""
        frames = torch.tensor([c.shape[1] for c in codes], device=self.device)
        is_mixed = len({c.shape[1] for c in codes}) > 1
        quantized = self.quantizer.decode(stack_padded(codes), first_codebook)
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


def load(folder_or_id: str | Path | None = None) -> Codec:
    """The bundled model, or the codec in a folder or on the Hub; in evaluation mode on the CPU."""
    return load_bundled(Codec) if folder_or_id is None else load_pretrained(Codec, folder_or_id)


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
