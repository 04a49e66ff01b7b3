"""Encoding and decoding of any length in bounded memory, with the codes of the whole.

Convolutions see a piece of the signal with as much context as they reach, so every piece equals
the same piece of the whole. An LSTM has no such limit: its state is carried from piece to piece,
and for the backward direction of the encoder from the end to the beginning, over features that wait
in a temporary file. Equality is that of arithmetic; sums of another order differ in the last bit.
"""

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from dmcodec.audio import Waveform, overlapping_parts
from dmcodec.codec.conv import ceil_div
from dmcodec.codec.fast import FastDecoder, FastEncoder, Inference, pieces
from dmcodec.codec.inputs import check_block
from dmcodec.codec.lstm import State, is_lstm_stepped, run_layers, single_direction
from dmcodec.codec.network import CodecNetwork
from dmcodec.codec.precision import check_weights, computing_in
from dmcodec.codec.seanet import Encoder
from dmcodec.codec.search_limits import check_search_width
from dmcodec.codec.spectral_decoder import SpectralDecoder

CHUNK_FRAMES = 500
"""Frames of a piece: 10 s for the paper's codec."""


@torch.no_grad()
def encode_long(
    codec: CodecNetwork,
    blocks: Iterable[Tensor],
    *,
    num_codebooks: int | None = None,
    search_width: int = 1,
    chunk_frames: int = CHUNK_FRAMES,
) -> tuple[Tensor, int]:
    """Codes of a waveform that comes in blocks; memory does not grow with its length.

    Args:
        codec: in evaluation mode.
        blocks: consecutive parts [T_i] of the waveform, of any sizes.
        num_codebooks: the first n books only; None for all.
        search_width: see `Codec.encode`.
        chunk_frames: frames worked on at a time; changes the cost, not the result.

    Returns:
        Codes [K, L] on the codec's device, and the number of samples. A temporary file holds
        five float32 feature vectors a frame meanwhile (about 1 MB a second at full size).

    Raises ValueError when there is no sample at all, for samples that are no sound (not float, not
    finite, far beyond full scale), and for a search_width that is none.
    """
    check_weights(codec)
    check_search_width(search_width)
    encoder, device = codec.encoder, codec.device
    lstm, fast = encoder.lstm.lstm, Inference().encoder(codec)
    convolved = _convolved_pieces(encoder, fast, blocks, chunk_frames, device)
    with (
        tempfile.TemporaryDirectory(prefix="dmcodec_") as folder,
        computing_in(codec.precision, device),
    ):
        features = _FrameFile(folder, "features", lstm.input_size)
        num_samples = 0
        for num_new_samples, piece in convolved:
            features.write(features.num_frames, piece)
            num_samples += num_new_samples
        if num_samples == 0:
            raise ValueError("audio is empty; give at least one sample")
        outputs = [features]  # of the layer before: a file for each direction
        for layer in range(lstm.num_layers):
            outputs = _run_lstm_layer(
                lstm, layer, outputs, folder, chunk_frames, device, is_fast=fast is not None
            )
        codes = []
        reach = encoder.conv_out.reach
        for start, stop in _spans(features.num_frames, chunk_frames):
            left, right = max(0, start - reach), min(features.num_frames, stop + reach)
            x = torch.cat([file.read(left, right) for file in outputs], dim=-1)
            skip = features.read(left, right)
            x = x + torch.cat([skip] * len(outputs), dim=-1)  # [right - left, C], as in SkipLSTM
            if fast is not None:
                latents = fast.conv_out(x, encoder.activation).t()[None]
            else:
                latents = encoder.conv_out(encoder.activation(x.t()[None].to(device)))
            latents = latents[..., start - left : stop - left]
            found = codec.quantizer.encode(latents, num_codebooks, search_width=search_width)
            codes.append(found[0])
    return torch.cat(codes, dim=-1), num_samples


@torch.no_grad()
def decode_long(
    codec: CodecNetwork,
    codes: Tensor,
    num_samples: int,
    *,
    first_codebook: int = 0,
    chunk_frames: int = CHUNK_FRAMES,
) -> Iterator[Tensor]:
    """The waveform of codes [K, L] in blocks [T_i] that add up to `num_samples`.

    Memory does not grow with the length; the blocks joined are what `Codec.decode` gives.
    """
    check_weights(codec)
    decoder, hop_length = codec.decoder, codec.config.hop_length
    if isinstance(decoder, SpectralDecoder):
        yield from _decode_spectral(
            codec, decoder, codes, num_samples, first_codebook, chunk_frames
        )
        return
    lstm, num_frames = decoder.lstm.lstm, codes.shape[-1]
    fast = cast(FastDecoder | None, Inference().decoder(codec))
    is_stepped = fast is not None and is_lstm_stepped(lstm)
    run = partial(run_layers, lstm) if is_stepped else lstm
    reach_in = decoder.conv_in.reach
    reach_out = decoder.reach_frames
    state: State | None = None
    # LSTM outputs [1, C, n]: frames that wait for their context on the right, and the context on
    # their left.
    window = torch.zeros(1, lstm.hidden_size, 0, device=codec.device)
    window_start = done = 0  # frames: first of the window, first not yet given
    for start, stop in _spans(num_frames, chunk_frames):
        left, right = max(0, start - reach_in), min(num_frames, stop + reach_in)
        quantized = codec.quantizer.decode(
            codes[None, :, left:right].to(codec.device), first_codebook
        )
        with computing_in(codec.precision, codec.device):
            if fast is not None:
                x = fast.conv_in(quantized[0].t())[None]  # [1, L, C]
            else:
                x = decoder.conv_in(quantized).transpose(1, 2)  # [1, L, C]
            x = x[:, start - left : stop - left]
            with torch.autocast(codec.device.type, enabled=False):  # the state stays float32
                y, state = run(x.to(codec.quantizer.codebooks.dtype), state)
            window = torch.cat([window, (y + x).transpose(1, 2)], dim=-1)
            # Up to here frames have their context on the right.
            ready = stop if stop == num_frames else stop - reach_out
            if ready <= done:
                continue
            if fast is not None:
                (waveform,) = fast.convolve([window[0].t()])
            else:
                waveform = decoder.convolve(window)[0, 0]
        first, last = (frame - window_start for frame in (done, ready))
        end = num_samples - window_start * hop_length
        yield waveform[first * hop_length : min(last * hop_length, end)].float()
        done = ready
        keep_from = max(done - reach_out, window_start)
        window = window[..., keep_from - window_start :]
        window_start = keep_from


