"""Encoding and decoding of live streams with a causal codec: what joins up is the whole.

A frame's codes need the frame's own samples and nothing later, and its sound needs its own codes
and nothing later: the algorithmic latency of both ways together is one frame (20 ms at 50 frames a
second). All that a stream remembers is its state, a value: kept, copied or dropped by the caller.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dmcodec.codec.conv import Memory
from dmcodec.codec.inputs import check_block
from dmcodec.codec.network import CodecNetwork
from dmcodec.codec.precision import check_weights, computing_in
from dmcodec.codec.seanet import Decoder


@dataclass(frozen=True, eq=False)
class StreamState:
    """What one stream remembers; None for `memory` before its first frame.

    memory: for each layer in order the end of its input, or the LSTM's h and c; batch size 1.
    pending: encoder only: samples [n] that do not fill a frame yet.
    """

    memory: tuple[Tensor, ...] | None = None
    pending: Tensor | None = None


class StreamEncoder:
    """Encodes any number of streams, each of which starts and ends when it likes."""

    def __init__(
        self, codec: CodecNetwork, *, num_codebooks: int | None = None, search_width: int = 1
    ) -> None:
        """Takes a causal codec in evaluation mode; ValueError for another."""
        _check_causal(codec)
        self.codec, self.num_codebooks, self.search_width = codec, num_codebooks, search_width

    @torch.no_grad()
    def push(
        self, chunks: Sequence[Tensor], states: Sequence[StreamState]
    ) -> tuple[list[Tensor], list[StreamState]]:
        """The frames that are complete now, and the new states.

        Args:
            chunks: the next samples [T_i] of each stream, of any size, none included.
            states: of the same streams; `StreamState()` for one that starts.

        Returns:
            Codes [K, n_i] for each stream, n_i = (pending + T_i) // hop_length, and its new state.
            Streams with the same n_i are computed together.

        Raises ValueError for samples that are no sound (not finite, far beyond full scale): that
        stream's state is still the old one.
        """
        if len(chunks) != len(states):
            raise ValueError(f"{len(chunks)} chunks for {len(states)} states")
        hop_length, device = self.codec.config.hop_length, self.codec.device
        heard = []  # what was pending and what is new
        for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            chunk = check_block(chunk, f"chunk {number}").to(device)
            heard.append(chunk if state.pending is None else torch.cat([state.pending, chunk]))
        counts = [len(samples) // hop_length for samples in heard]
        # [1, n_i * hop_length] each: whole frames
        frames = [x[: n * hop_length][None] for x, n in zip(heard, counts, strict=True)]
        with computing_in(self.codec.precision, self.codec.device):
            codes, memories = _run_together(frames, states, self._encode)
        nothing = torch.zeros(self._num_codebooks, 0, dtype=torch.int64, device=device)
        new_states = [  # clone: a view would keep the whole chunk
            StreamState(memory, samples[n * hop_length :].clone())
            for memory, samples, n in zip(memories, heard, counts, strict=True)
        ]
        return [nothing if c is None else c for c in codes], new_states

    def finish(self, state: StreamState) -> tuple[Tensor, int]:
        """The last frame of a stream, filled with silence, [K, 0 or 1], and its samples."""
        size = 0 if state.pending is None else len(state.pending)
        if size == 0:
            return self.push([torch.zeros(0)], [state])[0][0], 0
        silence = torch.zeros(self.codec.config.hop_length - size)
        return self.push([silence], [state])[0][0], size

    @property
    def _num_codebooks(self) -> int:
        return self.num_codebooks or self.codec.config.quantizer.num_codebooks

    def _encode(self, x: Tensor, memory: Memory) -> Tensor:
        latents = self.codec.encoder.step(x, memory)
        return self.codec.quantizer.encode(
            latents, self.num_codebooks, search_width=self.search_width
        )


class StreamDecoder:
    """Decodes any number of streams, each of which starts and ends when it likes."""

    def __init__(self, codec: CodecNetwork) -> None:
        """Takes a causal codec in evaluation mode; ValueError for another."""
        _check_causal(codec)
        self.codec = codec

    @torch.no_grad()
    def push(
        self, codes: Sequence[Tensor], states: Sequence[StreamState]
    ) -> tuple[list[Tensor], list[StreamState]]:
        """The waveforms [n_i * hop_length] of codes [K, n_i], and the new states.

        Streams of the same n_i and K are computed together; n_i may be 0.
        """
        if len(codes) != len(states):
            raise ValueError(f"codes of {len(codes)} streams for {len(states)} states")
        items = [each.to(self.codec.device) for each in codes]
        with computing_in(self.codec.precision, self.codec.device):
            waveforms, memories = _run_together(items, states, self._decode)
        nothing = torch.zeros(0, device=self.codec.device)
        return [nothing if w is None else w[0] for w in waveforms], [
            StreamState(memory) for memory in memories
        ]

    def _decode(self, codes: Tensor, memory: Memory) -> Tensor:
        decoder = cast(Decoder, self.codec.decoder)  # the only kind of a causal codec
        return decoder.step(self.codec.quantizer.decode(codes), memory)


def _run_together(
    items: list[Tensor], states: Sequence[StreamState], run: Callable[[Tensor, Memory], Tensor]
) -> tuple[list[Tensor | None], list[tuple[Tensor, ...] | None]]:
    """Results and memories of items [C, T_i], in batches of items that have the same shape.

    Streams before their first frame have no memory to join, so they are batches of their own. An
    item without steps is not run: its result is None, its memory the old one.
    """
    results: list[Tensor | None] = [None] * len(items)
    memories = [state.memory for state in states]
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        if item.shape[-1] > 0:
            groups[(*item.shape, memories[number] is None)].append(number)
    for numbers in groups.values():
        old = [kept for n in numbers if (kept := memories[n]) is not None]
        joined = tuple(torch.cat(parts) for parts in zip(*old, strict=True)) if old else None
        memory = Memory(joined)
        output = run(torch.stack([items[n] for n in numbers]), memory)
        for place, number in enumerate(numbers):
            results[number] = output[place]
            memories[number] = tuple(part[place : place + 1] for part in memory.new)
    return results, memories


def _check_causal(codec: CodecNetwork) -> None:
    if not codec.config.seanet.is_causal:
        raise ValueError(
            f"codec {codec.model_id!r} looks ahead and cannot stream: train one with"
            " configs/streaming.toml (codec.seanet.is_causal), or use dmcodec encode for files"
        )
    if codec.precision == "bfloat16":
        raise ValueError("streams compute in float32 or tf32, not in bfloat16")
    check_weights(codec)
    if codec.training:
        raise ValueError("the codec is in training: call codec.eval() first")
