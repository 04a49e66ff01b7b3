"""SEANet encoder and decoder: waveform to latents at the frame rate, and back.

Reference: Tagliasacchi et al. 2020, arXiv:2009.02095; with the LSTM of Défossez et al. 2022,
arXiv:2210.13438. All layers take the items' own lengths, see conv.py.
"""

from math import prod
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from dmcodec.codec.conv import Conv1d, ConvTranspose1d, Memory, ceil_div
from dmcodec.codec.lstm import SkipLSTM
from dmcodec.config import Record

MAX_HOP_LENGTH = 65535
"""Samples: what a .dmc file can say."""
MAX_WEIGHTS = 4_000_000_000


class SEANetConfig(Record):
    """Sizes of encoder and decoder; the defaults are the paper's (arXiv:2410.15017)."""

    num_filters: int = Field(64, ge=2, le=4096, multiple_of=2, description="channels at full rate")
    strides: tuple[PositiveInt, ...] = Field(
        (2, 4, 5, 8), min_length=1, max_length=12, description="encoder order"
    )
    latent_dim: int = Field(1024, ge=1, le=65536)
    kernel_size: int = Field(7, ge=1, le=1023, description="of the first and the last convolution")
    residual_kernel_size: int = Field(3, ge=1, le=1023)
    num_residual_layers: int = Field(1, ge=0, le=32)
    dilation_base: int = Field(2, ge=1, le=32)
    num_lstm_layers: int = Field(2, ge=1, le=32)
    is_encoder_bidirectional: bool = True
    is_causal: bool = Field(
        False, description="convolutions look back only: with an encoder of one direction, streams"
    )
    activation: Literal["elu", "snake"] = "elu"

    @model_validator(mode="after")
    def _check_directions(self) -> Self:
        if self.is_causal and self.is_encoder_bidirectional:
            raise ValueError("is_causal needs is_encoder_bidirectional = false")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """Refuses, before anything is built, what no machine could hold."""
        if self.hop_length > MAX_HOP_LENGTH:
            raise ValueError(f"strides multiply to {self.hop_length}; at most {MAX_HOP_LENGTH}")
        dilation = self.dilation_base ** max(0, self.num_residual_layers - 1)
        if dilation * self.residual_kernel_size > MAX_HOP_LENGTH:
            raise ValueError(f"dilation_base reaches a dilation of {dilation}; take a smaller one")
        if self.num_weights > MAX_WEIGHTS:
            raise ValueError(
                f"encoder and decoder would have {self.num_weights:.1e} weights; "
                f"at most {MAX_WEIGHTS:.0e}"
            )
        return self

    @property
    def num_weights(self) -> int:
        """About how many weights encoder and decoder have, to a few percent."""
        channels = [self.num_filters << level for level in range(len(self.strides) + 1)]
        unit = self.residual_kernel_size / 2 + 1.5
        total = 2 * self.kernel_size * (channels[0] + 1.5 * channels[-1] * self.latent_dim)
        for width, stride in zip(channels, self.strides, strict=False):
            total += 2 * width**2 * (self.num_residual_layers * unit + 4 * stride)
        return round(total + 24 * self.num_lstm_layers * channels[-1] ** 2)

    @property
    def hop_length(self) -> int:
        """Samples per frame: the product of the strides."""
        return prod(self.strides)


class Snake(nn.Module):
    """x + sin(a x)^2 / a with one a for each channel, [B, C, T] -> [B, C, T].

    Reference: Ziyin et al. 2020, arXiv:2006.08195; found in some published checkpoints.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the activation."""
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


class ELU(nn.Module):
    """Exponential linear unit, x for x > 0 and exp(x) - 1 below."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies the activation."""
        return F.elu(x)


def make_activation(config: SEANetConfig, channels: int) -> nn.Module:
    """The activation named in the configuration."""
    return Snake(channels) if config.activation == "snake" else ELU()


