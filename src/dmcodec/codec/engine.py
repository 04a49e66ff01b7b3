"""A codec in torch as those who read and write `.dmc` files take it: numpy in, numpy out."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmcodec.audio import Waveform
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec, Encoded


class TorchCodec:
    """A codec as `dmcodec.files.Engine`.

    Attributes: sample_rate (Hz), hop_length, codebook_size, model_id, and model_hash, the
    fingerprint, which reads all weights: one of these serves many files.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec, self.model_id = codec, codec.model_id
        self.sample_rate, self.hop_length = codec.config.sample_rate, codec.config.hop_length
        self.codebook_size = codec.config.quantizer.codebook_size

    @cached_property
    def model_hash(self) -> str:
        """`Codec.fingerprint` as it was when first asked for."""
        return self.codec.fingerprint()

    def encode_parts(
        self,
        parts: Iterable[Waveform],
        *,
        num_codebooks: int | None = None,
        search_width: int = 1,
    ) -> tuple[NDArray[np.int64], int]:
        """See `dmcodec.files.Engine`; raises as `Codec.encode` does."""
        parts, held, num_held = iter(parts), [np.zeros(0, np.float32)], 0
        for part in parts:
            held.append(part)
            num_held += len(part)
            if self.codec.is_long(num_held):
                break
        else:
            encoded = self.codec.encode(
                np.concatenate(held), num_codebooks=num_codebooks, search_width=search_width
            )
            return encoded.item(0).cpu().numpy(), num_held

        def blocks() -> Iterator[torch.Tensor]:
            while held:  # what was worked on is not held any longer
                yield torch.from_numpy(held.pop(0))
            yield from map(torch.from_numpy, parts)

        codes, num_samples = encode_long(
            self.codec, blocks(), num_codebooks=num_codebooks, search_width=search_width
        )
        return codes.cpu().numpy(), num_samples

    def decode_parts(self, codes: NDArray[Any], num_samples: int) -> Iterator[Waveform]:
        """See `dmcodec.files.Engine`; raises as `Codec.decode` does."""
        given = torch.from_numpy(codes)
        if self.codec.is_long(num_samples):
            for piece in decode_long(self.codec, given, num_samples):
                yield piece.cpu().numpy()
        else:
            lengths, sizes = torch.tensor([codes.shape[1]]), torch.tensor([num_samples])
            yield self.codec.decode(Encoded(given[None], lengths, sizes))[0].cpu().numpy()
