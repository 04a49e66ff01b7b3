"""The speech-model teacher: a frozen speech encoder -> features on codec frames."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dmcodec.audio import Waveform
from dmcodec.config import Record
from dmcodec.pretrained.models import find_model, model_hash
from dmcodec.teachers.alignment import (
    FeatureTrack,
    FrameGrid,
    Word,
    interpolation_table,
    masked_track,
    resample_features,
)
from dmcodec.teachers.encoders import equal_sizes, load_encoder
from dmcodec.teachers.text import Layers


class SpeechTeacherConfig(Record):
    """A speech model and which of its layers teach.

    Attributes:
        model: by Hub name, folder or `package:NAME`: any Hugging Face speech encoder on raw
            waveforms, or a Whisper model, of Hugging Face or in a CTranslate2 folder.
        layers: mean of all hidden states, the last, or hidden state n.
    """

    model: str = "facebook/hubert-base-ls960"
    layers: Layers = "mean"


class SpeechTeacher:
    """A frozen speech model whose features lie on the codec's frames.

    A batch never changes features.
    """

    def __init__(self, config: SpeechTeacherConfig, grid: FrameGrid, device: str = "cpu") -> None:
        self.config = config
        self._encoder = load_encoder(config.model, config.layers, device)
        self._target = grid
        self._device = device
        self.feature_dim = self._encoder.feature_dim

    def features(self, waveforms: Tensor, num_samples: Tensor) -> list[Tensor]:
        """The model's own frames [L'_i, H] of waveforms [B, T] at 16 kHz, with gradient.

        Item i counts up to its `num_samples` [B].
        """
        if waveforms.ndim != 2 or num_samples.shape != waveforms.shape[:1]:
            raise ValueError(
                f"waveforms must be [B, T] and num_samples [B], got {list(waveforms.shape)} and "
                f"{list(num_samples.shape)}"
            )
        return self._encoder.features(waveforms, num_samples.tolist())

    def frame_features(
        self, waveforms: Tensor, num_samples: Tensor, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Features [B, L, H] on the codec's frames and their mask [B, L], with gradient.

        Frames beyond an item's samples are masked.
        """
        features, lengths = self.features(waveforms, num_samples), num_samples.tolist()
        values, masks = list(features), list(features)
        # Items of one length share a table: a batch of segments is then a few operations, not a few
        # hundred, which would keep a GPU waiting.
        for members in equal_sizes(range(len(lengths)), lengths):
            together = torch.stack([features[index] for index in members])  # [G, L', H]
            value, mask = self._on_codec_frames(together, lengths[members[0]], num_frames)
            for index, row in zip(members, value.unbind(), strict=True):
                values[index], masks[index] = row, mask
        return torch.stack(values), torch.stack(masks)

    @torch.inference_mode()
    def track(
        self, waveform: Waveform, text: str | None, utterance_id: str, num_frames: int
    ) -> tuple[FeatureTrack, list[Word]]:
        """Features of a whole utterance [T] at 16 kHz on `num_frames` frames; no words."""
        inputs = torch.from_numpy(waveform)[None].to(self._device)
        (features,) = self.features(inputs, torch.tensor([len(waveform)]))
        if len(features) == 0:
            return masked_track(num_frames, self.feature_dim), []
        values = features.float().cpu().numpy()
        return resample_features(values, self._encoder.grid, self._target, num_frames), []

    def _on_codec_frames(
        self, features: Tensor, num_samples: int, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Values [G, L, H] and mask [L] of features [G, L', H] of items of one length."""
        if features.shape[1] == 0:
            return (
                features.new_zeros(len(features), num_frames, self.feature_dim),
                torch.zeros(num_frames, dtype=torch.bool, device=features.device),
            )
        grids = self._encoder.grid, self._target
        index, weight, mask = _table(
            features.shape[1], *grids, num_samples, num_frames, features.device
        )
        weight = weight.to(features.dtype)
        after = features.index_select(1, (index + 1).clamp(max=features.shape[1] - 1))
        values = (1 - weight) * features.index_select(1, index) + weight * after  # [G, L, H]
        return values.masked_fill(~mask[:, None], 0.0), mask


# Segments of training have one length: what depends on it alone is copied to a GPU once.
@lru_cache(maxsize=64)
def _table(
    num_source: int,
    source: FrameGrid,
    target: FrameGrid,
    num_samples: int,
    num_frames: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """`interpolation_table` on a device: index [L], weight [L, 1], mask [L]; not to be written.

    Frames that begin at or beyond `num_samples` are masked too.
    """
    left, share, is_near = interpolation_table(num_source, source, target, num_frames)
    is_near &= np.arange(num_frames) * target.hop_samples < num_samples
    with torch.inference_mode(False):  # what is made there could not be trained through
        index, weight, mask = map(torch.from_numpy, (left, share[:, None], is_near))
        return index.to(device), weight.to(device), mask.to(device)


def speech_teacher_models(
    config: SpeechTeacherConfig, *, may_download: bool = True
) -> dict[str, str]:
    """The hash of the model's files, which decide its features beside its settings."""
    folder = find_model(
        config.model, needs_tokenizer=False, needs_preprocessor=True, may_download=may_download
    )
    return {"model": model_hash(folder)}
