"""Convolutions that keep exact lengths, alone or in a batch of mixed lengths.

A strided convolution here gives ceil(T / stride) steps for any T from 1 up, and a transposed one
gives T * stride. Borders are reflected. In a batch of mixed lengths each item is reflected at its
own end, so that its result is the one it has alone: that is what `lengths` is for.

Causal layers look back only: zeros before the start, none of the future, and nothing after an
item's end can reach it.
"""

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

Count = TypeVar("Count", int, Tensor)


def ceil_div(numerator: Count, denominator: int) -> Count:
    """Division of an integer, or of a tensor of integers, rounded up."""
    return -(-numerator // denominator)


class Memory:
    """What causal layers keep of a stream from one chunk to the next, layer by layer.

    Every layer, in the order in which they run, takes what it kept, and adds to `new` what it
    keeps this time; what was given is left as it is.
    """

    def __init__(self, old: tuple[Tensor, ...] | None) -> None:
        """Takes the `new` of the chunk before; None before the first."""
        self._old: Iterator[Tensor] | None = None if old is None else iter(old)
        self.new: list[Tensor] = []

    def take(self, number: int) -> tuple[Tensor, ...] | None:
        """The next tensors of the old; None before the first chunk."""
        return None if self._old is None else tuple(islice(self._old, number))

    def put_before(self, x: Tensor, num_steps: int) -> Tensor:
        """[B, C, T] -> [B, C, num_steps + T]: the steps before x, zeros before the first chunk."""
        old = self.take(1)
        past = x.new_zeros(x.shape[0], x.shape[1], num_steps) if old is None else old[0]
        x = torch.cat([past, x], dim=-1)
        self.new.append(x[..., x.shape[-1] - num_steps :].clone())
        return x


class Conv1d(nn.Module):
    """Convolution with reflected borders, [B, C_in, T] -> [B, C_out, ceil(T / stride)].

    Reference: Défossez et al. 2022, arXiv:2210.13438 (non-causal form).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        is_causal: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation
        )
        self.stride = stride
        # With so many steps around them, T steps hold exactly T / stride windows.
        padding = (kernel_size - 1) * dilation + 1 - stride
        self.is_causal = is_causal
        self.padding_right = 0 if is_causal else padding // 2
        self.padding_left = padding - self.padding_right

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Convolves; `lengths` [B] are the items' own lengths, None when all are T.

        Steps of the result beyond ceil(length / stride) are meaningless and are never read by the
        next layer of this module.
        """
        if self.is_causal:
            fill = -x.shape[-1] % self.stride  # up to a whole step
            return self.conv(F.pad(x, (self.padding_left, fill)))
        padded = pad_reflect(x, self.padding_left, self.padding_right, self.stride, lengths)
        return self.conv(padded)

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """The next T steps of causal layers, a multiple of the stride: [B, C_out, T / stride]."""
        return self.conv(memory.put_before(x, self.padding_left))

    @property
    def reach(self) -> int:
        """Steps on either side, at most, that a step of the result depends on."""
        return max(self.padding_left, self.padding_right)


class ConvTranspose1d(nn.Module):
    """Transposed convolution of kernel 2 * stride, [B, C_in, T] -> [B, C_out, T * stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, is_causal: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride)
        # It gives (T + 1) * stride steps, as those of a step overlap the next one's by half:
        # `stride` of them are cut off.
        self.trim_right = stride if is_causal else stride // 2
        self.trim_left = stride - self.trim_right

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Upsamples; `lengths` [B] are the items' own lengths, None when all are T."""
        if lengths is not None:
            # Alone, an item has nothing after its end; in a batch it must have zeros there.
            x = x.masked_fill(~length_mask(lengths, x.shape[-1])[:, None], 0.0)
        y = self.conv(x)
        return y[..., self.trim_left : y.shape[-1] - self.trim_right]

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """The next T steps of causal layers, [B, C_out, T * stride]."""
        y = self.conv(memory.put_before(x, 1))  # [B, C_out, (T + 2) * stride]
        # The first `stride` steps came with the step before, the last lack the step to come.
        return y[..., self.trim_right : y.shape[-1] - self.trim_right]


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Boolean [B, size], true where a position lies within the item's length [B]."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def pad_reflect(x: Tensor, left: int, right: int, stride: int, lengths: Tensor | None) -> Tensor:
    """Pads [B, C, T] so that a convolution over left + right + stride steps gives ceil(T / stride).

    Each item is filled up to a multiple of the stride and both borders mirror the item's own
    samples. An item too short to be mirrored is first continued with zeros, as in EnCodec.
    """
    size = x.shape[-1]
    fill = -size % stride
    if left + right + stride == 1:  # a kernel of one step
        return x
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _pad_reflect_traced(x, left, right, stride)
    if lengths is None and size > max(left, right + fill):
        return F.pad(x, (left, right + fill), mode="reflect")
    if lengths is None:
        lengths = torch.full((x.shape[0],), size, device=x.device)
    lengths = lengths[:, None]  # [B, 1]
    right_each = right + (-lengths) % stride  # [B, 1], with the item's own fill
    # The position to mirror at: an item's last sample, or a zero that continues a short item.
    pivot = torch.maximum(lengths, right_each.clamp(min=left) + 1) - 1
    # `source` says where in an item the positions -before and `after` around it take their samples.
    # After its end there are as many as the largest fill needs; those beyond the item's own fill no
    # step within its length looks at.
    before = torch.arange(left, 0, -1, device=x.device).expand(x.shape[0], left)
    after = lengths + torch.arange(right + stride - 1, device=x.device)  # [B, right + stride - 1]
    source = torch.cat([before, torch.where(after <= pivot, after, 2 * pivot - after)], dim=1)
    is_sample = (source >= 0) & (source < lengths)
    index = source.clamp(0, size - 1)[:, None].expand(-1, x.shape[1], -1)
    values = x.gather(2, index).masked_fill(~is_sample[:, None], 0.0)
    target = torch.cat([left - before, left + after], dim=1)
    padded = F.pad(x, (left, right + stride - 1))
    return padded.scatter_(2, target[:, None].expand(-1, x.shape[1], -1), values)


def _pad_reflect_traced(x: Tensor, left: int, right: int, stride: int) -> Tensor:
    """`pad_reflect` of items that fill T, for export: right for any T, not the traced one only."""
    size = torch._shape_as_tensor(x)[2]  # a tensor: as a number it would be a constant of the file
    right_each = right + (-size) % stride
    pivot = torch.maximum(size, right_each.clamp(min=left) + 1) - 1
    after = size + torch.arange(right_each)  # type: ignore[call-overload]
    source = torch.cat(
        [torch.arange(left, 0, -1), torch.where(after <= pivot, after, 2 * pivot - after)]
    )
    # [B, C, left + right_each], zero where a short item was continued
    values = x.index_select(2, source.clamp(max=size - 1)) * (source < size).to(x.dtype)
    return torch.cat([values[..., :left], x, values[..., left:]], dim=2)


def add_weight_norm(module: nn.Module) -> None:
    """Splits the weight of every convolution inside into direction and size, in place.

    Training does this and undoes it: a codec at rest, saved or loaded holds plain weights.
    Reference: Salimans and Kingma 2016, arXiv:1602.07868.
    """
    for conv in convolutions(module):
        if not parametrize.is_parametrized(conv):
            parametrizations.weight_norm(conv, "weight")


def remove_weight_norm(module: nn.Module) -> None:
    """Folds direction and size back into plain weights, in place."""
    for conv in convolutions(module):
        if parametrize.is_parametrized(conv):
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=True)


def convolutions(module: nn.Module) -> list[nn.Module]:
    """The convolutions of torch in all layers of this file inside."""
    kinds = (Conv1d, ConvTranspose1d)
    return [cast(nn.Module, m.conv) for m in module.modules() if isinstance(m, kinds)]
