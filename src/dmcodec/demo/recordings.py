"""What a visitor gave, as codes, and what can be decoded from them: n books, one book, two voices.

Everything that cannot be used raises `Refused` with a sentence that a visitor understands. Codes
are computed once; each setting is decoded when it is asked for.
"""

import re
import time
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import torch
from torch import Tensor

from dmcodec.audio import (
    AudioError,
    SoundBytes,
    Waveform,
    audio_info,
    read_audio,
    samples_to_seconds,
)
from dmcodec.codec.model import Encoded
from dmcodec.demo.models import Model, Refused
from dmcodec.metrics.measure import Unmeasurable, is_silent
from dmcodec.metrics.pair import score_pair
from dmcodec.packages import MissingPackage
from dmcodec.reconstruction import describe_cost
from dmcodec.tokens.bitstream import MAGIC, BitstreamError, dumps, loads, make_header, read_header

MAX_NAME_LENGTH = 60

Fit = Literal["stretch", "cut"]
"""How recordings of different lengths are mixed: the second one is stretched, or both are cut."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One recording as codes.

    name: of files that are made of it, without suffix.
    encoded: one item, from book 1 on.
    original: waveform [T] at the codec's sample rate; None where only codes were given.
    encode_s: wall time; None where only codes were given.
    """

    name: str
    model: Model
    encoded: Encoded
    original: Waveform | None
    encode_s: float | None

    @property
    def num_codebooks(self) -> int:
        """Books that are there: a `.dmc` file may hold fewer than its model has."""
        return self.encoded.codes.shape[1]

    @property
    def sample_rate(self) -> int:
        """Of the codec, Hz."""
        return self.model.codec.config.sample_rate

    @property
    def codes(self) -> Tensor:
        """[K, L]."""
        return self.encoded.item(0)

    @property
    def num_samples(self) -> int:
        """T."""
        return int(self.encoded.num_samples[0])

    def dumps(self, num_codebooks: int) -> bytes:
        """The `.dmc` file of the first n books."""
        header = make_header(self.model.engine, self.num_samples, num_codebooks)
        return dumps(self.codes[:num_codebooks].cpu().numpy(), header)


@dataclass(frozen=True, eq=False)
class Decoded:
    """The waveform [T] of the first n books of a recording, and the wall time of decoding it."""

    num_codebooks: int
    waveform: Waveform
    decode_s: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Two recordings that exchange books, all waveforms [T] of one length.

    notice: what was done to their lengths, as a sentence.
    """

    first: Waveform
    second: Waveform
    first_with_second: Waveform
    second_with_first: Waveform
    notice: str


def open_recording(model: Model, sound: SoundBytes, *, max_seconds: float) -> Recording:
    """The recording in a sound file of any kind, or in a `.dmc` file.

    Raises Refused for what is damaged, silent, too long, no sound, or codes of another model.
    """
    name = clean_name(sound.name)
    if sound.data[: len(MAGIC)] == MAGIC or sound.name.lower().endswith(".dmc"):
        encoded = _read_codes(model, sound, max_seconds)
        return Recording(name, model, encoded, original=None, encode_s=None)
    codec = model.codec
    try:
        info = audio_info(sound)
        _check_length(sound.name, info.num_samples, info.sample_rate, max_seconds)
        original = read_audio(sound, sample_rate=codec.config.sample_rate)
    except AudioError as problem:
        raise Refused(f"{problem}.") from problem
    if is_silent(original):
        raise Refused(f"{sound.name} is silent: there is nothing in it to encode.")
    started = time.perf_counter()
    encoded = codec.encode(original)
    return Recording(name, model, encoded, original, time.perf_counter() - started)


def clean_name(name: str) -> str:
    """A file's name without folders and suffix, and of letters that every system takes."""
    stem = re.sub(r"[^\w\- .]+", "_", PurePath(name.replace("\\", "/")).stem).strip(" ._")
    return stem[:MAX_NAME_LENGTH] or "recording"


def decode(recording: Recording, num_codebooks: int, first_codebook: int = 0) -> Decoded:
    """What `num_codebooks` books from `first_codebook` (0: the first) on sound like."""
    books = recording.encoded.select_codebooks(first_codebook, first_codebook + num_codebooks)
    started = time.perf_counter()
    waveform = recording.model.codec.decode(books)[0].cpu().numpy()
    return Decoded(num_codebooks, waveform, time.perf_counter() - started)


def describe_books(recording: Recording, decoded: Decoded) -> dict[str, str]:
    """What the first books of a recording cost and are worth, by name."""
    rows = describe_cost(
        recording.model.codec,
        num_samples=recording.num_samples,
        num_bytes=len(recording.dumps(decoded.num_codebooks)),
        num_books=decoded.num_codebooks,
        encode_s=recording.encode_s,
        decode_s=decoded.decode_s,
    )
    if recording.original is None:
        return rows | {"quality": "a .dmc file holds no original to compare with"}
    scores, missing = score_pair(
        recording.original,
        decoded.waveform,
        recording.sample_rate,
        reasons=(Unmeasurable, MissingPackage),
    )
    shown = {name: f"{value:.3f} against the original" for name, value in scores.items()}
    shown |= {name: f"none: {reason}" for name, reason in missing.items()}
    return rows | {"STOI": shown["stoi"], "PESQ-WB": shown["pesq_wb"]}


