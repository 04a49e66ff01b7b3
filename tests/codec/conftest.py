"""A small codec whose books have seen speech-like noise."""

from collections.abc import Callable

import pytest
import torch

from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig


def make_codec(seed: int = 0, **changes: object) -> Codec:
    """A started codec in evaluation mode: hop 320, 4 books of 16 entries."""
    config = CodecConfig(
        seanet=SEANetConfig(num_filters=4, latent_dim=8),
        quantizer=QuantizerConfig(num_codebooks=4, codebook_size=16),
        feature_dim=6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # noqa: TID251 (inside fork_rng)
        codec = Codec(config.model_copy(update=changes))
        codec.decoder.conv_out.conv.weight.data *= 10  # so that tolerances mean something
        codec(torch.randn(8, 1, 6400) * 0.1, update=True)
    return codec.eval()


@pytest.fixture(scope="session")
def codec() -> Codec:
    """Not to be changed by a test; `build_codec` gives one that may be."""
    return make_codec()


@pytest.fixture(scope="session")
def build_codec() -> Callable[..., Codec]:
    """Builds a new codec: build_codec(seed, seanet=..., quantizer=..., ...)."""
    return make_codec


@pytest.fixture
def generator() -> torch.Generator:
    """The source of a test's inputs."""
    return torch.Generator().manual_seed(1)
