"""Whether it still sounds like the same person: cosine similarity of speaker embeddings."""

import warnings
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dmcodec.audio import SAMPLE_RATE, Waveform, resample
from dmcodec.metrics.measure import (
    Group,
    Measure,
    ModelChoice,
    Original,
    Outcomes,
    Unmeasurable,
    attempt,
)
from dmcodec.packages import import_package, package_versions
from dmcodec.pretrained.models import (
    find_model,
    import_transformers,
    load_weights,
    model_identity,
)

_MODEL_RATE = 16_000
_MIN_SPEECH_S = 0.4
_RESEMBLYZER_MODULES = ("webrtcvad", "librosa", "resemblyzer")


class SpeakerModel(Protocol):
    """Turns speech into a vector for its speaker."""

    def embed(self, waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
        """The embedding [D] of a waveform [T]; Unmeasurable when there is too little speech."""
        ...


def load_speaker_model(name: str, device: str = "cpu") -> SpeakerModel:
    """`resemblyzer`, or a Hugging Face x-vector model (WavLM, ...) by folder or name."""
    if name == "resemblyzer":
        return Resemblyzer()
    return TransformersSpeakerModel(name, device)


def speaker_model_identity(name: str) -> str:
    """Model and versions of a speaker model, without loading it."""
    if name == "resemblyzer":
        return f"Resemblyzer {package_versions(('Resemblyzer',)).get('Resemblyzer', '')}"
    version = package_versions(("transformers",)).get("transformers", "not installed")
    return f"{model_identity(name)}, transformers {version}"


def speaker_model_modules(name: str) -> tuple[str, ...]:
    """The packages that a speaker model needs."""
    return _RESEMBLYZER_MODULES if name == "resemblyzer" else ("transformers",)


def check_speaker_model(name: str) -> None:
    """Raises FileNotFoundError for a model that cannot be had."""
    if name != "resemblyzer":
        _find(name)


def cosine_similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Cosine of the angle between two vectors [D], -1 to 1."""
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    if norms == 0:
        raise Unmeasurable("speaker similarity: an embedding is zero")
    return float(first @ second) / norms


class Resemblyzer:
    """The GE2E speaker encoder that the package Resemblyzer carries.

    Its own preparation is used: quiet clips are raised to -30 dBFS and long pauses are cut.
    Reference: Wan et al. 2018, arXiv:1710.10467.
    """

    def __init__(self) -> None:
        purpose = "speaker similarity"
        import_package("webrtcvad", purpose)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports an old scipy name
            self._package = import_package("resemblyzer", purpose)
        self._encoder = self._package.VoiceEncoder("cpu", verbose=False)

    def embed(self, waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
        """The embedding [256], of length 1."""
        signal = resample(waveform, sample_rate, _MODEL_RATE)
        if not np.any(signal):
            raise Unmeasurable("speaker similarity: the signal is silent")
        # A raised level beyond full scale would wrap in the package's 16-bit voice detection.
        speech = self._package.preprocess_wav(signal / max(1.0, float(np.abs(signal).max())))
        if len(speech) < _MIN_SPEECH_S * _MODEL_RATE:
            raise Unmeasurable(f"speaker similarity: less than {_MIN_SPEECH_S} s of speech found")
        return np.asarray(self._encoder.embed_utterance(speech), dtype=np.float32)


class TransformersSpeakerModel:
    """A Hugging Face model with an x-vector head."""

    def __init__(self, name: str, device: str) -> None:
        transformers, folder = import_transformers(), _find(name)
        self._model = load_weights(transformers.AutoModelForAudioXVector, folder, device)
        self._extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        self._device = device

    @torch.inference_mode()
    def embed(self, waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
        """The x-vector [D]."""
        signal = resample(waveform, sample_rate, _MODEL_RATE)
        if len(signal) < _MIN_SPEECH_S * _MODEL_RATE:
            raise Unmeasurable(f"speaker similarity: clip shorter than {_MIN_SPEECH_S} s")
        inputs = self._extractor(signal, sampling_rate=_MODEL_RATE, return_tensors="pt")
        embedding = self._model(**inputs.to(self._device)).embeddings[0]
        return np.asarray(embedding.float().cpu().numpy(), dtype=np.float32)


def _find(name: str) -> Path:
    return find_model(name, needs_tokenizer=False, needs_preprocessor=True)


def _compute(original: Original, estimate: Waveform) -> Outcomes:
    model = original.models.get(load_speaker_model, original.config.speaker_model)

    def embed(waveform: Waveform) -> NDArray[np.float32]:
        return model.embed(waveform, SAMPLE_RATE)

    def similarity() -> float:
        return cosine_similarity(original.once("speaker", embed), embed(estimate))

    return {"spk_similarity": attempt(similarity)}


SPEAKER = Group(
    "speaker",
    (
        Measure(
            "spk_similarity", "Speaker sim.", "higher", 3, "cosine of speaker embeddings",
            is_main=True, has_chart=True, silent_score=0.0,
        ),
    ),
    _compute,
    model=ModelChoice(
        "speaker model",
        identity=lambda config: speaker_model_identity(config.speaker_model),
        modules=lambda config: speaker_model_modules(config.speaker_model),
        check=lambda config: check_speaker_model(config.speaker_model),
    ),
)  # fmt: skip
