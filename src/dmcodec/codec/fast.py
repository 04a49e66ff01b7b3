"""Encoder and decoder for inference on the CPU: the plain path's result in about half of its time.

Features lie time-major, [T, C]: a convolution is then one matrix product for each tap, on shifted
views of the same memory, and a strided or transposed one needs no copy either. Time is cut into
pieces that stay in the processor's caches, which bounds the memory too; with several threads each
works on pieces of its own. Equality with the plain path is that of arithmetic: sums of another
order differ in the last bits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dmcodec.codec.conv import Conv1d, ConvTranspose1d, SkipLSTM, ceil_div
from dmcodec.codec.reach import decoder_reach, encoder_reach
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

if TYPE_CHECKING:
    from dmcodec.codec.model import Codec

PIECE_FRAMES = 50
"""Frames that the convolutions work on at a time (measured, docs/log.md)."""

SPECTRAL_PIECE_FRAMES = 500
"""The same for the spectral decoder, whose context is long and whose features are few."""

MIRROR_FRAMES = 2
"""Further context of the last pieces, see `pieces`."""

LEAST_PIECE_FRAMES = 20
"""Shorter pieces cost more in context than a further thread gains."""

LEAST_COLUMNS = 16
"""Matrix products of fewer columns take as long (measured, docs/log.md)."""

LARGE_LSTM = 512
"""Hidden sizes from here on have weights larger than caches: `is_lstm_stepped`."""

State = tuple[Tensor, Tensor]
Piece = tuple[int, int, int, int]
"""Start, stop, start with context, stop with context, in frames."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class FastConv:
    """A `Conv1d` on [T, C_in] -> [ceil(T / stride), C_out], with the activation before it."""

    def __init__(self, conv: Conv1d) -> None:
        weight = conv.conv.weight.detach()  # [C_out, C_in, taps]
        self.stride, self.dilation = conv.stride, conv.conv.dilation[0]
        self.is_causal = conv.is_causal
        self.left, self.right = conv.padding_left, conv.padding_right
        self.out_channels, self.in_channels, self.num_taps = weight.shape
        self.bias = cast(Tensor, conv.conv.bias).detach()
        self.step = 1 if self.stride > 1 else self.dilation  # rows from one product to the next
        # Few input channels: the taps side by side make one product worth its while.
        self.is_narrow_in = self.in_channels < 8 and self.dilation == 1
        if self.is_narrow_in:
            self.weights = weight.permute(2, 1, 0).reshape(-1, self.out_channels).contiguous()
            return
        # Few output channels: a row of several steps makes as many at once.
        is_grouped = self.step == 1 and self.num_taps > 1
        self.group = ceil_div(LEAST_COLUMNS, self.out_channels) if is_grouped else 1
        self.row = self.group * self.stride  # steps of the input in a row of `padded`
        self.bias = self.bias.repeat(self.group)
        span = (self.group - 1) * self.stride + self.num_taps
        num_rows = ceil_div(span, self.row)
        filled = weight.new_zeros(
            num_rows * self.row, self.in_channels, self.group, self.out_channels
        )
        for number in range(self.group):
            first = number * self.stride
            filled[first : first + self.num_taps, :, number] = weight.permute(2, 1, 0)
        self.weights = filled.reshape(num_rows, self.row * self.in_channels, -1)

    def __call__(self, x: Tensor, activation: nn.Module | None = None) -> Tensor:
        """Convolves with the borders of the layer: mirrored, or zeros when it is causal."""
        steps = ceil_div(x.shape[0], self.stride)
        padded = self._pad(x, steps, activation)
        if self.is_narrow_in:
            shape = (steps, self.num_taps * self.in_channels)
            windows = padded.as_strided(shape, (self.stride * self.in_channels, 1))
            return torch.addmm(self.bias, windows, self.weights)
        rows = padded.view(-1, self.row * self.in_channels)
        size = ceil_div(steps, self.group)
        y = torch.addmm(self.bias, rows[:size], self.weights[0])
        for tap, weight in enumerate(self.weights[1:], start=1):
            y.addmm_(rows[tap * self.step : tap * self.step + size], weight)
        return y.view(-1, self.out_channels)[:steps]

    def _pad(self, x: Tensor, steps: int, activation: nn.Module | None) -> Tensor:
        """[left + T + right..., C_in], activated; as many rows as the products look at."""
        size, left = x.shape[0], self.left
        if self.num_taps == 1 and self.stride == 1:
            return x if activation is None else activate(activation, x)
        right = self.right + steps * self.stride - size
        used = left + size + right
        total = used
        if not self.is_narrow_in:
            row_steps = (len(self.weights) - 1) * self.step + ceil_div(steps, self.group)
            total = row_steps * self.row
        padded = x.new_empty(total, self.in_channels)
        inner = padded[left : left + size]
        if activation is None:
            inner.copy_(x)
        else:
            activate(activation, x, out=inner)
        padded[used:] = 0
        if self.is_causal:
            padded[:left] = 0
            padded[left + size :] = 0
            return padded
        # As in pad_reflect: an item too short to be mirrored is first continued with zeros.
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
    """A `ConvTranspose1d` on [T, C_in] -> [T * stride, C_out], with the activation before it."""

    def __init__(self, conv: ConvTranspose1d) -> None:
        weight = conv.conv.weight.detach()  # [C_in, C_out, 2 * stride]
        self.stride = conv.conv.stride[0]
        self.trim_left = conv.trim_left
        self.out_channels = weight.shape[1]
        halves = weight.permute(0, 2, 1).reshape(len(weight), 2, self.stride, -1)
        self.now, self.before = (half.flatten(1).contiguous() for half in halves.unbind(1))
        self.bias = cast(Tensor, conv.conv.bias).detach().repeat(self.stride)

    def __call__(self, x: Tensor, activation: nn.Module) -> Tensor:
        """Upsamples; there are zeros before the first step and after the last."""
        size = x.shape[0]
        padded = x.new_zeros(size + 2, x.shape[1])
        activate(activation, x, out=padded[1:-1])
        y = torch.addmm(self.bias, padded[1:], self.now)  # [T + 1, stride * C_out]
        y.addmm_(padded[:-1], self.before)
        y = y.view(-1, self.out_channels)
        return y[self.trim_left : self.trim_left + size * self.stride]