class ResidualUnit(nn.Module):
    """Two convolutions through half the channels beside a 1 x 1 shortcut, [B, C, T] -> same."""

    def __init__(self, config: SEANetConfig, channels: int, *, dilation: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.activation_in = make_activation(config, channels)
        self.conv_in = Conv1d(
            channels,
            hidden,
            kernel_size=config.residual_kernel_size,
            dilation=dilation,
            is_causal=config.is_causal,
        )
        self.activation_out = make_activation(config, hidden)
        self.conv_out = Conv1d(hidden, channels, kernel_size=1)
        self.shortcut = Conv1d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Adds the unit's output to the shortcut's."""
        y = self.conv_in(self.activation_in(x), lengths)
        return self.shortcut(x) + self.conv_out(self.activation_out(y))

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """`forward` of the next steps; the other convolutions see one step at a time."""
        y = self.conv_in.step(self.activation_in(x), memory)
        return self.shortcut(x) + self.conv_out(self.activation_out(y))


class ResidualStack(nn.Module):
    """The residual units of one block, with growing dilation."""

    def __init__(self, config: SEANetConfig, channels: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            ResidualUnit(config, channels, dilation=config.dilation_base**i)
            for i in range(config.num_residual_layers)
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Runs the units in turn, [B, C, T] -> same."""
        for unit in cast(list[ResidualUnit], self.units):
            x = unit(x, lengths)
        return x

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """`forward` of the next steps."""
        for unit in cast(list[ResidualUnit], self.units):
            x = unit.step(x, memory)
        return x

    @property
    def reach(self) -> int:
        """Steps on either side that a step of the result depends on."""
        return sum(unit.conv_in.reach for unit in cast(list[ResidualUnit], self.units))


def initialize(module: nn.Module, *, input_gain: float, output_gain: float) -> None:
    """Gives the convolutions weights that keep the size of a signal from layer to layer.

    PyTorch's default start shrinks it to a third per layer: after SEANet's depth the latents hardly
    depend on the waveform, and training stands still for its first thousands of steps
    (docs/log.md). Biases start at zero; `input_gain` and `output_gain` are the sizes given by the
    first and last convolution.
    """
    if any(weight.is_meta for weight in module.parameters()):
        return  # to be filled from a file; drawing would load torch's compiler (3 s)
    elu_gain = 1.55**0.5  # ELU passes 0.645 of the power of normally distributed input
    for name, layer in module.named_modules():
        if isinstance(layer, Conv1d | ConvTranspose1d):
            conv = layer.conv
            channels = conv.in_channels
            taps = 2 if isinstance(layer, ConvTranspose1d) else conv.kernel_size[0]
            gain = 1.0 if name.endswith("shortcut") else elu_gain
            gain *= {"conv_in": input_gain, "conv_out": output_gain}.get(name, 1.0)
            if ".units." in name and name.endswith("conv_out"):
                gain *= 0.5  # the residual branch starts as a correction of the shortcut
            nn.init.normal_(conv.weight, std=gain / (channels * taps) ** 0.5)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)