def mix(first: Recording, second: Recording, *, num_from_first: int = 1, fit: Fit) -> Mixture:
    """The first books of each recording with the other books of the other one.

    What book 1 carries (what is said, if teachers did their work) then meets what the others carry
    (who says it, and how). Reference: Zhang et al. 2024, arXiv:2308.16692 (SpeechTokenizer), where
    this is called one-shot voice conversion.

    Args:
        first: gives the length.
        second: of the same model.
        num_from_first: books that are exchanged, 1 to K - 1.
        fit: stretch (frames of the second one are repeated or left out evenly) or cut (both to the
            shorter one).

    Raises Refused for recordings of different models or without a book to exchange.
    """
    if first.model.engine.model_hash != second.model.engine.model_hash:
        raise Refused("The two recordings are codes of different models: give them again.")
    num_books = min(first.num_codebooks, second.num_codebooks)
    if num_books < 2:
        raise Refused("One of the recordings has one book only: there is nothing to exchange.")
    if not 1 <= num_from_first < num_books:
        raise Refused(
            f"Of {num_books} books, 1 to {num_books - 1} can be exchanged, not {num_from_first}."
        )
    codec = first.model.codec
    ours, theirs, notice = _fit(first.codes[:num_books], second.codes[:num_books], fit)
    hop_length = codec.config.hop_length
    num_samples = min(first.num_samples, ours.shape[1] * hop_length)
    mixed = [
        torch.cat([low[:num_from_first], high[num_from_first:]])
        for low, high in ((ours, ours), (theirs, theirs), (ours, theirs), (theirs, ours))
    ]
    lengths = torch.full((len(mixed),), ours.shape[1])
    encoded = Encoded(torch.stack(mixed), lengths, torch.full_like(lengths, num_samples))
    waveforms = codec.decode(encoded).cpu().numpy()
    return Mixture(waveforms[0], waveforms[1], waveforms[2], waveforms[3], notice)


def _fit(ours: Tensor, theirs: Tensor, fit: Fit) -> tuple[Tensor, Tensor, str]:
    """Codes [K, L] of one length, and what was done to them."""
    length, other = ours.shape[1], theirs.shape[1]
    if length == other:
        return ours, theirs, f"Both have {length} frames."
    if fit == "cut":
        shorter = min(length, other)
        which = "first" if length > other else "second"
        notice = f"The {which} was cut from {max(length, other)} to {shorter} frames."
        return ours[:, :shorter], theirs[:, :shorter], notice
    # The frame of the second one under the middle of each frame of the first one.
    frames = (2 * torch.arange(length, device=theirs.device) + 1) * other // (2 * length)
    verb = "repeated" if other < length else "left out"
    return (
        ours,
        theirs[:, frames],
        f"The second was stretched from {other} to {length} frames: {abs(length - other)} were "
        f"{verb}.",
    )


def _read_codes(model: Model, sound: SoundBytes, max_seconds: float) -> Encoded:
    """The codes of a `.dmc` file, from book 1 on."""
    try:
        header = read_header(sound.data)
        _check_length(sound.name, header.num_samples, header.sample_rate, max_seconds)
        file = loads(sound.data)
    except BitstreamError as problem:
        raise Refused(f"{sound.name} cannot be read: {problem}.") from problem
    if header.model_hash != model.engine.model_hash:
        raise Refused(
            f"{sound.name} holds codes of the model {header.model_id} ({header.model_hash}), and "
            f"{model.engine.model_id} ({model.engine.model_hash}) is chosen: choose the right "
            "model, then give the file again."
        )
    config = model.codec.config
    try:
        header.check_layout(config.sample_rate, config.hop_length, config.quantizer.codebook_size)
    except ValueError as problem:
        raise Refused(f"{sound.name} cannot be decoded: {problem}.") from problem
    if header.num_codebooks > config.quantizer.num_codebooks:
        raise Refused(f"{sound.name} has {header.num_codebooks} books, more than its model has.")
    codes = torch.from_numpy(file.codes)[None]
    return Encoded(codes, torch.tensor([header.num_frames]), torch.tensor([header.num_samples]))


def _check_length(name: str, num_samples: int, sample_rate: int, max_seconds: float) -> None:
    duration_s = samples_to_seconds(num_samples, sample_rate)
    if duration_s > max_seconds:
        raise Refused(
            f"{name} lasts {duration_s:.1f} s, and this page takes up to {max_seconds:g} s: cut "
            "it. Who runs the page can raise the limit with --max-seconds."
        )
