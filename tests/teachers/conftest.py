"""Tiny random models, saved as Hugging Face folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

CONVOLUTIONS = {"conv_dim": [8] * 7, "num_feat_extract_layers": 7}
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
SENTENCE = ["how", "can", "they", "be", "allowed", "to", "trade"]
WORDS = [*SENTENCE, "hello", "world", "again", "don", "##t", "##ing", "a", "b", "c"]


def speech_like(num_samples: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.1, num_samples)
    return (noise * (1 + np.sin(np.arange(num_samples) / 2_000))).astype(np.float32)


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers", reason="teacher models need dmcodec[teachers]")


@pytest.fixture(scope="session")
def language_model(transformers, tmp_path_factory) -> Path:
    """A BERT with 3 layers of width 12 and room for 40 tokens."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = folder / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *WORDS]) + "\n")
    tokens = {token: number for number, token in enumerate([*special, *WORDS])}
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=40,
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )
    torch.manual_seed(1)  # noqa: TID251 (the library draws weights from the global generator)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def save_speech_model(transformers, folder: Path, *, uses_masks: bool) -> Path:
    torch.manual_seed(2)  # noqa: TID251
    if uses_masks:
        config = transformers.Wav2Vec2Config(
            **CONVOLUTIONS, **ENCODER, feat_extract_norm="layer", do_stable_layer_norm=True
        )
        transformers.Wav2Vec2Model(config).save_pretrained(folder)
    else:
        config = transformers.HubertConfig(**CONVOLUTIONS, **ENCODER)
        transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=True, return_attention_mask=uses_masks
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def speech_model(transformers, tmp_path_factory) -> Path:
    """A HuBERT with 2 layers of width 16, trained without masks as the base models are."""
    return save_speech_model(transformers, tmp_path_factory.mktemp("hubert"), uses_masks=False)


@pytest.fixture(scope="session")
def masked_speech_model(transformers, tmp_path_factory) -> Path:
    """A wav2vec 2.0 with 2 layers of width 16 that takes masks as the large models do."""
    return save_speech_model(transformers, tmp_path_factory.mktemp("wav2vec2"), uses_masks=True)


@pytest.fixture(scope="session")
def ctc_model(transformers, tmp_path_factory) -> Path:
    """A wav2vec 2.0 with a character head."""
    folder = tmp_path_factory.mktemp("ctc")
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    transformers.Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    torch.manual_seed(3)  # noqa: TID251
    config = transformers.Wav2Vec2Config(**CONVOLUTIONS, **ENCODER, vocab_size=len(symbols))
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whisper_model(transformers, tmp_path_factory) -> Path:
    """A multilingual Whisper with one layer of width 16 that spells with single bytes."""
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    folder = tmp_path_factory.mktemp("whisper")
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    special += ["<|nospeech|>", "<|notimestamps|>"]
    symbols = [*sorted(ByteLevel.alphabet()), *special]
    tokens = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = transformers.WhisperTokenizer(
        vocab=tokens, merges=[], language="en", task="transcribe"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    times = [f"<|{0.02 * number:.2f}|>" for number in range(1501)]
    tokenizer.add_tokens([AddedToken(time, special=False) for time in times])
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    end, start = tokens["<|endoftext|>"], tokens["<|startoftranscript|>"]
    torch.manual_seed(5)  # noqa: TID251
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=64,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        is_multilingual=True,
        lang_to_id={"<|en|>": tokens["<|en|>"]},
        task_to_id={name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate")},
        no_timestamps_token_id=tokens["<|notimestamps|>"],
        prev_sot_token_id=tokens["<|startofprev|>"],
        alignment_heads=[[0, 0], [0, 1]],
        max_initial_timestamp_index=50,
        max_length=40,
    ).save_pretrained(folder)
    return folder