def _decode_spectral(
    codec: CodecNetwork,
    decoder: SpectralDecoder,
    codes: Tensor,
    num_samples: int,
    first_codebook: int,
    chunk_frames: int,
) -> Iterator[Tensor]:
    """`decode_long` of a decoder without memory: pieces with as much context as it reaches."""
    hop_length = decoder.hop_length
    for start, stop, left, right in pieces(codes.shape[-1], decoder.reach_frames, chunk_frames):
        part = codes[None, :, left:right].to(codec.device)
        with computing_in(codec.precision, codec.device):
            waveform = decoder(codec.quantizer.decode(part, first_codebook))[0, 0]
        end = min(stop * hop_length, num_samples) - left * hop_length
        yield waveform[(start - left) * hop_length : end].float()


def _convolved_pieces(
    encoder: Encoder,
    fast: FastEncoder | None,
    blocks: Iterable[Tensor],
    chunk_frames: int,
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """What the encoder's convolutions make of the waveform: (samples, [n, C]) for each piece.

    No MIRROR_FRAMES here: the last of several parts is longer than its context, so that what its
    end looks back to is its own.
    """
    hop_length = encoder.hop_length
    parts = overlapping_parts(
        _checked(blocks), chunk_frames * hop_length, encoder.reach_frames * hop_length
    )
    for part, before, num_samples in parts:
        samples, first = torch.from_numpy(part), before // hop_length
        if fast is not None:
            (x,) = fast.convolve([samples])
        else:
            x = encoder.convolve(samples[None, None].to(device))[0].t()
        yield num_samples, x[first : first + ceil_div(num_samples, hop_length)]


def _checked(blocks: Iterable[Tensor]) -> Iterator[Waveform]:
    """Parts of a waveform [T_i] as arrays; ValueError for one that is no sound."""
    for number, block in enumerate(blocks):
        yield check_block(block, f"block {number}").cpu().numpy()


def _run_lstm_layer(
    lstm: nn.LSTM,
    layer: int,
    inputs: "list[_FrameFile]",
    folder: str,
    chunk_frames: int,
    device: torch.device,
    *,
    is_fast: bool,
) -> "list[_FrameFile]":
    """One layer over all frames: a file for the forward direction, one for the backward."""
    num_frames = inputs[0].num_frames
    outputs = []
    for suffix in ["", "_reverse"] if lstm.bidirectional else [""]:
        is_backward = suffix == "_reverse"
        direction = single_direction(lstm, f"_l{layer}{suffix}", is_fast=is_fast)
        output = _FrameFile(folder, f"layer{layer}{suffix}", lstm.hidden_size)
        state: State | None = None
        spans = list(_spans(num_frames, chunk_frames))
        for start, stop in reversed(spans) if is_backward else spans:
            x = torch.cat([file.read(start, stop) for file in inputs], dim=-1)[None].to(device)
            # Backward: the last span first, and each from its end, so that the state goes on.
            with torch.autocast(device.type, enabled=False):  # the state stays float32
                y, state = direction(x.flip(1) if is_backward else x, state)
            output.write(start, (y.flip(1) if is_backward else y)[0])
        outputs.append(output)
    return outputs


def _spans(num_frames: int, chunk_frames: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_frames, chunk_frames):
        yield start, min(start + chunk_frames, num_frames)


class _FrameFile:
    """Feature vectors [L, C] in a file, written and read in any order; float32."""

    def __init__(self, folder: str, name: str, width: int) -> None:
        # Plain reads and writes: a memory map's pages would count as this process's memory.
        self._file = open(f"{folder}/{name}", "w+b")  # noqa: SIM115
        self._width = width
        self.num_frames = 0

    def write(self, start: int, frames: Tensor) -> None:
        try:
            self._file.seek(start * self._width * 4)
            self._file.write(frames.float().cpu().contiguous().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"no room for the features of a long recording in {tempfile.gettempdir()} "
                f"({error.strerror}): set TMPDIR to a folder of another disk"
            ) from error
        self.num_frames = max(self.num_frames, start + len(frames))

    def read(self, start: int, stop: int) -> Tensor:
        self._file.seek(start * self._width * 4)
        data = bytearray(self._file.read((stop - start) * self._width * 4))
        return torch.from_numpy(np.frombuffer(data, np.float32)).reshape(-1, self._width)
