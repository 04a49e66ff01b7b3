"""A sound file through a codec and back: what it costs, and what is left of it."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmcodec.audio import Waveform, read_audio, samples_to_seconds
from dmcodec.codec.model import Codec
from dmcodec.files import Engine, decode_bytes
from dmcodec.metrics.pair import score_pair
from dmcodec.metrics.signal import log_mel
from dmcodec.packages import import_package
from dmcodec.storage import open_whole
from dmcodec.tokens.bitstream import dumps, make_header


@dataclass(frozen=True)
class Reconstruction:
    """A waveform through the codec and back, with what it cost and what is left of it.

    original, decoded: waveforms [T] at the codec's sample rate.
    codes: [K, L]. data: the `.dmc` file.
    encode_s, decode_s: wall time, without reading the sound file.
    scores: measures that have a value; missing: the others with their reasons.
    """

    original: Waveform
    decoded: Waveform
    codes: np.ndarray
    data: bytes
    encode_s: float
    decode_s: float
    scores: dict[str, float]
    missing: dict[str, str]


def reconstruct(
    engine: Engine, path: Path, *, num_codebooks: int | None = None, search_width: int = 1
) -> Reconstruction:
    """Sends a sound file through a codec and its `.dmc` form, and measures the result."""
    original = read_audio(path, sample_rate=engine.sample_rate)
    started = time.perf_counter()
    codes, num_samples = engine.encode_parts(
        [original], num_codebooks=num_codebooks, search_width=search_width
    )
    encode_s = time.perf_counter() - started
    data = dumps(codes, make_header(engine, num_samples, len(codes)))
    started = time.perf_counter()
    decoded, _ = decode_bytes(engine, data)
    decode_s = time.perf_counter() - started
    scores, missing = score_pair(original, decoded, engine.sample_rate)
    return Reconstruction(original, decoded, codes, data, encode_s, decode_s, scores, missing)


def describe_cost(
    codec: Codec,
    *,
    num_samples: int,
    num_bytes: int,
    num_books: int,
    encode_s: float | None,
    decode_s: float,
) -> dict[str, str]:
    """What a recording costs as the codes of `num_books` books, for people, by name.

    Args:
        codec: made the codes.
        num_samples: of the recording, at the codec's rate.
        num_bytes: of the `.dmc` file.
        num_books: in the file.
        encode_s: wall time; None where nothing was encoded.
        decode_s: wall time.
    """
    config = codec.config
    duration_s = samples_to_seconds(num_samples, config.sample_rate)
    pcm_bytes = 2 * num_samples
    encoding = "" if encode_s is None else f"encode {duration_s / encode_s:.0f}x, "
    return {
        "speech": f"{duration_s:.2f} s at {config.sample_rate} Hz",
        "codes": f"{config.frame_rate * num_books:.0f} a second ({config.frame_rate:g} "
        f"frames/s x {num_books} books of {config.quantizer.codebook_size})",
        "bitrate": f"{config.bitrate_kbps * num_books / config.quantizer.num_codebooks:g}"
        f" kbps of codes, {num_bytes * 8 / duration_s / 1000:.2f} kbps with header and checksums",
        "size": f"{num_bytes} bytes as .dmc, {pcm_bytes} as 16-bit PCM "
        f"({pcm_bytes / num_bytes:.0f} times less)",
        "speed": f"{encoding}decode {duration_s / decode_s:.0f}x real time",
    }


def plot_reconstruction(result: Reconstruction, sample_rate: int, title: str, path: Path) -> None:
    """One PNG: log-mel spectrograms of original and decoded, and the code map below."""
    new_figure = import_package("matplotlib.figure", "a plot").Figure
    new_canvas = import_package("matplotlib.backends.backend_agg", "a plot").FigureCanvasAgg

    mels = np.stack([log_mel(each, sample_rate) for each in (result.original, result.decoded)])
    duration_s = samples_to_seconds(len(result.original), sample_rate)
    figure = new_figure(figsize=(11, 7.5), layout="constrained")
    new_canvas(figure)
    axes = figure.subplots(3, 1, sharex=True)
    for axis, mel, name in zip(axes[:2], mels, ("original", "decoded"), strict=True):
        image = axis.imshow(
            mel,
            origin="lower",
            aspect="auto",
            extent=(0, duration_s, 0, len(mel)),
            cmap="magma",
            vmin=float(np.quantile(mels, 0.02)),
            vmax=float(mels.max()),
        )
        axis.set_ylabel(f"{name}\nmel band")
    figure.colorbar(image, ax=axes[:2], label="log magnitude", pad=0.01)
    books = len(result.codes)
    axes[2].imshow(
        result.codes,
        aspect="auto",
        extent=(0, duration_s, books + 0.5, 0.5),
        cmap="viridis",
        interpolation="nearest",
    )
    axes[2].set_yticks(range(1, books + 1))
    axes[2].set_ylabel("codebook\n(colour: code)")
    axes[2].set_xlabel("time, s")
    figure.suptitle(title, parse_math=False)  # a name with dollar signs is no formula
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path) as file:
        figure.savefig(file, dpi=110, format="png")
