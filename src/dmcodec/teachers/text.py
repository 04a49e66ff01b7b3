"""The language-model teacher: words with times -> a language model -> features on codec frames.

Reference: Ahasan et al. 2024, arXiv:2410.15017, sec. 3.2. Deviation: a word's vector lies on the
frames in which it is spoken; the release's way is `alignment = "padded"`.
"""

import logging
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dmcodec.audio import Waveform
from dmcodec.config import Record
from dmcodec.pretrained.models import find_model, import_transformers, load_weights, model_hash
from dmcodec.teachers.alignment import (
    Alignment,
    AlignmentError,
    FeatureTrack,
    FrameGrid,
    Word,
    align_words,
    constant_track,
    masked_track,
    shuffle_vectors,
    token_track,
)
from dmcodec.teachers.recognizers import load_word_finder
from dmcodec.teachers.words import SttConfig

logger = logging.getLogger(__name__)

Layers = Literal["mean", "last"] | int


class TextTeacherConfig(Record):
    """A language model, where its words come from, and how they are laid over the frames.

    Attributes:
        language_model: any Hugging Face text encoder, by Hub name, folder or `package:NAME`.
        stt: where words and their times come from.
        alignment: `words` puts each word's mean sub-word vector on the frames in which it is
            spoken and masks the others; `shuffled` gives the words each other's vectors (control);
            `mean` puts the mean of the words on every frame, `cls` the model's first state; both
            are constant in time and need `loss = "frame_cosine"`; `padded` compares token i with
            frame i, padding included, as the released code does.
        layers: mean of all hidden states (embedding included), the last, or hidden state n.
        use_lower_case: lower the text before the language model sees it.
        seed: of the shuffling.
    """

    language_model: str = "bert-base-uncased"
    stt: SttConfig
    alignment: Alignment = "words"
    layers: Layers = "mean"
    use_lower_case: bool = True
    seed: int = Field(0, ge=0)


