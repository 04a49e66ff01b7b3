"""dmcodec: speech to tokens that a language model can use, and back to speech.

The public names are loaded when first used, so that `import dmcodec` is quick:

    import dmcodec

    codec = dmcodec.load()                     # the bundled model
    encoded = codec.encode("speech.wav")       # codes [1, 8, L], 50 frames a second
    waveform = codec.decode(encoded)           # [1, T] float32 at 16 kHz
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmcodec.audio import AudioError, read_audio, resample, write_audio
    from dmcodec.codec.card import Card
    from dmcodec.codec.model import Codec, CodecConfig, Encoded, load
    from dmcodec.codec.published import load_published
    from dmcodec.tokens.bitstream import BitstreamError, Header, dumps, loads

__all__ = [
    "AudioError",
    "BitstreamError",
    "Card",
    "Codec",
    "CodecConfig",
    "Encoded",
    "Header",
    "__version__",
    "dumps",
    "load",
    "load_published",
    "loads",
    "read_audio",
    "resample",
    "write_audio",
]

_HOMES = {
    "dmcodec.audio": ("AudioError", "read_audio", "resample", "write_audio"),
    "dmcodec.codec.card": ("Card",),
    "dmcodec.codec.model": ("Codec", "CodecConfig", "Encoded", "load"),
    "dmcodec.codec.published": ("load_published",),
    "dmcodec.tokens.bitstream": ("BitstreamError", "Header", "dumps", "loads"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("dmcodec")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'dmcodec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
