"""The log-magnitude STFT discriminator: sees a spectrogram as the ear does, quiet parts included.

One network per transform size; the ensemble holds several.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dmcodec.spectral import stft

_NUM_HALVINGS = 2
"""So many layers are 3 x 9 and halve the frequencies; the ones after them are 3 x 3."""
_LEAKY_SLOPE = 0.1
# In a spectrum of unit window energy, where rounding to 16 bits has a power of 8e-11. Speech of
# the validation list then has logarithms of mean -6.2 and deviation 1.9, whatever the n_fft.
_POWER_FLOOR = 3e-8
_LOG_MEAN, _LOG_DEVIATION = -6.2, 2.0


class LogStftDiscriminator(nn.Module):
    """Two-dimensional convolutions over frames and frequencies of a log-magnitude STFT.

    Window `n_fft`, hop half of it: more overlap costs more than it tells (docs/log.md).

    On linear spectra small networks see the loud low frequencies only and stay at chance, while
    the ear hears the smoothed high bands 40 dB below at once; on logarithms they learn within
    a hundred steps (docs/log.md).

    Reference: Jang et al. 2021, arXiv:2106.07889 (magnitudes of several resolutions, linear there).
    """

    def __init__(self, n_fft: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.n_fft = n_fft
        layers = []
        for number, (num_in, num_out) in enumerate(pairwise((1, *channels))):
            is_halving = number < _NUM_HALVINGS
            kernel, stride = ((3, 9), (1, 2)) if is_halving else ((3, 3), (1, 1))
            padding = (kernel[0] // 2, kernel[1] // 2)
            layers.append(nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=padding))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.head = weight_norm(nn.Conv2d(channels[-1], 1, (3, 3), padding=(1, 1)))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits `[B, 1, L, F']` and activations `[B, channels, L, ...]` of `[B, 1, T]`."""
        hop_length = self.n_fft // 2
        # Whole hops: a window's ends weigh little, and the last samples would have no other.
        waveform = F.pad(waveform[:, 0], (0, -waveform.shape[-1] % hop_length))
        spectrum = stft(waveform, self.n_fft, hop_length, self.n_fft)  # [B, F, L]
        power = spectrum.real.square() + spectrum.imag.square()
        power = power / (3 * self.n_fft / 8)  # the energy of a periodic Hann window
        logs = 0.5 * (power + _POWER_FLOOR).log()
        activations = ((logs - _LOG_MEAN) / _LOG_DEVIATION).transpose(1, 2)[:, None]  # [B, 1, L, F]
        feature_maps = []
        for layer in cast(list[nn.Conv2d], self.layers):
            activations = F.leaky_relu(layer(activations), _LEAKY_SLOPE)
            feature_maps.append(activations)
        return self.head(activations), feature_maps
