"""The scale discriminator: looks at the waveform, or at a smoothed and decimated copy of it.

One network per scale; the ensemble holds several.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

# Kernel size, stride and largest number of groups of each layer.
_LAYERS = ((15, 1, 1), (41, 2, 4), (41, 2, 16), (41, 4, 16), (41, 4, 16), (41, 1, 16), (5, 1, 1))
_MIN_CHANNELS_PER_GROUP = 8
_LEAKY_SLOPE = 0.1

NUM_SCALE_LAYERS = len(_LAYERS)


class ScaleDiscriminator(nn.Module):
    """Grouped one-dimensional convolutions on a waveform halved `num_halvings` times.

    `channels` gives the width of each of the seven layers. Groups are those of the paper at its
    sizes, and fewer where a group would read less than eight channels.

    Reference: Kong et al. 2020, arXiv:2010.05646, sec. 2.3 and appendix A.2, after Kumar et al.
    2019, arXiv:1910.06711. Deviation: weight normalisation at every scale (there spectral
    normalisation at the first), so that no forward pass changes state.
    """

    def __init__(self, num_halvings: int, channels: Sequence[int]) -> None:
        super().__init__()
        if num_halvings < 0:
            raise ValueError(f"num_halvings must not be negative, got {num_halvings}")
        if len(channels) != NUM_SCALE_LAYERS:
            raise ValueError(f"channels must have {NUM_SCALE_LAYERS} entries, got {len(channels)}")
        self.num_halvings = num_halvings
        num_in = 1
        layers = []
        for num_out, (kernel_size, stride, max_groups) in zip(channels, _LAYERS, strict=True):
            # Divides both widths, as groups must, and is at most num_in / 8, or 1.
            num_groups = math.gcd(
                max_groups, max(1, num_in // _MIN_CHANNELS_PER_GROUP), num_in, num_out
            )
            layers.append(
                nn.Conv1d(
                    num_in,
                    num_out,
                    kernel_size,
                    stride=stride,
                    groups=num_groups,
                    padding=kernel_size // 2,
                )
            )
            num_in = num_out
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.head = weight_norm(nn.Conv1d(num_in, 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and feature maps of a waveform.

        Args:
            waveform: `[B, 1, T]`, any T from 1.

        Returns:
            Logits `[B, 1, T']` and the feature maps `[B, channels, ...]`: each activation, then
            the logits, as in HiFi-GAN.
        """
        activations = waveform
        for _ in range(self.num_halvings):
            # [B, 1, T] -> [B, 1, T // 2 + 1], at half the rate
            activations = F.avg_pool1d(activations, kernel_size=4, stride=2, padding=2)
        feature_maps = []
        for layer in cast(list[nn.Conv1d], self.layers):
            activations = F.leaky_relu(layer(activations), _LEAKY_SLOPE)
            feature_maps.append(activations)
        logits = self.head(activations)
        return logits, [*feature_maps, logits]
