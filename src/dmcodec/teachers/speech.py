"""The speech-model teacher: a frozen speech encoder -> features on codec frames."""

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
from dmcodec.teachers.encoders import load_encoder
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
        return self._encoder.features(waveforms, [int(length) for length in num_samples])

    def frame_features(
        self, waveforms: Tensor, num_samples: Tensor, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Features [B, L, H] on the codec's frames and their mask [B, L], with gradient.

        Frames beyond an item's samples are masked.
        """
        values, masks = [], []
        for item, length in zip(self.features(waveforms, num_samples), num_samples, strict=True):
            value, mask = self._on_codec_frames(item, int(length), num_frames)
            values.append(value)
            masks.append(mask)
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
        if len(features) == 0:
            return (
                features.new_zeros(num_frames, self.feature_dim),
                torch.zeros(num_frames, dtype=torch.bool, device=features.device),
            )
        left, share, is_near = interpolation_table(
            len(features), self._encoder.grid, self._target, num_frames
        )
        is_near &= np.arange(num_frames) * self._target.hop_samples < num_samples
        index = torch.from_numpy(left).to(features.device)
        weight = torch.from_numpy(share).to(features.device, features.dtype)[:, None]
        mask = torch.from_numpy(is_near).to(features.device)
        after = features[(index + 1).clamp(max=len(features) - 1)]
        values = (1 - weight) * features[index] + weight * after  # [L, H]
        return values.masked_fill(~mask[:, None], 0.0), mask


def speech_teacher_models(
    config: SpeechTeacherConfig, *, may_download: bool = True
) -> dict[str, str]:
    """The hash of the model's files, which decide its features beside its settings."""
    folder = find_model(
        config.model, needs_tokenizer=False, needs_preprocessor=True, may_download=may_download
    )
    return {"model": model_hash(folder)}
