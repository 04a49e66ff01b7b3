"""The period discriminator: looks at every p-th sample.

One network per period; the ensemble holds several.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

_KERNEL_SIZE = 5
_STRIDE = 3
_LEAKY_SLOPE = 0.1


class PeriodDiscriminator(nn.Module):
    """Convolutions down the columns of a waveform folded into rows of `period` samples.

    One convolution per entry of `channels`, all with stride 3 but the last. Kernels are one column
    wide, so columns never mix: each is the waveform at every `period`-th sample.

    Reference: Kong et al. 2020, arXiv:2010.05646, sec. 2.3 and appendix A.2.
    """

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        if period < 1:
            raise ValueError(f"period must be at least 1 sample, got {period}")
        if not channels:
            raise ValueError("channels must name at least one layer, got none")
        self.period = period
        widths = list(pairwise((1, *channels)))
        strides = [_STRIDE] * (len(widths) - 1) + [1]
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv2d(
                    num_in,
                    num_out,
                    (_KERNEL_SIZE, 1),
                    stride=(stride, 1),
                    padding=(_KERNEL_SIZE // 2, 0),
                )
            )
            for (num_in, num_out), stride in zip(widths, strides, strict=True)
        )
        self.head = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and feature maps of a waveform.

        Args:
            waveform: `[B, 1, T]`, any T from 1; continued to whole rows by reflection (by zeros
                where it is too short to be reflected).

        Returns:
            Logits `[B, 1, T', period]` and the feature maps `[B, channels, ..., period]`: each
            activation, then the logits, as in HiFi-GAN.
        """
        batch_size, _, num_samples = waveform.shape
        num_missing = -num_samples % self.period
        if num_missing:
            mode = "reflect" if num_missing < num_samples else "constant"
            waveform = F.pad(waveform, (0, num_missing), mode=mode)
        activations = waveform.view(batch_size, 1, -1, self.period)  # [B, 1, rows, period]
        feature_maps = []
        for layer in cast(list[nn.Conv2d], self.layers):
            activations = F.leaky_relu(layer(activations), _LEAKY_SLOPE)
            feature_maps.append(activations)
        logits = self.head(activations)
        return logits, [*feature_maps, logits]