class EncoderBlock(nn.Module):
    """Residual units, then a strided convolution, [B, C, T] -> [B, 2 C, ceil(T / stride)]."""

    def __init__(self, config: SEANetConfig, channels: int, *, stride: int) -> None:
        super().__init__()
        self.residual = ResidualStack(config, channels)
        self.activation = make_activation(config, channels)
        self.downsample = Conv1d(
            channels,
            2 * channels,
            kernel_size=2 * stride,
            stride=stride,
            is_causal=config.is_causal,
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Runs the block."""
        return self.downsample(self.activation(self.residual(x, lengths)), lengths)

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """`forward` of the next steps."""
        return self.downsample.step(self.activation(self.residual.step(x, memory)), memory)


class DecoderBlock(nn.Module):
    """A transposed convolution, then residual units, [B, 2 C, T] -> [B, C, T * stride]."""

    def __init__(self, config: SEANetConfig, channels: int, *, stride: int) -> None:
        super().__init__()
        self.activation = make_activation(config, 2 * channels)
        self.upsample = ConvTranspose1d(
            2 * channels, channels, stride=stride, is_causal=config.is_causal
        )
        self.residual = ResidualStack(config, channels)

    def forward(self, x: Tensor, lengths: Tensor | None, stride: int) -> Tensor:
        """Runs the block; `lengths` are those of the input."""
        x = self.upsample(self.activation(x), lengths)
        return self.residual(x, None if lengths is None else lengths * stride)

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """`forward` of the next steps."""
        return self.residual.step(self.upsample.step(self.activation(x), memory), memory)


class Encoder(nn.Module):
    """Waveform [B, 1, T] -> latents [B, D, ceil(T / hop_length)]."""

    def __init__(self, config: SEANetConfig) -> None:
        super().__init__()
        self.strides, self.is_causal = config.strides, config.is_causal
        self.hop_length = config.hop_length
        channels = config.num_filters
        self.conv_in = Conv1d(
            1, channels, kernel_size=config.kernel_size, is_causal=config.is_causal
        )
        blocks = []
        for stride in config.strides:
            blocks.append(EncoderBlock(config, channels, stride=stride))
            channels *= 2
        self.blocks = nn.ModuleList(blocks)
        self.lstm = SkipLSTM(
            channels,
            num_layers=config.num_lstm_layers,
            is_bidirectional=config.is_encoder_bidirectional,
        )
        channels *= 2 if config.is_encoder_bidirectional else 1
        self.activation = make_activation(config, channels)
        self.conv_out = Conv1d(
            channels,
            config.latent_dim,
            kernel_size=config.kernel_size,
            is_causal=config.is_causal,
        )
        initialize(self, input_gain=10.0, output_gain=1.0)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encodes; `lengths` [B] in samples, None when every item fills T."""
        x = self.convolve(waveform, lengths)
        frames = None if lengths is None else ceil_div(lengths, self.hop_length)
        x = self.lstm(x, frames)
        return self.conv_out(self.activation(x), frames)

    def convolve(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The part before the LSTM, [B, 1, T] -> [B, C, ceil(T / hop_length)]."""
        if self.is_causal:  # the last frame is filled with silence, as at the end of a stream
            waveform = F.pad(waveform, (0, -waveform.shape[-1] % self.hop_length))
        x = self.conv_in(waveform, lengths)
        for stride, block in zip(self.strides, self.blocks, strict=True):
            x = block(x, lengths)
            if lengths is not None:
                lengths = ceil_div(lengths, stride)
        return x

    def step(self, waveform: Tensor, memory: Memory) -> Tensor:
        """`forward` of the next whole frames of streams [B, 1, T]; causal encoders only."""
        x = self.conv_in.step(waveform, memory)
        for block in cast(list[EncoderBlock], self.blocks):
            x = block.step(x, memory)
        x = self.lstm.step(x, memory)
        return self.conv_out.step(self.activation(x), memory)

    @property
    def reach_frames(self) -> int:
        """Frames on either side that a frame before the LSTM depends on."""
        reach, step = self.conv_in.reach, 1  # in samples
        for stride, block in zip(self.strides, cast(list[EncoderBlock], self.blocks), strict=True):
            reach += step * (block.residual.reach + block.downsample.reach)
            step *= stride
        return ceil_div(reach, self.hop_length)


class Decoder(nn.Module):
    """Quantized latents [B, D, L] -> waveform [B, 1, L * hop_length]."""

    def __init__(self, config: SEANetConfig) -> None:
        super().__init__()
        self.strides, self.hop_length = tuple(reversed(config.strides)), config.hop_length
        channels = config.num_filters * 2 ** len(config.strides)
        self.conv_in = Conv1d(
            config.latent_dim,
            channels,
            kernel_size=config.kernel_size,
            is_causal=config.is_causal,
        )
        self.lstm = SkipLSTM(channels, num_layers=config.num_lstm_layers, is_bidirectional=False)
        blocks = []
        for stride in self.strides:
            channels //= 2
            blocks.append(DecoderBlock(config, channels, stride=stride))
        self.blocks = nn.ModuleList(blocks)
        self.activation = make_activation(config, channels)
        self.conv_out = Conv1d(
            channels, 1, kernel_size=config.kernel_size, is_causal=config.is_causal
        )
        initialize(self, input_gain=1.0, output_gain=0.05)

    def forward(self, quantized: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Decodes; `lengths` [B] in frames, None when every item fills L."""
        return self.convolve(self.lstm(self.conv_in(quantized, lengths), lengths), lengths)

    def convolve(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The part after the LSTM, [B, C, L] -> [B, 1, L * hop_length]."""
        for stride, block in zip(self.strides, self.blocks, strict=True):
            x = block(x, lengths, stride)
            if lengths is not None:
                lengths = lengths * stride
        return self.conv_out(self.activation(x), lengths)

    def step(self, quantized: Tensor, memory: Memory) -> Tensor:
        """`forward` of the next frames of streams; causal decoders only."""
        x = self.lstm.step(self.conv_in.step(quantized, memory), memory)
        for block in cast(list[DecoderBlock], self.blocks):
            x = block.step(x, memory)
        return self.conv_out.step(self.activation(x), memory)

    @property
    def reach_frames(self) -> int:
        """Frames next to a cut after the LSTM whose samples depend on what is beyond the cut."""
        reach = 0  # in steps of the block
        for stride, block in zip(self.strides, cast(list[DecoderBlock], self.blocks), strict=True):
            reach = reach * stride + max(block.upsample.trim_left, block.upsample.trim_right)
            reach += block.residual.reach
        return ceil_div(reach + self.conv_out.reach, self.hop_length)
