"""The card of a codec folder, as the Hugging Face Hub shows it: what it is and how it sounds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dmcodec.codec.inputs import Audio
from dmcodec.codec.network import CodecNetwork

_TAGS = ["speech", "audio-codec", "speech-tokenizer"]
_USE = """```python
import dmcodec

codec = dmcodec.Codec.from_pretrained("{name}")
encoded = codec.encode("speech.wav")   # encoded.codes [1, {books}, L]
waveform = codec.decode(encoded)       # [1, T] at {sample_rate} Hz
```"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says beside the codec's own numbers.

    Attributes:
        title: the heading.
        text: Markdown: data, training, limits.
        license: as the Hub names it, such as "cc-by-4.0".
        language: codes of the languages it was trained on.
        samples: what each is called -> a recording (whatever `Codec.encode` takes). Players of the
            recording and of what the codec makes of it come onto the card.
        books: from how many books each sample is decoded; None: from all.
        figures: measure -> value, in a table and in the metadata that the Hub reads.
        measured_on: which recordings the figures are of.

    Raises ValueError for figures without `measured_on`, and for samples whose names give one file.
    """

    title: str
    text: str = ""
    license: str | None = None
    language: Sequence[str] = ("en",)
    samples: Mapping[str, Audio] = field(default_factory=dict)
    books: Sequence[int] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""

    def __post_init__(self) -> None:
        if self.figures and not self.measured_on:
            raise ValueError("figures need measured_on: which recordings are they of?")
        if len({_slug(name) for name in self.samples}) < len(self.samples):
            raise ValueError(f"names of samples are too alike: {', '.join(self.samples)}")

    def books_heard(self, codec: CodecNetwork) -> tuple[int, ...]:
        """From how many books samples are decoded."""
        return tuple(self.books) if self.books else (codec.config.quantizer.num_codebooks,)


def sample_file(name: str, num_books: int | None) -> str:
    """The name of a sample's file; None: of the recording itself."""
    what = "original" if num_books is None else f"{num_books}-books"
    return f"sample-{_slug(name)}-{what}.flac"


def card_text(codec: CodecNetwork, card: Card | None, name: str, address: str = "") -> str:
    """README.md of a codec folder: metadata in YAML, then Markdown.

    Args:
        codec: whose numbers stand there.
        card: what else does; None: nothing.
        name: what `from_pretrained` is to be given.
        address: of the folder that holds the samples, with a slash at its end; "" beside the card.
    """
    card = card or Card(title="Speech codec")
    config = codec.config
    books, size = config.quantizer.num_codebooks, config.quantizer.codebook_size
    parts = [
        f"---\n{_metadata(card)}\n---",
        f"# {card.title}",
        f"A speech tokenizer for the package dmcodec: {books} x {size} codes, "
        f"{config.frame_rate:g} frames/s, {config.bitrate_kbps:g} kbps at {config.sample_rate} Hz; "
        f"{codec.num_parameters / 1e6:.1f} million parameters, "
        f"fingerprint `{codec.fingerprint()}`.",
        _USE.format(name=name, books=books, sample_rate=config.sample_rate),
    ]
    if card.text:
        parts.append(card.text.strip())
    if card.samples:
        parts += ["## Samples", _players(card, card.books_heard(codec), address)]
    if card.figures:
        rows = [f"| {measure} | {value:.4g} |" for measure, value in card.figures.items()]
        parts += ["## Figures", f"Measured on {card.measured_on}."]
        parts.append("\n".join(["| measure | value |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _metadata(card: Card) -> str:
    """What the Hub reads: licence, languages, tags, figures."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="audio-to-audio",
            dataset_type="speech",
            dataset_name=card.measured_on,
            metric_type=_slug(measure),
            metric_name=measure,
            metric_value=value,
        )
        for measure, value in card.figures.items()
    ]
    data = ModelCardData(
        library_name="dmcodec",
        license=card.license,
        language=list(card.language),
        tags=_TAGS,
        model_name=card.title if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _players(card: Card, books: Sequence[int], address: str) -> str:
    """A table of players: a line for each sample, the recording first."""
    lines = ["| | recording | " + " | ".join(_in_books(count) for count in books) + " |"]
    lines.append("|---" * (2 + len(books)) + "|")
    for name in card.samples:
        files = [sample_file(name, count) for count in (None, *books)]
        players = [f'<audio controls src="{address}{file}"></audio>' for file in files]
        lines.append(f"| {name} | " + " | ".join(players) + " |")
    return "\n".join(lines)


def _in_books(count: int) -> str:
    return f"{count} book" + "s" * (count > 1)


def _slug(name: str) -> str:
    """Lower-case letters, digits and hyphens: fit for a file's name and an address."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"
