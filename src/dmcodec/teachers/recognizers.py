"""Models that find words and their times: CTC models, Whisper, pocketsphinx.

A known text is laid over the recording where a configuration asks for it and there is one; else
the model recognizes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dmcodec.audio import Waveform
from dmcodec.pretrained.models import find_model, import_transformers, load_weights
from dmcodec.pretrained.sphinx import Sphinx, SphinxError
from dmcodec.pretrained.whisper import load_processor, load_whisper
from dmcodec.spelling import bare_words
from dmcodec.teachers.alignment import (
    TIME_RATE,
    AlignmentError,
    Word,
    close_gaps,
    convolution_frames,
    convolution_grid,
)
from dmcodec.teachers.ctc import SymbolSpan, align_symbols, best_path
from dmcodec.teachers.words import GivenWords, SttConfig, WordFinder, read_word_times

# Chosen by us: pauses inside a phrase are shorter than this, those between phrases longer.
_MAX_GAP_S = 0.3
# Rough sounds of the letters a to z, for words that pocketsphinx's dictionary does not have.
_LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
_PHONES = "AE B K D EH F G HH IH JH K L M N AA P K R S T AH V W K-S Y Z"
_SOUNDS = dict(zip(_LETTERS.split(" "), _PHONES.split(" "), strict=True))


def load_word_finder(config: SttConfig, device: str = "cpu") -> WordFinder:
    """The finder that a configuration asks for, with its model loaded."""
    if config.kind == "pocketsphinx":
        whisper = config.model and WhisperFinder(config.model, config.language, device)
        return PocketSphinxFinder(whisper or None, use_transcripts=config.use_transcripts)
    if config.kind == "given":
        assert config.word_times is not None
        return GivenWords(read_word_times(config.word_times))
    assert config.model is not None
    if config.kind == "whisper":
        return WhisperFinder(config.model, config.language, device)
    return CtcFinder(config.model, device, use_transcripts=config.use_transcripts)


def spoken_form(word: str) -> str:
    """Lower case without punctuation: `"Don't!"` -> `don't`; empty when nothing is left."""
    return bare_words(word).replace(" ", "")


class CtcFinder:
    """A Hugging Face CTC model on raw waveforms (wav2vec 2.0, HuBERT, WavLM, ...)."""

    def __init__(self, name: str, device: str = "cpu", *, use_transcripts: bool = False) -> None:
        transformers = import_transformers()
        folder = find_model(name, needs_tokenizer=True, needs_preprocessor=True)
        self._model = load_weights(transformers.AutoModelForCTC, folder, device)
        self._extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._device = device
        self._use_transcripts = use_transcripts
        config = self._model.config
        self._kernels, self._strides = config.conv_kernel, config.conv_stride
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._symbols = {index: symbol for symbol, index in self._vocabulary.items()}
        self._blank = int(config.pad_token_id)
        self._delimiter = getattr(tokenizer, "word_delimiter_token", None) or "|"
        self._special = set(tokenizer.all_special_ids) - {self._vocabulary.get(self._delimiter)}

    @torch.inference_mode()
    def log_probs(self, waveform: Waveform) -> np.ndarray:
        """Log-probabilities [L, V] of the symbols; no frames for less than a receptive field."""
        if convolution_frames(len(waveform), self._kernels, self._strides) == 0:
            return np.zeros((0, len(self._symbols)), dtype=np.float32)
        inputs = self._extractor(waveform, sampling_rate=TIME_RATE, return_tensors="pt")
        logits = self._model(inputs.input_values.to(self._device)).logits[0]  # [L, V]
        return logits.float().log_softmax(dim=-1).cpu().numpy()

    def find(self, waveform: Waveform, text: str | None, utterance_id: str) -> list[Word]:
        """Words of the best path, or those of `text` on the best path that spells them."""
        log_probs = self.log_probs(waveform)
        if self._use_transcripts and text is not None:
            words = self._align(log_probs, text.split())
        else:
            words = self._recognize(log_probs)
        return close_gaps(words, _MAX_GAP_S * TIME_RATE)

    def _recognize(self, log_probs: np.ndarray) -> list[Word]:
        """Groups the symbols of the best path into words."""
        groups: list[list[SymbolSpan]] = [[]]
        if len(log_probs):
            for span in best_path(log_probs, self._blank):
                symbol = self._symbols[span.symbol]
                if symbol == self._delimiter or symbol.startswith("\u2581"):
                    groups.append([])
                if symbol != self._delimiter and span.symbol not in self._special:
                    groups[-1].append(span)
        words = []
        for group in filter(None, groups):
            text = "".join(self._symbols[span.symbol] for span in group).lstrip("\u2581")
            if text:
                words.append(self._word(text, group[0].start, group[-1].stop))
        return words

    def _align(self, log_probs: np.ndarray, texts: Sequence[str]) -> list[Word]:
        """Every word of a text; those without a letter that the model knows have no time."""
        spelled = [self._spell(text) for text in texts]
        symbols: list[int] = []
        places: list[tuple[int, int] | None] = []
        for letters in spelled:
            if letters and symbols and self._delimiter in self._vocabulary:
                symbols.append(self._vocabulary[self._delimiter])
            places.append((len(symbols), len(symbols) + len(letters)) if letters else None)
            symbols += letters
        spans = align_symbols(log_probs, symbols, self._blank)
        words = []
        for text, place in zip(texts, places, strict=True):
            if place is None:
                words.append(Word(text))
            else:
                words.append(self._word(text, spans[place[0]].start, spans[place[1] - 1].stop))
        return words

    def _spell(self, text: str) -> list[int]:
        """A word as symbols of the model, letter by letter in the case that it knows."""
        letters = []
        for letter in spoken_form(text):
            for form in (letter, letter.upper()):
                if form in self._vocabulary and self._vocabulary[form] not in self._special:
                    letters.append(self._vocabulary[form])
                    break
        return letters

    def _word(self, text: str, start: int, stop: int) -> Word:
        grid = convolution_grid(self._kernels, self._strides)
        hop, first_edge = grid.hop_samples, grid.first_centre_samples - grid.hop_samples / 2
        return Word(text, first_edge + start * hop, first_edge + stop * hop)


class WhisperFinder:
    """A Whisper model with word times from its cross attention.

    Its words follow each other without gaps: a pause belongs to a word beside it.
    """

    def __init__(self, name: str, language: str | None = None, device: str = "cpu") -> None:
        transformers = import_transformers()
        folder = find_model(name, needs_tokenizer=True, needs_preprocessor=True)
        model = load_whisper(folder, device)
        if getattr(model.generation_config, "alignment_heads", None) is None:
            raise ValueError(
                f"the Whisper model {name!r} has no alignment_heads in generation_config.json (or "
                "CTranslate2's config.json), which word times need; take one from the openai "
                "organisation, or add them"
            )
        processor = load_processor(folder)
        self._pipeline = transformers.pipeline(
            "automatic-speech-recognition",
            model=model,
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
            device=device,
        )
        self._options = {} if language is None else {"language": language}

    def find(self, waveform: Waveform, text: str | None, utterance_id: str) -> list[Word]:
        """The words that the model hears; `text` is not used."""
        return words_from_chunks(self._run(waveform, "word")["chunks"], len(waveform))

    def hear(self, waveform: Waveform) -> str:
        """The text of a recording of any length."""
        return str(self._run(waveform, True)["text"])

    def _run(self, waveform: Waveform, timestamps: str | bool) -> dict[str, Any]:
        # Without timestamps the pipeline cuts recordings of more than 30 s off.
        result: dict[str, Any] = self._pipeline(
            {"raw": waveform, "sampling_rate": TIME_RATE},
            return_timestamps=timestamps,
            generate_kwargs=self._options,
        )
        return result


def words_from_chunks(chunks: Sequence[Mapping[str, Any]], num_samples: int) -> list[Word]:
    """Words from `text` and `timestamp` (seconds) as transformers gives them.

    An end that is missing is the next word's start, or the end of the recording; times outside the
    recording (Whisper gives some before the start of very short ones) are moved to its border.
    """
    starts = [_inside(chunk["timestamp"][0], num_samples) for chunk in chunks]
    words = []
    for index, chunk in enumerate(chunks):
        end_s = chunk["timestamp"][1]
        following = starts[index + 1] if index + 1 < len(starts) else num_samples
        end = following if end_s is None else _inside(end_s, num_samples)
        text = str(chunk["text"]).strip()
        if text:
            words.append(Word(text, starts[index], max(starts[index], end)))
    return words


def _inside(time_s: float, num_samples: int) -> int:
    """A time as whole samples within a recording."""
    return min(max(round(time_s * TIME_RATE), 0), num_samples)


class PocketSphinxFinder:
    """Words by PocketSphinx (US English), or their times where the text is known or heard.

    Args:
        whisper: recognizes what has no text; None: pocketsphinx itself does.
        use_transcripts: whether the text of the manifest is used where there is one.
    """

    def __init__(
        self, whisper: WhisperFinder | None = None, *, use_transcripts: bool = False
    ) -> None:
        self._sphinx = Sphinx("the teacher's word times by pocketsphinx")
        self._whisper = whisper
        self._use_transcripts = use_transcripts

    def find(self, waveform: Waveform, text: str | None, utterance_id: str) -> list[Word]:
        """Recognized words, or those of `text`, each clip by itself."""
        if self._use_transcripts and text is not None:
            return self._align(waveform, text.split())
        if self._whisper is not None:
            return self._align(waveform, self._whisper.hear(waveform).split())
        return [Word(*word) for word in self._sphinx.recognize(waveform)]

    def _align(self, waveform: Waveform, texts: Sequence[str]) -> list[Word]:
        spoken = [self._known(text) for text in texts]
        wanted = [form for form in spoken if form]
        if not wanted:
            return [Word(text) for text in texts]
        try:
            times = iter(self._sphinx.align(waveform, wanted))
        except SphinxError as error:
            raise AlignmentError(str(error)) from error
        return [
            Word(text, *next(times)[1:]) if form else Word(text)
            for text, form in zip(texts, spoken, strict=True)
        ]

    def _known(self, text: str) -> str:
        """A word that the dictionary has now; empty when it cannot be pronounced."""
        form = spoken_form(text)
        if form and not self._sphinx.knows(form):
            sounds = " ".join(_SOUNDS[letter] for letter in form if letter in _SOUNDS)
            if not sounds or not form.isascii():
                return ""
            self._sphinx.learn(form, sounds.replace("-", " "))
        return form