class LanguageModel:
    """A frozen text encoder that gives a vector for each word of a text of any length."""

    def __init__(self, name: str, layers: Layers, device: str = "cpu") -> None:
        transformers = import_transformers()
        self.folder = find_model(name, needs_tokenizer=True, needs_preprocessor=False)
        self._model = load_weights(transformers.AutoModel, self.folder, device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        if getattr(self._tokenizer, "add_prefix_space", None) is False:
            # Byte-level tokenizers treat words of a list as words only this way.
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.folder, add_prefix_space=True
            )
        if not self._tokenizer.is_fast:
            raise ValueError(
                f"language model {name!r}: its tokenizer cannot say which tokens belong to a word; "
                "a tokenizer.json is needed"
            )
        self._layers = layers
        self._device = device
        limit = getattr(self._model.config, "max_position_embeddings", 512)
        self.max_tokens = int(min(limit, self._tokenizer.model_max_length))
        self.feature_dim = int(self._model.config.hidden_size)

    def word_vectors(self, words: Sequence[str]) -> np.ndarray:
        """The mean sub-word vector of each word in the context of all, [U, H].

        Words without a token get NaN. Texts longer than the model are read in windows that
        overlap by half; each word's vector is taken where it has most context.
        """
        vectors = np.full((len(words), self.feature_dim), np.nan, dtype=np.float32)
        if not words:
            return vectors
        margins = np.full(len(words), -1)
        counts = self._token_counts(words)
        room = self.max_tokens - self._tokenizer.num_special_tokens_to_add()
        for start, stop in _windows(counts, room):
            states, owners = self._states(words[start:stop])
            for word in range(start, stop):
                margin = min(
                    sum(counts[start:word]) if start else room,
                    sum(counts[word + 1 : stop]) if stop < len(words) else room,
                )
                of_word = states[owners == word - start]
                if len(of_word) and margin > margins[word]:
                    vectors[word], margins[word] = of_word.mean(axis=0), margin
        return vectors

    def first_state(self, words: Sequence[str]) -> np.ndarray:
        """The state of the first token ([CLS]) over as many words as the model takes, [H]."""
        room = self.max_tokens - self._tokenizer.num_special_tokens_to_add()
        _, stop = _windows(self._token_counts(words), room)[0]
        return self._states(words[:stop])[0][0]

    def padded_states(self, words: Sequence[str], num_frames: int) -> np.ndarray:
        """States of the text padded with [PAD] to `num_frames` tokens or the model's limit."""
        encoding = self._tokenizer(
            " ".join(words),
            padding="max_length",
            truncation=True,
            max_length=max(min(num_frames, self.max_tokens), 2),
            return_tensors="pt",
        )
        return self._run(encoding)[:num_frames]

    def _token_counts(self, words: Sequence[str]) -> list[int]:
        encoding = self._tokenizer(
            list(words), is_split_into_words=True, add_special_tokens=False, verbose=False
        )
        counts = [0] * len(words)
        for word in encoding.word_ids():
            counts[word] += 1
        return counts

    def _states(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """States of all tokens [U', H], and which word each belongs to (-1: none)."""
        encoding = self._tokenizer(
            list(words),
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        owners = [-1 if word is None else word for word in encoding.word_ids(0)]
        return self._run(encoding), np.array(owners)

    @torch.inference_mode()
    def _run(self, encoding: Any) -> np.ndarray:
        inputs = {
            key: value.to(self._device)
            for key, value in encoding.items()
            if key in ("input_ids", "attention_mask")
        }
        states = self._model(**inputs, output_hidden_states=True).hidden_states
        return select_layers(states, self._layers)[0].float().cpu().numpy()


class TextTeacher:
    """Words by a recognizer or a transcript, vectors by a language model, on the codec's frames."""

    def __init__(self, config: TextTeacherConfig, grid: FrameGrid, device: str = "cpu") -> None:
        self.config = config
        self._grid = grid
        self._language_model = LanguageModel(config.language_model, config.layers, device)
        self._finder = load_word_finder(config.stt, device)
        self.feature_dim = self._language_model.feature_dim

    def track(
        self, waveform: Waveform, text: str | None, utterance_id: str, num_frames: int
    ) -> tuple[FeatureTrack, list[Word]]:
        """Features of a whole utterance [T] at 16 kHz on `num_frames` frames, and its words.

        Silence, an empty transcript and a text that does not fit the recording give a track that
        is masked everywhere.
        """
        try:
            words = self._finder.find(waveform, text, utterance_id)
        except AlignmentError as problem:
            logger.warning("%s: %s: no features", utterance_id, problem)
            words = []
        if not words:
            return masked_track(num_frames, self.feature_dim), []
        return self._lay_out(words, utterance_id, num_frames), words

    def _lay_out(self, words: list[Word], utterance_id: str, num_frames: int) -> FeatureTrack:
        lower = self.config.use_lower_case
        texts = [word.text.lower() if lower else word.text for word in words]
        model = self._language_model
        if self.config.alignment == "padded":
            return token_track(model.padded_states(texts, num_frames), num_frames)
        if self.config.alignment == "cls":
            return constant_track(model.first_state(texts), num_frames)
        vectors = model.word_vectors(texts)
        has_vector = np.isfinite(vectors).all(axis=1)
        vectors = vectors[has_vector]
        spoken = [word for word, has in zip(words, has_vector, strict=True) if has]
        if not spoken:
            return masked_track(num_frames, self.feature_dim)
        if self.config.alignment == "mean":
            return constant_track(vectors.mean(axis=0), num_frames)
        if self.config.alignment == "shuffled":
            # By the name, so that the order does not depend on which process works on it.
            vectors = shuffle_vectors(vectors, self.config.seed + zlib.crc32(utterance_id.encode()))
        return align_words(spoken, vectors, self._grid, num_frames)


def select_layers(states: Sequence[Tensor], layers: Layers) -> Tensor:
    """Mean of all hidden states [B, L, H], the last, or number n (0 is the embedding)."""
    if layers == "mean":
        return torch.stack(list(states)).mean(dim=0)
    if layers == "last":
        return states[-1]
    if not 0 <= layers < len(states):
        raise ValueError(f"layers = {layers}: the model has hidden states 0 to {len(states) - 1}")
    return states[layers]


def text_teacher_models(config: TextTeacherConfig, *, may_download: bool = True) -> dict[str, str]:
    """Hashes of the files that decide a text teacher's features, beside its settings."""
    folder = find_model(
        config.language_model,
        needs_tokenizer=True,
        needs_preprocessor=False,
        may_download=may_download,
    )
    models = {"language_model": model_hash(folder)}
    if config.stt.model is not None:
        folder = find_model(
            config.stt.model,
            needs_tokenizer=True,
            needs_preprocessor=True,
            may_download=may_download,
        )
        models["stt"] = model_hash(folder)
    if config.stt.word_times is not None:
        models["word_times"] = f"{zlib.crc32(config.stt.word_times.read_bytes()):08x}"
    if config.stt.kind == "pocketsphinx":
        whisper = f", words of {models['stt']}" if "stt" in models else ""
        models["stt"] = f"pocketsphinx {version('pocketsphinx')}{whisper}"
    return models


def _windows(counts: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Runs of words [start, stop) with at most `room` tokens, each beginning half-way in the last.

    A single word with more tokens than that has a window of its own (and is cut there).
    """
    windows = []
    start = 0
    while True:
        stop, used = start, 0
        while stop < len(counts) and (used + counts[stop] <= room or stop == start):
            used += counts[stop]
            stop += 1
        windows.append((start, stop))
        if stop == len(counts):
            return windows
        start = max(start + 1, (start + stop) // 2)
