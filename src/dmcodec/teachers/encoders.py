"""Frozen speech encoders as teachers see them: waveforms in, hidden states with a known grid out.

Two kinds: models on raw waveforms (HuBERT, wav2vec 2.0, WavLM, multilingual ones) and Whisper.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dmcodec.pretrained.models import (
    find_model,
    import_transformers,
    load_weights,
    read_config,
)
from dmcodec.pretrained.whisper import (
    FRAME_SAMPLES,
    encoder_states,
    is_whisper,
    load_whisper,
    log_mel,
    max_frames,
)
from dmcodec.teachers.alignment import TIME_RATE, FrameGrid, convolution_frames, convolution_grid
from dmcodec.teachers.text import Layers, select_layers

# As transformers' feature extractor has it.
_VARIANCE_FLOOR = 1e-7


class SpeechEncoder(Protocol):
    """What gives a speech teacher its features.

    grid: where the encoder's own frames lie.
    feature_dim: H.
    """

    grid: FrameGrid
    feature_dim: int

    def features(self, waveforms: Tensor, lengths: list[int]) -> list[Tensor]:
        """Frames [L'_i, H] of waveforms [B, T] at 16 kHz, item i up to its length, with gradient.

        An item's frames do not depend on the others.
        """
        ...


def load_encoder(name: str, layers: Layers, device: str) -> SpeechEncoder:
    """The encoder of a model: Hub name, folder or `package:NAME`.

    Raises FileNotFoundError for a model that is not at hand or not whole, ValueError for one that
    is no speech encoder.
    """
    folder = find_model(name, needs_tokenizer=False, needs_preprocessor=True)
    if is_whisper(folder):
        return WhisperEncoder(folder, layers, device)
    config = read_config(folder)
    if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
        return WaveformEncoder(folder, name, layers, device)
    raise ValueError(
        f"speech model {name!r} ({config.model_type}) neither works on raw waveforms through "
        "convolutions nor is a Whisper; take one such as HuBERT, wav2vec 2.0, WavLM or Whisper"
    )


class WaveformEncoder:
    """HuBERT, wav2vec 2.0, WavLM: convolutions without padding on the waveform, then attention.

    Models that were trained without attention masks (`return_attention_mask` is false in their
    preprocessor's settings) see each length by itself, the others one padded batch with a mask.
    """

    def __init__(self, folder: Path, name: str, layers: Layers, device: str) -> None:
        transformers = import_transformers()
        self._model = load_weights(transformers.AutoModel, folder, device)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        if extractor.sampling_rate != TIME_RATE:
            raise ValueError(
                f"speech model {name!r} wants {extractor.sampling_rate} Hz, not {TIME_RATE}"
            )
        config = self._model.config
        self._layers = layers
        self._kernels, self._strides = config.conv_kernel, config.conv_stride
        self._uses_masks = bool(extractor.return_attention_mask)
        self._is_normalizing = bool(extractor.do_normalize)
        self.grid = convolution_grid(self._kernels, self._strides)
        self.feature_dim = int(config.hidden_size)

    def features(self, waveforms: Tensor, lengths: list[int]) -> list[Tensor]:
        """Frames [L'_i, H]; less than one receptive field gives none."""
        frames = [convolution_frames(length, self._kernels, self._strides) for length in lengths]
        results = [waveforms.new_zeros(0, self.feature_dim)] * len(lengths)
        audible = [index for index, count in enumerate(frames) if count]
        groups = [audible] if self._uses_masks else equal_sizes(audible, lengths)
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
            selected = select_layers(states.hidden_states, self._layers)  # [B, L', H]
            for index, row in zip(group, selected.unbind(), strict=True):
                results[index] = row[: frames[index]]
        return results

    def _normalized(self, waveform: Tensor, length: int) -> Tensor:
        """One waveform [T] as the model wants it, zero beyond its length."""
        real = waveform[:length]
        if self._is_normalizing:
            variance = real.var(correction=0)
            real = (real - real.mean()) / (variance + _VARIANCE_FLOOR).sqrt()
        return torch.nn.functional.pad(real, (0, len(waveform) - length))


class WhisperEncoder:
    """Whisper's encoder on just the sound that there is, not on 30 s.

    Mel frame m has its centre at sample 160 m (windows are centred); the convolution with stride 2
    puts frame i on mel frame 2 i: sample 320 i, half a hop before a codec frame of the same rate.
    Positions are cut to the sound, and attention does not see the silence that fills up 30 s in
    Whisper's own use: features of whole utterances then have a cosine of 0.98 to 0.99 to those
    of 30 s (tiny.en, last layer). Recordings longer than
    30 s are heard in windows that overlap by a third or more, each frame taken from the window in
    which it is farther from the border.
    """

    def __init__(self, folder: Path, layers: Layers, device: str) -> None:
        self._encoder = load_whisper(folder, device).model.encoder
        self._layers = layers
        self._num_mels = int(self._encoder.config.num_mel_bins)
        self._limit = max_frames(self._encoder)
        self.grid = FrameGrid(FRAME_SAMPLES, 0)
        self.feature_dim = int(self._encoder.config.d_model)

    def features(self, waveforms: Tensor, lengths: list[int]) -> list[Tensor]:
        """Frames [L'_i, H]: those whose centre lies within the item."""
        frames = [-(-length // FRAME_SAMPLES) for length in lengths]
        results = [waveforms.new_zeros(0, self.feature_dim)] * len(lengths)
        for index, count in enumerate(frames):
            if count > self._limit:
                results[index] = self._in_windows(waveforms[index, : lengths[index]], count)
        short = [index for index, count in enumerate(frames) if 0 < count <= self._limit]
        for group in equal_sizes(short, frames):
            inputs = _silenced(_rows(waveforms, group), [lengths[index] for index in group])
            selected = self._encode(inputs, frames[group[0]])
            for index, row in zip(group, selected.unbind(), strict=True):
                results[index] = row
        return results

    def _encode(self, waveforms: Tensor, num_frames: int) -> Tensor:
        """Frames [B, L', H] of waveforms of one length."""
        mels = log_mel(waveforms[:, : num_frames * FRAME_SAMPLES], num_frames, self._num_mels)
        return select_layers(encoder_states(self._encoder, mels), self._layers)

    def _in_windows(self, waveform: Tensor, num_frames: int) -> Tensor:
        """Frames [L', H] of a recording [T] of any length."""
        parts = []
        for start, first, stop in split_into_windows(num_frames, self._limit):
            count = min(self._limit, num_frames - start)
            window = waveform[start * FRAME_SAMPLES : (start + count) * FRAME_SAMPLES]
            parts.append(self._encode(window[None], count)[0, first - start : stop - start])
        return torch.cat(parts)


def split_into_windows(num_frames: int, limit: int) -> list[tuple[int, int, int]]:
    """Windows of `limit` frames: where each starts, and which frames [first, stop) are its own.

    They lie at equal distances of at most two thirds of a window.
    """
    count = 1 + -(-3 * (num_frames - limit) // (2 * limit))
    starts = [round(i * (num_frames - limit) / (count - 1)) for i in range(count)]
    middles = [(a + limit + b) // 2 for a, b in pairwise(starts)]
    return list(zip(starts, [0, *middles], [*middles, num_frames], strict=True))


def _rows(waveforms: Tensor, chosen: list[int]) -> Tensor:
    """Some of the rows of [B, T], in rising order; all of them are not copied."""
    return waveforms if len(chosen) == len(waveforms) else waveforms[chosen]


def _silenced(waveforms: Tensor, lengths: list[int]) -> Tensor:
    """Waveforms [B, T], each zero from its length on; one that is not a number beyond it, too."""
    if min(lengths) >= waveforms.shape[-1]:
        return waveforms
    beyond = torch.arange(waveforms.shape[-1]) >= torch.tensor(lengths)[:, None]
    return waveforms.masked_fill(beyond.to(waveforms.device), 0.0)


def equal_sizes(indices: Iterable[int], sizes: Sequence[int]) -> list[list[int]]:
    """The indices in groups of equal size."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(sizes[index], []).append(index)
    return list(groups.values())
