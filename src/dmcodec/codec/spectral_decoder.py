"""The spectral decoder: quantized latents to the magnitudes and phases of an STFT, and its inverse.

All layers work at the frame rate (or a small multiple of it), so that a second of speech costs a
fraction of SEANet's, and learns in a fraction of the steps (docs/log.md). No layer looks further
than a few frames and none remembers: pieces with context equal the whole.

Reference: Siuzdak 2023, arXiv:2306.00814 (there from mel spectrograms); Liu et al. 2022,
arXiv:2201.03545 (the blocks). Deviations: the phase is a direction, not an angle, and borders are
zeros.
"""

import math
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from dmcodec.codec.conv import ceil_div, length_mask
from dmcodec.codec.seanet import MAX_WEIGHTS
from dmcodec.config import Record
from dmcodec.spectral import hann_window

_LARGEST_LOG_MAGNITUDE = 5.0
"""Keeps exp finite. A full-scale sine has magnitude n_fft / 4 in a Hann window, log 256 = 5.5 at
n_fft 1024; the loudest bin of the example recording, at full scale, has 4.0."""
_SMALLEST_SQUARED_LENGTH = 1e-8
"""Keeps the direction of a phase, and its gradient, finite where x and y are both zero."""
_SMALLEST_ENERGY = 1e-4
"""Within an item squared windows add up to 0.25 at least; beyond its end to nothing."""


