"""The speech-model teacher: a self-supervised model of waveforms -> features on codec frames.

Any Hugging Face `AutoModel` on raw waveforms: HuBERT, wav2vec 2.0, WavLM, multilingual ones.
"""

import numpy as np
import torch
from torch import Tensor

from dmcodec.audio import Waveform
from dmcodec.config import Record
from dmcodec.teachers.alignment import (
    TIME_RATE,
    FeatureTrack,
    FrameGrid,
    Word,
    convolution_frames,
    convolution_grid,
    interpolation_table,
    masked_track,
    resample_features,
)
from dmcodec.teachers.hub import find_model, import_transformers, load_weights, model_hash
from dmcodec.teachers.text import Layers, select_layers

# As transformers' feature extractor has it.
_VARIANCE_FLOOR = 1e-7


class SpeechTeacherConfig(Record):
    """A speech model and which of its layers teach.

    Attributes:
        model: any Hugging Face speech encoder on raw waveforms, by Hub name, folder or
            `package:NAME`.
        layers: mean of all hidden states, the last, or hidden state n.
    """

    model: str = "facebook/hubert-base-ls960"
    layers: Layers = "mean"


class SpeechTeacher:
    """A frozen speech model whose features lie on the codec's frames.

    Models that were trained without attention masks (`return_attention_mask` is false in
    their preprocessor's settings) see each length by itself, the others one padded batch with a
    mask: a batch never changes features.
    """

    def __init__(self, config: SpeechTeacherConfig, grid: FrameGrid, device: str = "cpu") -> None:
        transformers = import_transformers()
        self.config = config
        folder = find_model(config.model, needs_tokenizer=False, needs_preprocessor=True)
        self._model = load_weights(transformers.AutoModel, folder, device)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        settings = self._model.config
        if not hasattr(settings, "conv_kernel") or not hasattr(settings, "conv_stride"):
            raise ValueError(
                f"speech model {config.model!r} ({settings.model_type}) does not work on raw "
                "waveforms through convolutions; take one such as HuBERT, wav2vec 2.0 or WavLM"
            )
        if extractor.sampling_rate != TIME_RATE:
            raise ValueError(
                f"speech model {config.model!r} wants {extractor.sampling_rate} Hz, not {TIME_RATE}"
            )
        self._kernels, self._strides = settings.conv_kernel, settings.conv_stride
        self._source = convolution_grid(self._kernels, self._strides)
        self._target = grid
        self._uses_masks = bool(extractor.return_attention_mask)
        self._is_normalizing = bool(extractor.do_normalize)
        self._device = device
        self.feature_dim = int(settings.hidden_size)

    def features(self, waveforms: Tensor, num_samples: Tensor) -> list[Tensor]:
        """The model's own frames [L'_i, H] of waveforms [B, T] at 16 kHz, with gradient.

        Item i counts up to its `num_samples` [B]; less than one receptive field gives no frames.
        """
        if waveforms.ndim != 2 or num_samples.shape != waveforms.shape[:1]:
            raise ValueError(
                f"waveforms must be [B, T] and num_samples [B], got {list(waveforms.shape)} and "
                f"{list(num_samples.shape)}"
            )
        lengths = [int(length) for length in num_samples]
        frames = [convolution_frames(length, self._kernels, self._strides) for length in lengths]
        results = [waveforms.new_zeros(0, self.feature_dim)] * len(lengths)
        audible = [index for index, count in enumerate(frames) if count]
        groups = [audible] if self._uses_masks else _equal(audible, lengths)
        for group in filter(None, groups):
            longest = max(lengths[index] for index in group)
            inputs = torch.stack(
                [self._normalized(waveforms[index, :longest], lengths[index]) for index in group]
            )
            mask = None
            if self._uses_masks:
                mask = torch.stack([torch.arange(longest) < lengths[i] for i in group])
                mask = mask.to(inputs.device, torch.int64)
            states = self._model(inputs, attention_mask=mask, output_hidden_states=True)
            selected = select_layers(states.hidden_states, self.config.layers)  # [B, L', H]
            for row, index in enumerate(group):
                results[index] = selected[row, : frames[index]]
        return results

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
        return resample_features(values, self._source, self._target, num_frames), []

    def _normalized(self, waveform: Tensor, length: int) -> Tensor:
        """One waveform [T] as the model wants it, zero beyond its length."""
        real = waveform[:length]
        if self._is_normalizing:
            variance = real.var(correction=0)
            real = (real - real.mean()) / (variance + _VARIANCE_FLOOR).sqrt()
        return torch.nn.functional.pad(real, (0, len(waveform) - length))

    def _on_codec_frames(
        self, features: Tensor, num_samples: int, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        if len(features) == 0:
            return (
                features.new_zeros(num_frames, self.feature_dim),
                torch.zeros(num_frames, dtype=torch.bool, device=features.device),
            )
        left, share, is_near = interpolation_table(
            len(features), self._source, self._target, num_frames
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


def _equal(indices: list[int], lengths: list[int]) -> list[list[int]]:
    """The indices in groups of equal length."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(lengths[index], []).append(index)
    return list(groups.values())
