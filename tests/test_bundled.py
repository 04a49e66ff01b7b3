"""The model that ships with the package."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dmcodec
from dmcodec.codec.checkpoint import BUNDLED_ID
from dmcodec.metrics.intelligibility import stoi
from dmcodec.metrics.opinion import pesq_wb

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "4077-13754-0000.flac"


@pytest.fixture(scope="module")
def codec() -> dmcodec.Codec:
    return dmcodec.load()


def test_the_bundled_model_has_the_token_interface_of_the_paper(codec: dmcodec.Codec) -> None:
    config = codec.config
    assert codec.model_id == BUNDLED_ID
    assert not codec.training
    assert (config.sample_rate, config.frame_rate, config.bitrate_kbps) == (16000, 50.0, 4.0)
    assert (config.quantizer.num_codebooks, config.quantizer.codebook_size) == (8, 1024)


def test_speech_comes_back_intelligible(codec: dmcodec.Codec) -> None:
    original = dmcodec.read_audio(EXAMPLE)
    decoded = codec.decode(codec.encode(original))[0].numpy()
    assert len(decoded) == len(original)
    assert stoi(original, decoded, 16000) > 0.90
    assert pesq_wb(original, decoded, 16000) > 1.8


def test_every_further_book_helps(codec: dmcodec.Codec) -> None:
    original = dmcodec.read_audio(EXAMPLE)
    encoded = codec.encode(original)
    scores = [
        stoi(original, codec.decode(encoded, num_codebooks=books)[0].numpy(), 16000)
        for books in (1, 2, 4, 8)
    ]
    assert scores == sorted(scores)


def test_mixed_real_speech_gets_the_codes_it_gets_alone(codec: dmcodec.Codec) -> None:
    speech = dmcodec.read_audio(EXAMPLE)
    clips = [speech[:31_234], speech[20_000:], speech[5_000:5_777]]
    together = codec.encode(clips)
    for number, clip in enumerate(clips):
        alone = codec.encode(clip).codes[0]
        np.testing.assert_array_equal(together.item(number).numpy(), alone.numpy())


def test_a_cold_start_loads_nothing_that_is_slow_and_not_needed() -> None:
    program = (
        "import sys, dmcodec, dmcodec.cli; codec = dmcodec.load(); "
        f"codec.decode(codec.encode({str(EXAMPLE)!r})); "
        "print(sorted({'torch._dynamo', 'sympy', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