class FastUnit:
    """A `ResidualUnit` on [T, C] -> same."""

    def __init__(self, unit: ResidualUnit) -> None:
        self.activation_in, self.activation_out = unit.activation_in, unit.activation_out
        self.conv_in = FastConv(unit.conv_in)
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
    torch.clamp_max(x, 0.0, out=out)
    return torch.maximum(x, out.exp_().sub_(1.0), out=out)


class FastEncoder:
    """An `Encoder` with its weights laid out for this path."""

    def __init__(self, encoder: Encoder) -> None:
        self.hop_length = prod(encoder.strides)
        self.reach = ceil_div(encoder_reach(encoder), self.hop_length)  # frames
        self.conv_in, self.conv_out = FastConv(encoder.conv_in), FastConv(encoder.conv_out)
        self.blocks = [
            (make_units(block.residual), block.activation, FastConv(block.downsample))
            for block in cast(list[EncoderBlock], encoder.blocks)
        ]
        self.lstm, self.activation = encoder.lstm, encoder.activation

    def convolve(self, waveforms: list[Tensor]) -> list[Tensor]:
        """What the convolutions before the LSTM make of each [T]: [ceil(T / hop_length), C]."""
        num_frames = [ceil_div(len(waveform), self.hop_length) for waveform in waveforms]
        if self.conv_in.is_causal:
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

        return by_pieces(convolve_piece, num_frames, self.reach)

    def __call__(self, waveforms: list[Tensor]) -> list[Tensor]:
        """Latents [D, L_i] of waveforms [T_i]."""
        features = run_lstm(self.lstm, self.convolve(waveforms))
        return [self.conv_out(x, self.activation).t() for x in features]


