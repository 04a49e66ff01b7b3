"""What the page shows of sound, as HTML: log-mel spectrograms, the code map, figures, players.

Pictures are bare pixels; words, axes and colours around them are HTML, so that they stay readable
on narrow screens and follow the page's light and dark. Time runs from the left edge to the right
one in every picture, to the sample. Names that visitors chose are escaped here.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dmcodec.audio import samples_to_seconds
from dmcodec.demo.recordings import Decoded, Recording
from dmcodec.metrics.signal import log_mel
from dmcodec.packages import import_package

MEL_HOP = 256
"""Samples of a column of `log_mel`."""
_MAX_TICKS = 6
_TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_UNUSED_ALPHA = 40
"""Of 255: how much is seen of codes that were not decoded."""

Pixels = npt.NDArray[np.uint8]


class Player(NamedTuple):
    """A sound that the page can play: its caption and its address."""

    caption: str
    address: str


def show_message(text: str) -> str:
    """A sentence for a visitor whose request cannot be done; nothing for no text."""
    return f'<p class="dm-alert" role="alert">{escape(text)}</p>' if text else ""


def show_figures(rows: Mapping[str, str]) -> str:
    """Names and values, one row each."""
    lines = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f'<table class="dm-figures"><tbody>{"".join(lines)}</tbody></table>'


def show_players(rows: Mapping[str, Sequence[Player]]) -> str:
    """Rows of players, each row with a heading; on narrow screens they stand below each other."""
    parts = []
    for heading, players in rows.items():
        cells = "".join(
            f"<figure><figcaption>{escape(each.caption)}</figcaption>"
            f'<audio controls preload="metadata" src="{escape(each.address)}" '
            f'aria-label="{escape(heading)}: {escape(each.caption)}"></audio></figure>'
            for each in players
        )
        parts.append(f'<section class="dm-row"><h3>{escape(heading)}</h3>{cells}</section>')
    return f'<div class="dm-players">{"".join(parts)}</div>'


def show_pictures(recording: Recording, decoded: Decoded) -> str:
    """Spectrograms of original and decoded, and the code map below, over one axis of time."""
    sample_rate = recording.sample_rate
    sounds = {f"decoded from {count_books(decoded.num_codebooks)}": decoded.waveform}
    if recording.original is not None:
        sounds = {"original": recording.original, **sounds}
    mels = {name: log_mel(waveform, sample_rate) for name, waveform in sounds.items()}
    low = min(float(np.quantile(mel, 0.02)) for mel in mels.values())
    high = max(float(mel.max()) for mel in mels.values())
    top = f"{sample_rate / 2000:g} kHz"
    figures = [
        _show_picture(
            paint(mel[::-1], "magma", low, high),
            _share(MEL_HOP * mel.shape[1], recording),
            f"Log-mel spectrogram, {name}",
            f'<span class="dm-top">{top}</span><span class="dm-bottom">0</span>',
        )
        for name, mel in mels.items()
    ]
    figures.append(_show_code_map(recording, decoded.num_codebooks))
    axis = _show_axis(samples_to_seconds(recording.num_samples, sample_rate))
    return f'<div class="dm-pictures">{"".join(figures)}{axis}</div>'


def _show_code_map(recording: Recording, num_codebooks: int) -> str:
    """Books x frames; books that are not decoded are pale."""
    codes = recording.codes.cpu().numpy()
    config = recording.model.codec.config
    colours = paint(codes, "viridis", 0, config.quantizer.codebook_size - 1)
    colours[num_codebooks:, :, 3] = _UNUSED_ALPHA
    numbers = "".join(f"<span>{book}</span>" for book in range(1, len(codes) + 1))
    return _show_picture(
        colours,
        _share(config.hop_length * codes.shape[1], recording),
        f"Codes: {count_books(len(codes))} by {codes.shape[1]} frames, a colour is a code",
        f'<span class="dm-books">{numbers}</span>',
        kind="dm-codes",
        style=f"height:{1.1 * len(codes):g}rem",
    )


def paint(
    values: npt.NDArray[np.floating] | npt.NDArray[np.integer],
    colours: str,
    low: float,
    high: float,
) -> Pixels:
    """Values [H, W] as opaque pixels [H, W, 4], in one of matplotlib's colour maps.

    `low` and what is below it get the first colour, `high` and what is above it the last.
    """
    scaled = (values - low) / max(high - low, 1e-9)
    colour_map = import_package("matplotlib", "pictures of the demo").colormaps[colours]
    pixels: Pixels = colour_map(np.clip(scaled, 0.0, 1.0), bytes=True)
    return pixels


def to_png(pixels: Pixels) -> bytes:
    """Pixels [H, W, 4] as a PNG file."""
    image = import_package("PIL.Image", "pictures of the demo").fromarray(pixels, "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _show_picture(
    pixels: Pixels, share: float, caption: str, scale: str, *, kind: str = "dm-mel", style: str = ""
) -> str:
    """A picture that covers `share` (a fraction) of the axis of time from its left end on."""
    data = base64.b64encode(to_png(pixels)).decode("ascii")
    return (
        f'<figure class="{kind}"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="dm-scale">{scale}</div><div class="dm-frame" style="{style}">'
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}" '
        f'style="width:{100 * share:.4f}%"></div></figure>'
    )


def _show_axis(duration_s: float) -> str:
    """Marks of time at round seconds, at most `_MAX_TICKS` of them and the one at 0."""
    step = next((s for s in _TICK_STEPS_S if duration_s / s <= _MAX_TICKS), 3600)
    ticks = "".join(
        f'<span style="left:{100 * number * step / duration_s:.3f}%">{number * step:g}</span>'
        for number in range(int(duration_s / step) + 1)
        if number * step <= 0.97 * duration_s
    )
    return f'<div class="dm-axis" aria-hidden="true">{ticks}<span class="dm-unit">s</span></div>'


def _share(num_samples: int, recording: Recording) -> float:
    """How much of a recording so many samples are; more than 1 where they reach beyond its end."""
    return num_samples / recording.num_samples


def count_books(number: int) -> str:
    """`1 book`, `2 books`."""
    return f"{number} book{'' if number == 1 else 's'}"
