"""All discriminators of one training, as one module with one record for its sizes.

Which kinds take part and how wide they are is decided here; their layers are in `period.py`,
`scale.py`, `stft.py` and `log_stft.py`.
"""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from dmcodec.discriminators.log_stft import LogStftDiscriminator
from dmcodec.discriminators.period import PeriodDiscriminator
from dmcodec.discriminators.scale import NUM_SCALE_LAYERS, ScaleDiscriminator
from dmcodec.discriminators.stft import StftDiscriminator

Size = Annotated[int, Field(ge=1, le=1 << 14)]

TransformSize = Annotated[int, Field(ge=4, le=1 << 18, multiple_of=4)]


class DiscriminatorConfig(BaseModel):
    """Kinds and sizes of the discriminators; the defaults are the paper's full size.

    An empty `periods`, `n_ffts` or `log_n_ffts`, or `num_scales = 0`, leaves that kind out.

    Attributes:
        periods: in samples, one period discriminator each.
        period_channels: widths of their layers.
        num_scales: scale discriminators, on the waveform and on successive halvings of its rate.
        scale_channels: widths of their seven layers.
        n_ffts: in samples, one STFT discriminator each; multiples of 4.
        stft_filters: width of every layer of theirs.
        log_n_ffts: in samples, one log-magnitude STFT discriminator each; multiples of 4. None in
            the paper.
        log_stft_channels: widths of their layers.

    Reference: Kong et al. 2020, arXiv:2010.05646 (period, scale); Défossez et al. 2022,
    arXiv:2210.13438 (STFT).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    periods: tuple[Size, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[Size, ...] = Field(default=(32, 128, 512, 1024, 1024), min_length=1)
    num_scales: int = Field(default=3, ge=0, le=16)
    scale_channels: tuple[Size, ...] = Field(
        default=(128, 128, 256, 512, 1024, 1024, 1024),
        min_length=NUM_SCALE_LAYERS,
        max_length=NUM_SCALE_LAYERS,
    )
    n_ffts: tuple[TransformSize, ...] = (2048, 1024, 512, 256, 128)
    stft_filters: int = Field(default=32, ge=1, le=4096)
    log_n_ffts: tuple[TransformSize, ...] = ()
    log_stft_channels: tuple[Size, ...] = Field(default=(16, 16, 16), min_length=1)

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not (self.periods or self.num_scales or self.n_ffts or self.log_n_ffts):
            raise ValueError(
                "no discriminator left: give periods, num_scales, n_ffts or log_n_ffts"
            )
        return self


@dataclass(frozen=True)
class DiscriminatorOutput:
    """What the discriminators say of one batch, one entry per sub-discriminator.

    The order is that of the configuration: periods, scales, transform sizes, those on logarithms.
    Logits are `[B, 1, ...]`, higher for original waveforms; feature maps are the hidden
    activations.
    """

    logits: list[Tensor]
    feature_maps: list[list[Tensor]]


class Discriminators(nn.Module):
    """Discriminators of all kinds, run one after the other."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, config.period_channels) for period in config.periods),
                *(
                    ScaleDiscriminator(num_halvings, config.scale_channels)
                    for num_halvings in range(config.num_scales)
                ),
                *(StftDiscriminator(n_fft, config.stft_filters) for n_fft in config.n_ffts),
                *(
                    LogStftDiscriminator(n_fft, config.log_stft_channels)
                    for n_fft in config.log_n_ffts
                ),
            ]
        )

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        """Judge a batch of waveforms.

        Args:
            waveform: `[B, 1, T]`, any T from 1.

        Returns:
            Logits and feature maps of every sub-discriminator.

        Raises:
            ValueError: the waveform is not `[B, 1, T]`, or is empty.
        """
        if waveform.ndim != 3 or waveform.shape[1] != 1 or waveform.shape[2] == 0:
            raise ValueError(f"waveform must be [B, 1, T], T >= 1, got {list(waveform.shape)}")
        logits, feature_maps = [], []
        for part in self.parts:
            part_logits, part_maps = part(waveform)
            logits.append(part_logits)
            feature_maps.append(part_maps)
        return DiscriminatorOutput(logits, feature_maps)
