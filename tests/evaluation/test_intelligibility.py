import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmcodec.evaluation.intelligibility import (
    ErrorCounts,
    count_errors,
    load_recognizer,
    make_normalizer,
    recognizer_identity,
)
from dmcodec.quality import Unmeasurable


def test_word_errors_are_those_counted_by_hand() -> None:
    pytest.importorskip("jiwer", reason="pip install jiwer")

    words, characters = count_errors("one two three four", "one three four five six")

    # "two" is deleted, "five" and "six" are inserted.
    assert words == ErrorCounts(hits=3, substitutions=0, deletions=1, insertions=2)
    assert words.error_rate == pytest.approx(3 / 4)
    assert words.information_lost == pytest.approx(1 - 9 / 20)
    assert characters.reference_length == len("one two three four")


def test_rates_are_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer", reason="pip install jiwer")
    pair = ("he hoped there would be stew for dinner", "he hope there would stew and dinner too")

    words, characters = count_errors(*pair)

    assert words.error_rate == pytest.approx(jiwer.wer(*pair))
    assert words.information_lost == pytest.approx(jiwer.wil(*pair))
    assert characters.error_rate == pytest.approx(jiwer.cer(*pair))


def test_nothing_recognized_is_all_deletions() -> None:
    pytest.importorskip("jiwer", reason="pip install jiwer")

    words, _ = count_errors("two words", "")

    assert (words.error_rate, words.information_lost, words.deletions) == (1.0, 1.0, 2)


def test_empty_reference_has_no_error_rate() -> None:
    with pytest.raises(Unmeasurable, match="reference text is empty"):
        count_errors("", "words")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't STOP, he said — 'now'!", "don't stop he said now"),
        ("it\u2019s  well-known\nand_so", "it's well known and so"),
        ("Grün 5 o'clock.", "grün 5 o'clock"),
        ("...", ""),
        ("हिन्दी, ठीक है।", "हिन्दी ठीक है"),
        ("ที่นี่ (ครับ)", "ที่นี่ ครับ"),
        ("தமிழ்!", "தமிழ்"),
        ("السَّلَامُ عَلَيْكُمْ", "السَّلَامُ عَلَيْكُمْ"),
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("\u0130zmir I\u0307zmir", "izmir izmir"),
        (
            "c\u02bchoant don\u2018t don\u00b4t rock\u2019n\u2019roll",
            "c'hoant don't don't rock'n'roll",
        ),
        ("\u2018now\u2019 ''then'' 'tis", "now then tis"),
        ("co\u00adop नि\u200dन a\u200bb 1\ufe0f\u20e3", "coop निन a b 1"),
        ("\u00a8 \u0301 ", ""),
    ],
)
def test_basic_normalizer_keeps_words_only(text: str, expected: str) -> None:
    assert make_normalizer("basic")(text) == expected


@pytest.mark.parametrize(
    ("said", "heard"),
    [("की", "का"), ("นี่", "นี้"), ("சி", "சு"), ("عِلْم", "عَلَم"), ("שָׁם", "שֵׁם")],
)
def test_words_that_differ_in_marks_alone_are_different(said: str, heard: str) -> None:
    normalize = make_normalizer("basic")

    words, _ = count_errors(normalize(said), normalize(heard))

    assert (words.reference_length, words.substitutions) == (1, 1)


def test_normalizing_twice_changes_nothing() -> None:
    normalize = make_normalizer("basic")

    for code in [*range(0x3100), 0xFF07, 0xFF40, 0x1E9E, 0xE0100]:
        once = normalize(f"a{chr(code)}b {chr(code)}")

        assert normalize(once) == once


def test_whisper_normalizer_writes_numbers_as_digits() -> None:
    pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")

    assert make_normalizer("whisper")("TWENTY FIVE dollars, isn't it?") == "$25 is not it"


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
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
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