class SpectralConfig(Record):
    """Sizes of the spectral decoder; the defaults are those of the bundled model.

    Attributes:
        channels: width of the blocks at the frame rate.
        num_blocks: how many of them.
        upsampling: steps a frame of the fine blocks and of the STFT.
        fine_channels: width of the blocks at the fine rate.
        num_fine_blocks: how many of them.
        kernel_size: steps that a block sees, odd.
        expansion: hidden width of a block over its width.
        n_fft: window and transform of the STFT in samples, at least two of its hops.
    """

    kind: Literal["spectral"] = "spectral"
    channels: int = Field(352, ge=1, le=4096)
    num_blocks: int = Field(6, ge=0, le=64)
    upsampling: int = Field(1, ge=1, le=64)
    fine_channels: int = Field(256, ge=1, le=4096)
    num_fine_blocks: int = Field(0, ge=0, le=64)
    kernel_size: int = Field(7, ge=1, le=1023)
    expansion: int = Field(3, ge=1, le=16)
    n_fft: int = Field(1024, ge=4, le=1 << 16, multiple_of=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        if self.num_weights > MAX_WEIGHTS:
            raise ValueError(
                f"the decoder would have {self.num_weights:.1e} weights; at most {MAX_WEIGHTS:.0e}"
            )
        return self

    @property
    def num_weights(self) -> int:
        """About how many weights the blocks and the head have."""
        widths = [self.channels] * self.num_blocks + [self.fine_channels] * self.num_fine_blocks
        blocks = sum(2 * self.expansion * width**2 for width in widths)
        return blocks + 2 * self.n_fft * max(self.channels, self.fine_channels)

    def check_hop_length(self, hop_length: int) -> None:
        """Raises ValueError where a frame of so many samples does not fit the STFT."""
        stft_hop_length = hop_length // self.upsampling
        if hop_length % self.upsampling or self.n_fft < 2 * stft_hop_length:
            raise ValueError(
                f"a frame of {hop_length} samples must be a whole number of hops (upsampling is "
                f"{self.upsampling}), and n_fft {self.n_fft} at least two of them"
            )
        if (self.n_fft - stft_hop_length) % 2:
            raise ValueError(f"n_fft {self.n_fft} less a hop of {stft_hop_length} must be even")


class TimeConv(nn.Module):
    """A convolution over time on time-major input, [B, L, C_in] -> [B, L, C_out], zeros around."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Convolves; steps where `mask` [B, L, 1] is false count as zeros."""
        if mask is not None:
            x = x.masked_fill(~mask, 0.0)
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution over time, then two layers on each step, added to the input.

    [B, L, C] -> [B, L, C].
    """

    def __init__(self, channels: int, *, kernel_size: int, expansion: int, scale: float) -> None:
        super().__init__()
        self.depthwise = TimeConv(channels, channels, kernel_size, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, expansion * channels)
        self.contract = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Runs the block; see `TimeConv` for `mask`."""
        y = self.contract(F.gelu(self.expand(self.norm(self.depthwise(x, mask)))))
        return x + self.scale * y


class SpectralDecoder(nn.Module):
    """Quantized latents [B, D, L] -> waveform [B, 1, L * hop_length]."""

    def __init__(self, config: SpectralConfig, *, latent_dim: int, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        config.check_hop_length(hop_length)
        self.upsampling, self.n_fft = config.upsampling, config.n_fft
        depth = max(1, config.num_blocks + config.num_fine_blocks)

        def blocks(number: int, channels: int) -> nn.ModuleList:
            return nn.ModuleList(
                ConvNeXtBlock(
                    channels,
                    kernel_size=config.kernel_size,
                    expansion=config.expansion,
                    scale=1 / depth,
                )
                for _ in range(number)
            )

        self.conv_in = TimeConv(latent_dim, config.channels, config.kernel_size, groups=1)
        self.norm_in = nn.LayerNorm(config.channels)
        self.blocks = blocks(config.num_blocks, config.channels)
        width = config.channels
        self.upsample: nn.Linear | None = None
        if config.upsampling > 1:
            width = config.fine_channels
            self.upsample = nn.Linear(config.channels, config.upsampling * width)
        self.fine_blocks = blocks(config.num_fine_blocks, width)
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3 * (config.n_fft // 2 + 1))
        self._initialize()

    @property
    def stft_hop_length(self) -> int:
        """Samples between the windows of the STFT."""
        return self.hop_length // self.upsampling

    @property
    def reach_frames(self) -> int:
        """Frames on either side of a frame that its samples depend on."""
        coarse = [self.conv_in, *(b.depthwise for b in cast(list[ConvNeXtBlock], self.blocks))]
        fine = [b.depthwise for b in cast(list[ConvNeXtBlock], self.fine_blocks)]
        steps = sum(c.conv.kernel_size[0] // 2 for c in fine)
        # Windows reach (n_fft - hop) / 2 samples beyond their own hop.
        steps += ceil_div(self.n_fft - self.stft_hop_length, 2 * self.stft_hop_length)
        return sum(c.conv.kernel_size[0] // 2 for c in coarse) + ceil_div(steps, self.upsampling)

    def forward(self, quantized: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Decodes; `lengths` [B] in frames, None when every item fills L."""
        mask = None if lengths is None else length_mask(lengths, quantized.shape[-1])[..., None]
        x = self.norm_in(self.conv_in(quantized.transpose(1, 2), mask))  # [B, L, C]
        for block in self.blocks:
            x = block(x, mask)
        if self.upsample is not None:
            width = self.upsample.out_features // self.upsampling
            x = self.upsample(x).reshape(x.shape[0], -1, width)  # [B, upsampling * L, C']
            mask = None if mask is None else mask.repeat_interleave(self.upsampling, dim=1)
        for block in self.fine_blocks:
            x = block(x, mask)
        return self.synthesize(self.head(self.norm_out(x)).float(), mask)

    def synthesize(self, spectra: Tensor, mask: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, N * stft_hop_length] of the head's N steps [B, N, 3 F]: inverse STFT.

        Step n is centred on the middle of its hop. Windows are added and divided by the sum of
        their squares: an STFT that belongs to a waveform gives that waveform back exactly.
        """
        # The phase is the direction of (x, y): an angle would jump where it wraps around.
        log_magnitude, x, y = spectra.chunk(3, dim=-1)  # [B, N, F] each
        magnitude = log_magnitude.clamp(max=_LARGEST_LOG_MAGNITUDE).exp()
        if mask is not None:  # steps beyond an item's end add nothing, and no window either
            magnitude = magnitude.masked_fill(~mask, 0.0)
        scale = magnitude * (x.square() + y.square() + _SMALLEST_SQUARED_LENGTH).rsqrt()
        real, imaginary = scale * x, scale * y
        window = hann_window(self.n_fft, spectra.device, spectra.dtype)
        is_there = torch.ones_like(real[..., :1]) if mask is None else mask.to(real.dtype)
        energy = self._overlap_add(is_there * window.square())  # [B, 1, N * stft_hop_length]
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            frames = _inverse_dft(real, imaginary, self.n_fft)  # ONNX has no inverse real FFT
        else:
            frames = torch.fft.irfft(torch.complex(real, imaginary), self.n_fft, dim=-1)
        return self._overlap_add(frames * window) / energy.clamp(min=_SMALLEST_ENERGY)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """[B, N, n_fft] -> [B, 1, N * stft_hop_length], cut alike on both sides."""
        hop, size = self.stft_hop_length, frames.shape[1]
        # As many hops as a window touches; zeros fill the last. The first hop of each window is
        # added at the window's own step, its second at the next step, and so on.
        num_hops = ceil_div(self.n_fft, hop)
        frames = F.pad(frames, (0, num_hops * hop - self.n_fft))
        summed = F.pad(frames[..., :hop], (0, 0, 0, num_hops - 1))  # [B, N + num_hops - 1, hop]
        for number in range(1, num_hops):
            part = frames[..., number * hop : (number + 1) * hop]  # [B, N, hop]
            summed = summed + F.pad(part, (0, 0, number, num_hops - 1 - number))
        left = (self.n_fft - hop) // 2  # a window is centred on its hop
        return summed.flatten(1)[:, None, left : left + size * hop]

    def _initialize(self) -> None:
        """Quiet at the start: magnitudes of exp(-2) and random phases."""
        if self.head.weight.is_meta:
            return
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        fan_in = math.prod(self.conv_in.conv.weight.shape[1:])
        nn.init.normal_(self.conv_in.conv.weight, std=fan_in**-0.5)
        with torch.no_grad():
            self.head.bias[: self.n_fft // 2 + 1] = -2.0


def _inverse_dft(real: Tensor, imaginary: Tensor, n_fft: int) -> Tensor:
    """`torch.fft.irfft` along the last axis as two matrix products, [..., F] -> [..., n_fft]."""
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    angles = frequencies * torch.arange(n_fft) * (2 * math.pi / n_fft)  # [F, n_fft]
    # Every frequency stands for its negative too, but for the first and the last.
    counts = torch.full_like(frequencies, 2.0 / n_fft)
    counts[0] = counts[-1] = 1.0 / n_fft
    cosines, sines = ((counts * basis).to(real.dtype) for basis in (angles.cos(), angles.sin()))
    return real @ cosines - imaginary @ sines
