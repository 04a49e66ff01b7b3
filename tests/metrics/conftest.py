"""Real speech for the tests of this room."""

from pathlib import Path

import numpy as np
import pytest

from dmcodec.audio import read_audio, remove_dc

EXAMPLE = Path(__file__).parents[2] / "examples" / "4077-13754-0000.flac"


TINY_WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
"""Sizes of a HuBERT or wav2vec 2.0 of transformers that a test makes with random weights."""


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    """4.8 s of real speech at 16 kHz, without DC, within 16 bits."""
    waveform = remove_dc(read_audio(EXAMPLE))
    return (np.round(waveform * 32768) / 32768).astype(np.float32)
