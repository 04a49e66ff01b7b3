"""Charts as inline SVG: quality against bitrate, and the spread over speakers. Text in, text out.

Colours and fonts are classes; report.css gives them for light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dmcodec.metrics.measure import Measure

NUM_COLOURS = 8
_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 38
_ROW = 22
_KBPS_TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Point:
    """One system in the bitrate chart; `family` is the number of its colour and shape."""

    name: str
    family: int
    kbps: float
    value: float
    low: float
    high: float


def bitrate_chart(points: Sequence[Point], measure: Measure, original: float | None) -> str:
    """A measure against bitrate (logarithmic), intervals as bars, families joined by lines."""
    values = [v * measure.scale for p in points for v in (p.low, p.high)]
    if original is not None:
        values.append(original * measure.scale)
    ticks = _nice_ticks(min(values), max(values))
    shown_kbps = _kbps_ticks([p.kbps for p in points])
    to_x = _scale(math.log(shown_kbps[0]), math.log(shown_kbps[-1]), _LEFT + 8, _WIDTH - _RIGHT - 8)
    to_y = _scale(ticks[0], ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [_open(_HEIGHT, f"{measure.label} against bitrate")]
    for tick in ticks:
        y = to_y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}')
        parts.append("</text>")
    for kbps in shown_kbps:
        x = to_x(math.log(kbps))
        parts.append(f'<text class="tick" x="{x}" y="{_HEIGHT - _BOTTOM + 16}" ')
        parts.append(f'text-anchor="middle">{kbps:g}</text>')
    parts.append(f'<text class="tick" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" ')
    parts.append('text-anchor="middle">kbps</text>')
    if original is not None:
        y = to_y(original * measure.scale)
        parts.append(f'<line class="original" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" ')
        parts.append(f'y1="{y}" y2="{y}"><title>original: {measure.show(original)}</title></line>')
    for family in sorted({p.family for p in points}):
        members = sorted((p for p in points if p.family == family), key=lambda p: p.kbps)
        line = " ".join(
            f"{to_x(math.log(p.kbps))},{to_y(p.value * measure.scale)}" for p in members
        )
        parts.append(f'<g class="c{family % NUM_COLOURS}"><polyline points="{line}"/>')
        for p in members:
            x = to_x(math.log(p.kbps))
            low, y, high = (to_y(v * measure.scale) for v in (p.low, p.value, p.high))
            parts.append(f'<line x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
            title = f"{p.name}, {p.kbps:.2f} kbps: {measure.show(p.value)}"
            parts.append(_marker(p.family, x, y, title))
        parts.append("</g>")
    return "".join(parts) + "</svg>"


def spread_chart(
    systems: Sequence[tuple[str, int, Sequence[tuple[str, float]]]], measure: Measure
) -> str:
    """A row for each system, a dot for each speaker's mean, a bar at the median speaker.

    Args:
        systems: (name, family, [(speaker, value)]); none of the lists empty.
        measure: what the values are of.
    """
    values = [value * measure.scale for _, _, dots in systems for _, value in dots]
    ticks = _nice_ticks(min(values), max(values))
    left = 96
    to_x = _scale(ticks[0], ticks[-1], left + 6, _WIDTH - _RIGHT - 6)
    height = _TOP + _ROW * len(systems) + _BOTTOM - 12
    parts = [_open(height, f"{measure.label} by speaker")]
    for tick in ticks:
        x = to_x(tick)
        bottom = _TOP + _ROW * len(systems)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">')
        parts.append(f"{tick:g}</text>")
    for row, (name, family, dots) in enumerate(systems):
        y = _TOP + _ROW * (row + 0.5)
        parts.append(f'<text class="tick" x="{left - 4}" y="{y + 4}" text-anchor="end">')
        parts.append(f'{escape(name[:14])}</text><g class="c{family % NUM_COLOURS}">')
        for speaker, value in dots:
            title = f"{name}, {speaker}: {measure.show(value)}"
            parts.append(
                f'<circle class="dot" cx="{to_x(value * measure.scale)}" cy="{y}" r="3.5">'
            )
            parts.append(f"<title>{escape(title)}</title></circle>")
        ordered = sorted(value for _, value in dots)
        x = to_x(ordered[len(ordered) // 2] * measure.scale)
        parts.append(f'<line class="median" x1="{x}" x2="{x}" y1="{y - 8}" y2="{y + 8}"/></g>')
    return "".join(parts) + "</svg>"


def legend_marker(family: int) -> str:
    """The marker of a family by itself, for a legend."""
    return (
        '<svg class="key" viewBox="0 0 16 16" aria-hidden="true">'
        f'<g class="c{family % NUM_COLOURS}">{_marker(family, 8, 8, "")}</g></svg>'
    )


def _open(height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'


def _marker(family: int, x: float, y: float, title: str) -> str:
    """Circle, square, diamond or triangle: families differ in more than colour."""
    shapes = (
        f'<circle cx="{x}" cy="{y}" r="4.5">{{}}</circle>',
        f'<rect x="{x - 4}" y="{y - 4}" width="8" height="8">{{}}</rect>',
        f'<path d="M{x} {y - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z">{{}}</path>',
        f'<path d="M{x} {y - 5.5}l5.5 9.5h-11z">{{}}</path>',
    )
    return shapes[family % len(shapes)].format(f"<title>{escape(title)}</title>")


class _scale:
    """Maps [low, high] linearly to [start, end], rounded to a tenth of a pixel."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return round(self._start + (value - self._low) * self._factor, 1)


def _nice_ticks(low: float, high: float) -> list[float]:
    """4 to 7 round numbers that enclose [low, high]."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 10) for n in range(first, last + 1)]


def _kbps_ticks(kbps: Sequence[float]) -> list[float]:
    """Powers of two that enclose the bitrates; at least two."""
    low = max((t for t in _KBPS_TICKS if t <= min(kbps)), default=_KBPS_TICKS[0])
    high = min((t for t in _KBPS_TICKS if t >= max(kbps)), default=_KBPS_TICKS[-1])
    low, high = min(low, min(kbps)), max(high, max(kbps))
    shown = [low, *(t for t in _KBPS_TICKS if low < t < high), high]
    return shown if high > low else [low / 2, low * 2]
