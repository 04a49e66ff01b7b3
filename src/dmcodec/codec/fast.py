"""Encoder and decoder for inference on the CPU: the plain path's result in about half of its time.

Features lie time-major, [T, C]: a convolution is then one matrix product for each tap, on shifted
views of the same memory, and a strided or transposed one needs no copy either. Time is cut into
pieces that stay in the processor's caches, which bounds the memory too; with several threads each
works on pieces of its own. Equality with the plain path is that of arithmetic: sums of another
order differ in the last bits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dmcodec.codec.conv import Conv1d, ConvTranspose1d, ceil_div, convolutions
from dmcodec.codec.network import CodecNetwork
from dmcodec.codec.seanet import (
    Decoder,
    DecoderBlock,
    Encoder,
    EncoderBlock,
    ResidualStack,
    ResidualUnit,
    Snake,
)
from dmcodec.codec.spectral_decoder import SpectralDecoder
from dmcodec.codec.threads import in_threads

PIECE_FRAMES = 50
"""Frames that the convolutions work on at a time (measured, docs/log.md)."""

SPECTRAL_PIECE_FRAMES = 500
"""The same for the spectral decoder, whose context is long and whose features are few. It cuts no
shorter pieces: each reads all of the weights, and all threads share what they are read through."""

MIRROR_FRAMES = 2
"""Further context of the last pieces, see `pieces`."""

LEAST_PIECE_FRAMES = 20
"""Shorter pieces cost more in context than a further thread gains."""

LEAST_COLUMNS = 16
"""Matrix products of fewer columns take as long (measured, docs/log.md)."""

Piece = tuple[int, int, int, int]
"""Start, stop, start with context, stop with context, in frames."""


class FastConv:
    """A `Conv1d` on [T, C_in] -> [ceil(T / stride), C_out], with the activation before it.

    What lies in memory as [T, C_in] is [T / n, n * C_in] too. In rows of n = stride steps a kernel
    of 2 * stride steps covers two rows, and moves on by one row for each step of the result: two
    matrix products, on the rows and on the rows from the second on, are the whole convolution.
    """

    def __init__(self, conv: Conv1d) -> None:
        weight = conv.conv.weight.detach()  # [C_out, C_in, taps]
        self.stride, self.dilation = conv.stride, conv.conv.dilation[0]
        self.is_causal = conv.is_causal
        self.left, self.right = conv.padding_left, conv.padding_right
        self.out_channels, self.in_channels, self.num_taps = weight.shape
        self.bias = cast(Tensor, conv.conv.bias).detach()
        # Rows from one product to the next. No layer has both a stride and a dilation.
        self.step = 1 if self.stride > 1 else self.dilation
        # Few input channels: the taps side by side make one product worth its while.
        self.is_narrow_in = self.in_channels < 8 and self.dilation == 1
        if self.is_narrow_in:
            # Matrix [taps * C_in, C_out].
            self.weights = weight.permute(2, 1, 0).reshape(-1, self.out_channels).contiguous()
            return
        # Few output channels: one product makes `group` steps of the result side by side. Each of
        # them has the kernel in columns of its own, `stride` steps below the one before; the rest
        # are zeros.
        is_grouped = self.step == 1 and self.num_taps > 1
        self.group = ceil_div(LEAST_COLUMNS, self.out_channels) if is_grouped else 1
        self.row_steps = self.group * self.stride  # steps of the input in a row
        self.bias = self.bias.repeat(self.group)
        span = (self.group - 1) * self.stride + self.num_taps
        num_rows = ceil_div(span, self.row_steps)
        filled = weight.new_zeros(
            num_rows * self.row_steps, self.in_channels, self.group, self.out_channels
        )
        for number in range(self.group):
            first = number * self.stride
            filled[first : first + self.num_taps, :, number] = weight.permute(2, 1, 0)
        # [rows, row_steps * C_in, group * C_out]: a matrix for each product
        self.weights = filled.reshape(num_rows, self.row_steps * self.in_channels, -1)

    def __call__(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
        """Convolves with the borders of the layer: mirrored, or zeros when it is causal."""
        steps = ceil_div(x.shape[0], self.stride)
        padded = self._pad(x, steps, activation)
        if self.is_narrow_in:
            # Windows overlap in memory; addmm copies them, which for so few channels is little.
            shape = (steps, self.num_taps * self.in_channels)
            windows = padded.as_strided(shape, (self.stride * self.in_channels, 1))
            return torch.addmm(self.bias, windows, self.weights)
        rows = padded.view(-1, self.row_steps * self.in_channels)
        size = ceil_div(steps, self.group)
        y = torch.addmm(self.bias, rows[:size], self.weights[0])  # [size, group * C_out]
        for number, weight in enumerate(self.weights[1:], start=1):
            first = number * self.step
            y.addmm_(rows[first : first + size], weight)
        return y.view(-1, self.out_channels)[:steps]  # a last row may make steps too many

    def _pad(self, x: Tensor, steps: int, activation: nn.Module | None) -> Tensor:
        """[left + T + right..., C_in], activated; as many steps as the products look at."""
        size, left = x.shape[0], self.left
        if self.num_taps == 1 and self.stride == 1:
            return x if activation is None else activate(activation, x)
        right = self.right + steps * self.stride - size
        used = left + size + right
        total = used
        if not self.is_narrow_in:
            num_rows = (len(self.weights) - 1) * self.step + ceil_div(steps, self.group)
            total = num_rows * self.row_steps
        padded = x.new_empty(total, self.in_channels)
        inner = padded[left : left + size]
        if activation is None:
            inner.copy_(x)
        else:
            activate(activation, x, out=inner)
        padded[used:] = 0  # met by weights of zero, which NaN in fresh memory would survive
        if self.is_causal:
            padded[:left] = 0
            padded[left + size :] = 0
            return padded
        # As in pad_reflect: an item too short to be mirrored is first continued with zeros.
        # Pairs are (row of `padded`, step of x).
        pivot = max(size, max(left, right) + 1) - 1
        mirrored = [(left - i, i) for i in range(left, 0, -1)]
        mirrored += [
            (left + i, i if i <= pivot else 2 * pivot - i) for i in range(size, size + right)
        ]
        for target, source in mirrored:
            if source < size:
                padded[target] = inner[source]
            else:
                padded[target] = 0
        return padded


class FastConvTranspose:
    """A `ConvTranspose1d` on [T, C_in] -> [T * stride, C_out], with the activation before it.

    A kernel of 2 * stride spans two steps of the input: before it is trimmed, the result has at t
    `stride` steps, x[t] times the kernel's first half (`now`) plus x[t - 1] times its second.
    """

    def __init__(self, conv: ConvTranspose1d) -> None:
        weight = conv.conv.weight.detach()  # [C_in, C_out, 2 * stride]
        self.stride = conv.conv.stride[0]
        self.trim_left = conv.trim_left
        self.out_channels = weight.shape[1]
        halves = weight.permute(0, 2, 1).reshape(len(weight), 2, self.stride, -1)
        # [C_in, stride * C_out] each
        self.now, self.before = (half.flatten(1).contiguous() for half in halves.unbind(1))
        self.bias = cast(Tensor, conv.conv.bias).detach().repeat(self.stride)

    def __call__(self, x: Tensor, activation: nn.Module) -> Tensor:
        """Upsamples; there are zeros before the first step and after the last."""
        size = x.shape[0]
        padded = x.new_zeros(size + 2, x.shape[1])
        activate(activation, x, out=padded[1:-1])
        y = torch.addmm(self.bias, padded[1:], self.now)  # [T + 1, stride * C_out]
        y.addmm_(padded[:-1], self.before)
        y = y.view(-1, self.out_channels)  # [(T + 1) * stride, C_out]
        return y[self.trim_left : self.trim_left + size * self.stride]


class FastUnit:
    """A `ResidualUnit` on [T, C] -> same."""

    def __init__(self, unit: ResidualUnit) -> None:
        self.activation_in, self.activation_out = unit.activation_in, unit.activation_out
        self.conv_in = FastConv(unit.conv_in)
        # Kernels of one tap are matrices: [C, C] and [C / 2, C].
        self.shortcut = unit.shortcut.conv.weight.detach()[..., 0].t().contiguous()
        self.conv_out = unit.conv_out.conv.weight.detach()[..., 0].t().contiguous()
        biases = (unit.shortcut.conv.bias, unit.conv_out.conv.bias)
        self.bias = cast(Tensor, biases[0]).detach() + cast(Tensor, biases[1]).detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Shortcut and branch added into the same memory."""
        branch = self.conv_in(x, self.activation_in)
        branch = activate(self.activation_out, branch)
        return torch.addmm(self.bias, x, self.shortcut).addmm_(branch, self.conv_out)