class FastDecoder:
    """A `Decoder` with its weights laid out for this path."""

    def __init__(self, decoder: Decoder) -> None:
        self.hop_length = prod(decoder.strides)
        self.reach = ceil_div(decoder_reach(decoder), self.hop_length)  # frames
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

        return by_pieces(convolve_piece, [len(x) for x in features], self.reach)

    def __call__(self, quantized: list[Tensor]) -> list[Tensor]:
        """Waveforms [L_i * hop_length] of quantized latents [D, L_i]."""
        return self.convolve(run_lstm(self.lstm, [self.conv_in(x.t()) for x in quantized]))


class FastSpectralDecoder:
    """A `SpectralDecoder` in pieces; its layers are matrix products already."""

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
        return by_pieces(
            decode_piece, sizes, self.decoder.reach_frames, piece_frames=SPECTRAL_PIECE_FRAMES
        )


def make_units(stack: ResidualStack) -> list[FastUnit]:
    """The units of a block for this path."""
    return [FastUnit(unit) for unit in cast(list[ResidualUnit], stack.units)]


def by_pieces(
    function: Callable[[int, Piece], Tensor],
    sizes: Sequence[int],
    reach: int,
    piece_frames: int = PIECE_FRAMES,
) -> list[Tensor]:
    """Whole items joined from what `function` makes of (number of the item, piece).

    Args:
        function: may be called in several threads.
        sizes: frames of the items.
        reach: frames of context that a piece needs.
        piece_frames: of the largest piece.
    """
    share = ceil_div(sum(sizes), torch.get_num_threads())
    piece_frames = min(piece_frames, max(share, LEAST_PIECE_FRAMES))
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


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results in order, computed on as many threads as torch has, each of one thread inside.

    A piece for each core scales better than every matrix product of a piece shared by all cores.
    torch has one number of threads for threads to come: one that first uses torch while this runs
    gets a single thread for itself.
    """
    items = list(items)
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(items) == 1:
        return [function(item) for item in items]

    def run(item: Item) -> Result:
        with torch.no_grad():  # a thread has a mode of its own
            return function(item)

    try:
        with ThreadPoolExecutor(min(num_threads, len(items)), initializer=_use_one_thread) as pool:
            return list(pool.map(run, items))
    finally:
        torch.set_num_threads(num_threads)  # threads to come begin with the last number set


def run_lstm(module: SkipLSTM, inputs: list[Tensor]) -> list[Tensor]:
    """A `SkipLSTM` on items [L_i, C] -> [L_i, C] each (twice C when bidirectional)."""
    lstm = module.lstm
    if len(inputs) > 1 or not is_lstm_stepped(lstm):
        sizes = [len(x) for x in inputs]
        lengths = torch.tensor(sizes) if len(set(sizes)) > 1 else None
        x = nn.utils.rnn.pad_sequence(inputs, batch_first=True).transpose(1, 2)  # [B, C, L]
        return [y[:, :size].t() for y, size in zip(module(x, lengths), sizes, strict=True)]
    x = skip = inputs[0]
    if not lstm.bidirectional:
        y, _ = run_layers(lstm, x[None])
        return [y[0].add_(skip)]
    for layer in range(lstm.num_layers):
        forward, _ = run_direction(lstm, f"_l{layer}", x)
        backward, _ = run_direction(lstm, f"_l{layer}_reverse", x.flip(0))
        x = torch.cat([forward, backward.flip(0)], dim=1)
    return [x.add_(torch.cat([skip, skip], dim=1))]


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # from now on this thread's own number


def is_lstm_stepped(lstm: nn.LSTM) -> bool:
    """Whether `run_direction` beats torch's own LSTM for one item: a large one, on one thread.

    With several threads torch's own reads the weights with all of them at once.
    """
    return lstm.hidden_size >= LARGE_LSTM and torch.get_num_threads() == 1


def run_layers(lstm: nn.LSTM, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """`lstm(x, state)` of one item [1, L, C] with `run_direction`; one-directional LSTMs only."""
    y, ends = x[0], []
    for layer in range(lstm.num_layers):
        start = None if state is None else (state[0][layer, 0], state[1][layer, 0])
        y, end = run_direction(lstm, f"_l{layer}", y, start)
        ends.append(end)
    h, c = (torch.stack(parts)[:, None] for parts in zip(*ends, strict=True))
    return y[None], (h, c)


def run_direction(
    lstm: nn.LSTM, suffix: str, x: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """One layer and direction of a large LSTM over one item, [L, C] -> [L, H] and its last state.

    Each step reads all recurrent weights (16 MB at full size), and that is what it costs. Every
    second step reads them in the opposite order, so that it finds what the step before read last
    still in the cache.

    Args:
        lstm: where the weights are.
        suffix: which of them: `_l0`, `_l0_reverse`, `_l1` and so on.
        x: the input in the order of this direction.
        state: h and c, [H] each; None for zeros.
    """
    w_in, w, b_in, b = (
        cast(Tensor, getattr(lstm, f"{name}{suffix}")).detach()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    size, num_steps = lstm.hidden_size, len(x)
    inputs = torch.addmm(b_in + b, x, w_in.t()).view(num_steps, 4, size)
    outputs = x.new_empty(num_steps, size)
    gates = x.new_empty(4, size)
    in_and_forget, cell_gate, out_gate = gates[:2], gates[2], gates[3]
    in_gate, forget_gate = in_and_forget
    h, c = (x.new_zeros(size), x.new_zeros(size)) if state is None else state
    c, squashed = c.clone(), x.new_empty(size)
    weights, sums = w.view(4, size, size).unbind(0), gates.unbind(0)
    orders = ((0, 1, 2, 3), (3, 2, 1, 0))
    for step, (given, output) in enumerate(zip(inputs, outputs, strict=True)):
        parts = given.unbind(0)
        for gate in orders[step % 2]:
            torch.addmv(parts[gate], weights[gate], h, out=sums[gate])
        in_and_forget.sigmoid_()
        cell_gate.tanh_()
        out_gate.sigmoid_()
        c.mul_(forget_gate).addcmul_(in_gate, cell_gate)
        torch.mul(torch.tanh(c, out=squashed), out_gate, out=output)
        h = output
    return outputs, (h.clone(), c)


@dataclass(frozen=True)
class FastCodec:
    """Encoder and decoder of a codec for this path."""

    encoder: FastEncoder
    decoder: FastDecoder | FastSpectralDecoder


class WeightState:
    """The weights that a fast form was made of; says whether they still are what they were.

    Looks at addresses, torch's counts of changes, and a few values of each: writes through `.data`,
    and to weights made in inference mode, are not counted.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._key, self._values = self._look(parameters), self._sample(parameters)

    def are(self, parameters: Sequence[Tensor]) -> bool:
        """Whether these are the same weights, unchanged."""
        is_same = self._key == self._look(parameters)
        return is_same and torch.equal(self._sample(parameters), self._values)

    @staticmethod
    def _look(parameters: Sequence[Tensor]) -> list[tuple[int, int]]:
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]

    @staticmethod
    def _sample(parameters: Sequence[Tensor]) -> Tensor:
        """Some nine values of each; an odd step meets every row, column and tap."""
        return torch.cat([p.detach().flatten()[:: max(1, p.numel() // 8) | 1] for p in parameters])


def fast_codec(codec: "Codec") -> FastCodec | None:
    """The codec's fast form; None where only the plain path is right.

    That is: on another device, in training (weights change with every step), with weight
    normalization in place, in another dtype or precision, or under autocast. The form is made at
    the first use and made anew when weights were changed or replaced.
    """
    parameters = [*codec.encoder.parameters(), *codec.decoder.parameters()]
    if (
        codec.training
        or codec.precision != "float32"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters)
        or any(parametrize.is_parametrized(m) for m in codec.modules())
    ):
        codec.__dict__.pop("_fast", None)  # its memory is wanted elsewhere
        return None
    kept: tuple[WeightState, FastCodec] | None = codec.__dict__.get("_fast")
    if kept is None or not kept[0].are(parameters):
        weights = WeightState(parameters)
        decoder = (
            FastSpectralDecoder(codec.decoder)
            if isinstance(codec.decoder, SpectralDecoder)
            else FastDecoder(codec.decoder)
        )
        kept = (weights, FastCodec(FastEncoder(codec.encoder), decoder))
        codec.__dict__["_fast"] = kept
    return kept[1]
