"""Sound files to `.dmc` files and back with a codec, and what a reconstruction is worth.

One file at a time; which files, and where results go, is paths.py's.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dmcodec.audio import (
    SoundBytes,
    Waveform,
    audio_info,
    hold_pipe,
    read_audio,
    read_parts,
    samples_to_seconds,
)
from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import LONG_FRAMES, Codec, Encoded
from dmcodec.packages import import_package
from dmcodec.quality import Unmeasurable, pesq_wb, stoi
from dmcodec.storage import open_whole
from dmcodec.tokens.bitstream import MAX_MODEL_ID_LENGTH, Header, dumps, loads, silence_lost_frames


@dataclass(frozen=True)
class Identity:
    """What a `.dmc` file says about the codec that made its codes (see `Header`)."""

    model_id: str
    model_hash: str


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


def identify(codec: Codec) -> Identity:
    """The identity of a codec; reads all weights, so ask once for many files."""
    name = "".join(c for c in codec.model_id.rpartition("/")[2] if " " <= c <= "~")
    return Identity(name[:MAX_MODEL_ID_LENGTH] or "untitled", codec.fingerprint())


def encode_file(
    codec: Codec,
    identity: Identity,
    path: Path | SoundBytes,
    *,
    num_codebooks: int | None = None,
    search_width: int = 1,
) -> bytes:
    """The `.dmc` file of a sound file, read in parts: memory does not grow with its length.

    A pipe is read as a whole, at once.
    """
    sample_rate, hop_length = codec.config.sample_rate, codec.config.hop_length
    sound = hold_pipe(path)
    total = audio_info(sound).num_samples_at(sample_rate)
    if total <= LONG_FRAMES * hop_length:
        waveform = read_audio(sound, sample_rate=sample_rate)
        encoded = codec.encode(waveform, num_codebooks=num_codebooks, search_width=search_width)
        return pack(codec, identity, encoded)
    parts = read_parts(sound, sample_rate=sample_rate, num_samples=total)
    codes, num_samples = encode_long(
        codec,
        map(torch.from_numpy, parts),
        num_codebooks=num_codebooks,
        search_width=search_width,
    )
    lengths = torch.tensor([codes.shape[1]])
    return pack(codec, identity, Encoded(codes[None], lengths, torch.tensor([num_samples])))


def pack(codec: Codec, identity: Identity, encoded: Encoded) -> bytes:
    """The `.dmc` file of the codes of one waveform, from book 1 on."""
    codes = encoded.item(0).cpu().numpy()
    return dumps(codes, make_header(codec, identity, int(encoded.num_samples[0]), len(codes)))


def make_header(codec: Codec, identity: Identity, num_samples: int, num_codebooks: int) -> Header:
    """The header of codes that a codec makes of `num_samples` samples."""
    return Header(
        sample_rate=codec.config.sample_rate,
        hop_length=codec.config.hop_length,
        num_codebooks=num_codebooks,
        codebook_size=codec.config.quantizer.codebook_size,
        num_samples=num_samples,
        model_id=identity.model_id,
        model_hash=identity.model_hash,
    )


def decode_bytes(
    codec: Codec,
    identity: Identity | None,
    data: bytes,
    *,
    num_codebooks: int | None = None,
    on_damage: Literal["raise", "skip"] = "raise",
) -> tuple[Waveform, tuple[int, ...]]:
    """The waveform [T] of a `.dmc` file and the numbers of its damaged chunks.

    Errors are those of `decode_blocks`.
    """
    blocks, damaged = decode_blocks(
        codec, identity, data, num_codebooks=num_codebooks, on_damage=on_damage
    )
    return np.concatenate(list(blocks)), damaged


def decode_blocks(
    codec: Codec,
    identity: Identity | None,
    data: bytes,
    *,
    num_codebooks: int | None = None,
    on_damage: Literal["raise", "skip"] = "raise",
) -> tuple[Iterator[Waveform], tuple[int, ...]]:
    """The waveform of a `.dmc` file in blocks [T_i], and the numbers of its damaged chunks.

    A long file comes in pieces as they are decoded: memory grows with its codes (8 bytes each)
    but not with its sound.

    Raises BitstreamError for a damaged file, and ValueError for codes of another model than
    `identity`, which would decode to noise (None: not checked). With `on_damage="skip"` lost
    frames are silent.
    """
    file = loads(data, on_damage=on_damage)
    header, config = file.header, codec.config
    if identity is not None:
        header.check_model(identity.model_id, identity.model_hash)
    header.check_layout(config.sample_rate, config.hop_length, config.quantizer.codebook_size)
    codes = torch.from_numpy(file.codes)[None]
    encoded = Encoded(codes, torch.tensor([header.num_frames]), torch.tensor([header.num_samples]))
    encoded = encoded.select_codebooks(0, num_codebooks or header.num_codebooks)

    def blocks() -> Iterator[Waveform]:
        if header.num_frames <= LONG_FRAMES:
            yield codec.decode(encoded)[0].cpu().numpy()
        else:
            for piece in decode_long(codec, encoded.codes[0], header.num_samples):
                yield piece.cpu().numpy()

    return silence_lost_frames(blocks(), file), file.damaged_chunks


def reconstruct(
    codec: Codec,
    identity: Identity,
    path: Path,
    *,
    num_codebooks: int | None = None,
    search_width: int = 1,
) -> Reconstruction:
    """Sends a sound file through the codec and its `.dmc` form, and measures the result."""
    original = read_audio(path, sample_rate=codec.config.sample_rate)
    started = time.perf_counter()
    encoded = codec.encode(original, num_codebooks=num_codebooks, search_width=search_width)
    encode_s = time.perf_counter() - started
    data = pack(codec, identity, encoded)
    started = time.perf_counter()
    decoded, _ = decode_bytes(codec, identity, data)
    decode_s = time.perf_counter() - started
    scores, missing = {}, {}
    for name, measure in (("stoi", stoi), ("pesq_wb", pesq_wb)):
        try:
            scores[name] = measure(original, decoded, codec.config.sample_rate)
        except Unmeasurable as reason:
            missing[name] = str(reason)
    codes = encoded.item(0).cpu().numpy()
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
    from dmcodec.spectral import log_mel_spectrogram

    new_figure = import_package("matplotlib.figure", "a plot").Figure
    new_canvas = import_package("matplotlib.backends.backend_agg", "a plot").FigureCanvasAgg

    pair = torch.from_numpy(np.stack([result.original, result.decoded]))
    mels = log_mel_spectrogram(
        pair, sample_rate=sample_rate, n_fft=1024, hop_length=256, win_length=1024, num_mels=80
    ).numpy()
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