def activate(module: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
    """ELU or Snake on [T, C].

    torch's ELU calls expm1, which takes twice as long as the four passes here; both are right to
    1e-7 of full size.
    """
    out = torch.empty_like(x) if out is None else out
    if isinstance(module, Snake):
        alpha = module.alpha.detach()[0, :, 0]
        torch.mul(x, alpha, out=out)
        return out.sin_().square_().div_(alpha + 1e-9).add_(x)
    # exp(min(x, 0)) - 1 is at least x below zero and 0 above: the larger of both is ELU.
    torch.clamp_max(x, 0.0, out=out)
    return torch.maximum(x, out.exp_().sub_(1.0), out=out)


class Frozen:
    """The layers of a network, and copies of the weights that are laid out for this path."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = list(network.modules())
        self._weights = [weight.detach().clone() for weight in _laid_out(network)]

    def are_of(self, network: nn.Module) -> bool:
        """Whether these are its layers and weights still, however it was written to.

        All weights are compared: writes through `.data`, and to weights that were made in inference
        mode, leave no other trace. It costs 1 ms at the size of the bundled model, 25 at full size.
        """
        return self._layers == list(network.modules()) and all(
            map(torch.equal, self._weights, _laid_out(network))
        )


def _laid_out(network: nn.Module) -> list[Tensor]:
    return [weight for conv in convolutions(network) for weight in conv.parameters()]


class FastEncoder:
    """An `Encoder` with its weights laid out for this path."""

    def __init__(self, encoder: Encoder) -> None:
        self.frozen = Frozen(encoder)
        self.hop_length, self.reach = encoder.hop_length, encoder.reach_frames
        self.conv_in, self.conv_out = FastConv(encoder.conv_in), FastConv(encoder.conv_out)
        self.blocks = [
            (make_units(block.residual), block.activation, FastConv(block.downsample))
            for block in cast(list[EncoderBlock], encoder.blocks)
        ]
        self.lstm, self.activation = encoder.lstm, encoder.activation

    def convolve(self, waveforms: list[Tensor]) -> list[Tensor]:
        """What the convolutions before the LSTM make of each [T]: [ceil(T / hop_length), C]."""
        num_frames = [ceil_div(len(waveform), self.hop_length) for waveform in waveforms]
        if self.conv_in.is_causal:  # silence up to a whole frame, as in Encoder.convolve
            waveforms = [F.pad(w, (0, -len(w) % self.hop_length)) for w in waveforms]

        def convolve_piece(item: int, piece: Piece) -> Tensor:
            start, stop, left, right = piece
            x = waveforms[item][left * self.hop_length : right * self.hop_length, None]
            x = self.conv_in(x)
            for units, activation, downsample in self.blocks:
                for unit in units:
                    x = unit(x)
                x = downsample(x, activation)
            return x[start - left : stop - left]

        return by_pieces(convolve_piece, num_frames, self.reach, PIECE_FRAMES, LEAST_PIECE_FRAMES)

    def __call__(self, waveforms: list[Tensor]) -> list[Tensor]:
        """Latents [D, L_i] of waveforms [T_i]."""
        features = self.lstm.run_items(self.convolve(waveforms))
        return [self.conv_out(x, self.activation).t() for x in features]


class FastDecoder:
    """A `Decoder` with its weights laid out for this path."""

    def __init__(self, decoder: Decoder) -> None:
        self.frozen = Frozen(decoder)
        self.hop_length, self.reach = decoder.hop_length, decoder.reach_frames
        self.conv_in, self.conv_out = FastConv(decoder.conv_in), FastConv(decoder.conv_out)
        self.blocks = [
            (block.activation, FastConvTranspose(block.upsample), make_units(block.residual))
            for block in cast(list[DecoderBlock], decoder.blocks)
        ]
        self.lstm, self.activation = decoder.lstm, decoder.activation

    def convolve(self, features: list[Tensor]) -> list[Tensor]:
        """What the convolutions after the LSTM make of each [L, C]: a waveform [L * hop_length]."""

        def convolve_piece(item: int, piece: Piece) -> Tensor:
            start, stop, left, right = piece
            x = features[item][left:right]
            for activation, upsample, units in self.blocks:
                x = upsample(x, activation)
                for unit in units:
                    x = unit(x)
            waveform = self.conv_out(x, self.activation)[:, 0]
            first = (start - left) * self.hop_length
            return waveform[first : first + (stop - start) * self.hop_length]

        sizes = [len(x) for x in features]
        return by_pieces(convolve_piece, sizes, self.reach, PIECE_FRAMES, LEAST_PIECE_FRAMES)

    def __call__(self, quantized: list[Tensor]) -> list[Tensor]:
        """Waveforms [L_i * hop_length] of quantized latents [D, L_i]."""
        return self.convolve(self.lstm.run_items([self.conv_in(x.t()) for x in quantized]))


class FastSpectralDecoder:
    """A `SpectralDecoder` in pieces; its layers are matrix products already, and run as they are.

    So there is no copy of weights to be compared with them.
    """

    def __init__(self, decoder: SpectralDecoder) -> None:
        self.decoder = decoder

    def __call__(self, quantized: list[Tensor]) -> list[Tensor]:
        """Waveforms [L_i * hop_length] of quantized latents [D, L_i]."""
        hop_length = self.decoder.hop_length

        def decode_piece(item: int, piece: Piece) -> Tensor:
            start, stop, left, right = piece
            waveform = self.decoder(quantized[item][None, :, left:right])[0, 0]
            return waveform[(start - left) * hop_length : (stop - left) * hop_length]

        sizes = [x.shape[1] for x in quantized]
        reach, frames = self.decoder.reach_frames, SPECTRAL_PIECE_FRAMES
        return by_pieces(decode_piece, sizes, reach, piece_frames=frames, least_frames=frames)


def make_units(stack: ResidualStack) -> list[FastUnit]:
    """The units of a block for this path."""
    return [FastUnit(unit) for unit in cast(list[ResidualUnit], stack.units)]


def by_pieces(
    function: Callable[[int, Piece], Tensor],
    sizes: Sequence[int],
    reach: int,
    piece_frames: int,
    least_frames: int,
) -> list[Tensor]:
    """Whole items joined from what `function` makes of (number of the item, piece).

    At a cut the layers do what they do at an end, mirror or see zeros. That spoils no more than the
    context, which `function` throws away.

    Args:
        function: may be called in several threads.
        sizes: frames of the items.
        reach: frames of context that a piece needs.
        piece_frames: of the largest piece.
        least_frames: that a piece gets for the sake of a further thread.
    """
    # Short items in smaller pieces, so that every thread has one.
    share = ceil_div(sum(sizes), torch.get_num_threads())
    piece_frames = min(piece_frames, max(share, least_frames))
    work = [
        (item, piece)
        for item, num_frames in enumerate(sizes)
        for piece in pieces(num_frames, reach, piece_frames)
    ]
    parts: list[list[Tensor]] = [[] for _ in sizes]
    for (item, _), part in zip(work, in_threads(lambda each: function(*each), work), strict=True):
        parts[item].append(part)
    return [torch.cat(each) for each in parts]


def pieces(num_frames: int, reach: int, piece_frames: int) -> Iterator[Piece]:
    """Cuts frames into pieces, each with the context that it needs.

    At the very end a strided convolution fills its last step with mirrored samples, and so looks
    back further than `reach`: by stride - 1 steps at each level, together less than two frames.
    """
    for start in range(0, num_frames, piece_frames):
        stop = min(start + piece_frames, num_frames)
        right = min(num_frames, stop + reach)
        left = start - reach - (MIRROR_FRAMES if right == num_frames else 0)
        yield start, stop, max(0, left), right


class Inference:
    """The fast forms of a network, kept from one call to the next; each is made when needed."""

    def __init__(self) -> None:
        self._encoder: FastEncoder | None = None
        self._decoder: FastDecoder | None = None

    def __reduce__(self) -> tuple[type["Inference"], tuple[()]]:
        """Copies and pickles of a codec carry its weights once."""
        return Inference, ()

    def encoder(self, network: CodecNetwork) -> FastEncoder | None:
        """The fast form of the network's encoder as it is; None where only the plain one is right.

        That is: on another device, in training (weights change with every step), with weight
        normalization in place, in another dtype or precision, or under autocast.
        """
        if not _is_fast(network):
            self._encoder = self._decoder = None  # their memory is wanted elsewhere
        elif self._encoder is None or not self._encoder.frozen.are_of(network.encoder):
            self._encoder = FastEncoder(network.encoder)
        return self._encoder

    def decoder(self, network: CodecNetwork) -> FastDecoder | FastSpectralDecoder | None:
        """As `encoder`."""
        decoder = network.decoder
        if not _is_fast(network):
            self._encoder = self._decoder = None
            return None
        if isinstance(decoder, SpectralDecoder):
            return FastSpectralDecoder(decoder)
        if self._decoder is None or not self._decoder.frozen.are_of(decoder):
            self._decoder = FastDecoder(decoder)
        return self._decoder


def _is_fast(network: CodecNetwork) -> bool:
    return not (
        network.training
        or network.precision != "float32"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or any(p.device.type != "cpu" or p.dtype != torch.float32 for p in network.parameters())
        or any(parametrize.is_parametrized(m) for m in network.modules())
    )
