"""Speech to words by a named recognizer, text normalization, and counts of word errors."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from dmcodec.audio import Waveform, resample
from dmcodec.evaluation.requirements import import_package, model_identity, package_versions
from dmcodec.quality import Unmeasurable

Normalizer = Literal["basic", "whisper"]

_RECOGNIZER_RATE = 16_000
_WHISPER_MAX_SAMPLES = 30 * _RECOGNIZER_RATE
# Bounds of PocketSphinx's search, per frame. Its own (30000, all) take 1.6 times as long, most on
# the worst speech, and gain 2 of 55 % WER (12 clips of LibriSpeech test-other and dev).
_MAX_HMMS, _MAX_WORDS = 3000, 20
_NOT_WORD = re.compile(r"[^\w' ]+")
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


class Recognizer(Protocol):
    """Turns speech into text."""

    def transcribe(self, waveform: Waveform, sample_rate: int) -> str:
        """The text of a waveform [T], as the recognizer spells it; empty when it hears nothing."""
        ...


def load_recognizer(name: str, device: str = "cpu") -> Recognizer:
    """The recognizer `pocketsphinx`, or a Hugging Face CTC or Whisper model by folder or name."""
    if name == "pocketsphinx":
        return PocketSphinx()
    return TransformersRecognizer(name, device)


def recognizer_identity(name: str) -> str:
    """Program, model and versions of a recognizer, without loading it."""
    if name == "pocketsphinx":
        version = package_versions(("pocketsphinx",)).get(name, "")
        search = f"at most {_MAX_HMMS} HMMs and {_MAX_WORDS} words a frame"
        return f"pocketsphinx {version}, en-us model, {search}"
    return f"{model_identity(name)}, greedy"


class PocketSphinx:
    """CMU PocketSphinx with the US-English model that its package carries; needs no network.

    Far from today's recognizers: use it for differences between systems on many clips, never to
    compare with published word error rates.
    """

    def __init__(self) -> None:
        package = import_package("pocketsphinx", "the recognizer pocketsphinx")
        self._decoder = package.Decoder(
            samprate=_RECOGNIZER_RATE, maxhmmpf=_MAX_HMMS, maxwpf=_MAX_WORDS, loglevel="FATAL"
        )

    def transcribe(self, waveform: Waveform, sample_rate: int) -> str:
        """Lower-case words, each clip by itself: the adaptation of earlier clips is forgotten."""
        signal = resample(waveform, sample_rate, _RECOGNIZER_RATE)
        integers = np.clip(np.round(signal * 32768), -32768, 32767).astype("<i2")
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(integers.tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return str(hypothesis.hypstr) if hypothesis is not None else ""


class TransformersRecognizer:
    """A Hugging Face CTC model (wav2vec 2.0, HuBERT, ...) or Whisper model, greedy search."""

    def __init__(self, name: str, device: str) -> None:
        transformers = import_package("transformers", f"the recognizer {name}")
        config = transformers.AutoConfig.from_pretrained(name)
        self._is_sequence_to_sequence = bool(config.is_encoder_decoder)
        kind = (
            transformers.AutoModelForSpeechSeq2Seq
            if self._is_sequence_to_sequence
            else transformers.AutoModelForCTC
        )
        self._model = kind.from_pretrained(name).float().to(device).eval()
        self._processor = transformers.AutoProcessor.from_pretrained(name)
        self._device = device

    @torch.inference_mode()
    def transcribe(self, waveform: Waveform, sample_rate: int) -> str:
        """The text of a waveform [T]; Whisper models take at most 30 s."""
        signal = resample(waveform, sample_rate, _RECOGNIZER_RATE)
        if self._is_sequence_to_sequence and len(signal) > _WHISPER_MAX_SAMPLES:
            raise Unmeasurable("recognizer: clip longer than the 30 s that the model takes")
        inputs = self._processor(signal, sampling_rate=_RECOGNIZER_RATE, return_tensors="pt")
        inputs = inputs.to(self._device)
        if self._is_sequence_to_sequence:
            ids = self._model.generate(**inputs, do_sample=False, num_beams=1)
            return str(self._processor.batch_decode(ids, skip_special_tokens=True)[0])
        logits = self._model(**inputs).logits  # [1, L, symbols]
        return str(self._processor.batch_decode(logits.argmax(dim=-1))[0])


def make_normalizer(name: Normalizer) -> Callable[[str], str]:
    """The function that both texts of a comparison go through.

    "basic": Unicode NFKC, lower case, everything but letters, digits and apostrophes inside words
    becomes a space. "whisper": the English normalizer of the Whisper paper (contractions written
    out, numbers as digits, spelling kept), for recognizers that write numbers and punctuation.
    """
    if name == "whisper":
        module = import_package(
            "transformers.models.whisper.english_normalizer", "the normalizer whisper"
        )
        normalizer: Any = module.EnglishTextNormalizer({})
        return lambda text: str(normalizer(text)).strip()
    return _normalize_basic


def _normalize_basic(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").replace("_", " ")
    text = _LONE_APOSTROPHE.sub(" ", _NOT_WORD.sub(" ", text))
    return " ".join(text.split())


@dataclass(frozen=True)
class ErrorCounts:
    """Hits, substitutions, deletions and insertions of one aligned pair of texts."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        """Words or characters of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def hypothesis_length(self) -> int:
        """Words or characters of the hypothesis."""
        return self.hits + self.substitutions + self.insertions

    def as_tuple(self) -> tuple[int, int, int, int]:
        """Hits, substitutions, deletions, insertions."""
        return self.hits, self.substitutions, self.deletions, self.insertions

    @property
    def error_rate(self) -> float:
        """Errors per word (or character) of the reference; may exceed 1."""
        return self.errors / self.reference_length

    @property
    def information_lost(self) -> float:
        """WIL, 0 to 1; 1 when nothing was recognized.

        Reference: Morris et al. 2004, doi:10.21437/Interspeech.2004-668.
        """
        if self.hypothesis_length == 0:
            return 1.0
        return 1 - self.hits**2 / (self.reference_length * self.hypothesis_length)


def count_errors(reference: str, hypothesis: str) -> tuple[ErrorCounts, ErrorCounts]:
    """Errors in words and in characters between two normalized texts, through jiwer.

    An empty hypothesis is all deletions. An empty reference has no rate: Unmeasurable.
    """
    if not reference:
        raise Unmeasurable("word errors: the reference text is empty")
    jiwer = import_package("jiwer", "WER")
    return _counts(jiwer.process_words(reference, hypothesis)), _counts(
        jiwer.process_characters(reference, hypothesis)
    )


def _counts(output: Any) -> ErrorCounts:
    return ErrorCounts(output.hits, output.substitutions, output.deletions, output.insertions)
