"""The complex-STFT discriminator: looks at real and imaginary parts at one resolution.

One network per transform size; the ensemble holds several.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dmcodec.spectral import stft

_TIME_DILATIONS = (1, 2, 4)
_LEAKY_SLOPE = 0.2


class StftDiscriminator(nn.Module):
    """Two-dimensional convolutions over frames and frequencies of a complex STFT.

    Window `n_fft`, hop `n_fft / 4`, spectrum scaled to unit window energy; a 3x9 convolution,
    three 3x9 convolutions dilated 1, 2, 4 in time with stride 2 in frequency, and a 3x3 one.

    Reference: Défossez et al. 2022, arXiv:2210.13438, sec. 3.4 and fig. 2. Deviation: the waveform
    is reflected at both ends, so that any length works and every sample is seen.
    """

    def __init__(self, n_fft: int, num_filters: int) -> None:
        super().__init__()
        if n_fft < 4 or n_fft % 4:
            raise ValueError(f"n_fft must be a positive multiple of 4, got {n_fft}")
        if num_filters < 1:
            raise ValueError(f"num_filters must be positive, got {num_filters}")
        self.n_fft = n_fft
        layers = [nn.Conv2d(2, num_filters, (3, 9), padding=(1, 4))]
        layers += [
            nn.Conv2d(
                num_filters,
                num_filters,
                (3, 9),
                stride=(1, 2),
                dilation=(dilation, 1),
                padding=(dilation, 4),  # keeps L, halves F
            )
            for dilation in _TIME_DILATIONS
        ]
        layers.append(nn.Conv2d(num_filters, num_filters, (3, 3), padding=(1, 1)))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.head = weight_norm(nn.Conv2d(num_filters, 1, (3, 3), padding=(1, 1)))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and feature maps of a waveform.

        Args:
            waveform: `[B, 1, T]`, any T from 1.

        Returns:
            Logits `[B, 1, L, F']` and the five activations `[B, num_filters, L, ...]`. The logits
            are not among the maps, as in EnCodec.
        """
        spectrum = stft(waveform[:, 0], self.n_fft, self.n_fft // 4, self.n_fft)  # [B, F, L]
        # The energy of a periodic Hann window of n samples is 3n/8.
        spectrum = spectrum * (3 * self.n_fft / 8) ** -0.5
        # [B, F, L, 2] -> [B, 2, L, F]: real and imaginary part are two channels
        activations = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        feature_maps = []
        for layer in cast(list[nn.Conv2d], self.layers):
            activations = F.leaky_relu(layer(activations), _LEAKY_SLOPE)
            feature_maps.append(activations)
        return self.head(activations), feature_maps
