"""One HTML file that works offline: tables, charts, spread over speakers, players, spectrograms.

Sounds (FLAC) and pictures (WebP) are embedded; the page may load nothing from outside. Text of the
manifest is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from dmcodec.evaluation.report.charts import Point, bitrate_chart, legend_marker, spread_chart
from dmcodec.evaluation.report.html import anchor, captioned, cell, heading, page, table
from dmcodec.evaluation.report.listening import (
    Budget,
    choose_played,
    extremes_section,
    listen_section,
)
from dmcodec.evaluation.report.tables import (
    books_table,
    facts_of,
    missing_notes,
    show_difference,
)
from dmcodec.evaluation.rows import Row
from dmcodec.evaluation.summary import Summary
from dmcodec.evaluation.systems.system import ORIGINAL
from dmcodec.evaluation.workspace import Workspace
from dmcodec.metrics.measure import Measure
from dmcodec.metrics.registry import MEASURES
from dmcodec.storage import write_whole

_TEXT_RESERVE = 40_000  # bytes for the words around embedded sounds


def write_report(
    summary: Summary,
    rows: Sequence[Row],
    workspace: Workspace,
    path: Path,
    *,
    texts: Mapping[str, str],
    played: Sequence[str] = (),
    max_bytes: int = 5_000_000,
) -> None:
    """Writes the report.

    Args:
        summary: what the tables show.
        rows: of all systems and clips.
        workspace: where the sounds lie.
        path: of the HTML file.
        texts: id -> transcript of the manifest, where there is one.
        played: ids of the clips with players for every system; drawn when empty.
        max_bytes: of the file; sounds are left out (and named as left out) beyond it.
    """
    families = _families(summary)
    fixed = [
        _head(summary),
        _main_section(summary),
        _bitrate_section(summary, families),
        _spread_section(summary, rows, families),
    ]
    tail = [_other_sections(summary)]
    size = len(page("\n".join([*fixed, *tail])).encode())
    budget = Budget(max_bytes - size - _TEXT_RESERVE)
    listen = listen_section(summary, rows, workspace, texts, played or choose_played(rows), budget)
    extremes = extremes_section(summary, rows, workspace, budget)
    write_whole(path, page("\n".join([*fixed, listen, extremes, *tail])))


def _families(summary: Summary) -> dict[str, int]:
    """Family -> number of its colour, in the order of the table; the original has none."""
    names = [s.facts.family for s in summary.systems if s.name != ORIGINAL]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _head(summary: Summary) -> str:
    about = summary.about
    systems = len(summary.systems) - 1
    links = ("Table", "Bitrate", "Speakers", "Listen", "Best and worst", "Cost", "Notes")
    nav = "".join(f'<a href="#{anchor(link)}">{link}</a>' for link in links)
    return (
        f"<h1>{systems} codec systems on {escape(about['clips'])}</h1>\n"
        f'<p class="soft">{escape(about["date"])} · hash of clips {escape(about["hash of clips"])}'
        f" · {escape(about['intervals'])}</p>\n<nav>{nav}</nav>"
    )


def _main_section(summary: Summary) -> str:
    shown = summary.shown_measures()
    main = [m for m in shown if m.is_main]
    others = [m for m in shown if not m.is_main]
    return (
        f"{heading('Table')}<p>Means over clips with {summary.confidence:.0%} intervals below; "
        "arrows point to the good side; the best system is marked. Error rates are pooled: all "
        f"errors over all words.</p>{_figures(summary, main)}"
        f"<details><summary>{len(others)} other measures</summary>{_figures(summary, others)}"
        "</details>"
    )


def _figures(summary: Summary, measures: Sequence[Measure]) -> str:
    head = ["system", "kbps", *(m.heading for m in measures)]
    best = {m.name: _best(summary, m) for m in measures}
    lines = []
    for system in summary.systems:
        kbps = system.kbps
        cells = [cell("-" if kbps is None else f"{kbps:.2f}")]
        for measure in measures:
            e = system.estimate(measure.name)
            if e is None:
                cells.append(cell("-"))
                continue
            note = f"{measure.show(e.low)} to {measure.show(e.high)}"
            if e.num_clips != system.num_clips:
                note += f", n={e.num_clips}"
            mark = ' class="best"' if best[measure.name] == system.name else ""
            cells.append(
                f"<td><span{mark}>{measure.show(e.value)}</span><small>{note}</small></td>"
            )
        lines.append(f"<tr><th>{escape(system.name)}</th>{''.join(cells)}</tr>")
    return table(head, lines)


def _best(summary: Summary, measure: Measure) -> str | None:
    """The best system but the original; None for diagnostics."""
    values = {
        s.name: estimate.value
        for s in summary.systems
        if s.name != ORIGINAL and (estimate := s.estimate(measure.name)) is not None
    }
    if not values or measure.better is None:
        return None
    choose = max if measure.better == "higher" else min
    return choose(values, key=lambda name: values[name])


def _bitrate_section(summary: Summary, families: Mapping[str, int]) -> str:
    charts = []
    for measure in summary.shown_measures():
        if not measure.is_main:
            continue
        points, original = [], None
        for system in summary.systems:
            e = system.estimate(measure.name)
            if e is not None and system.name == ORIGINAL:
                original = e.value
            elif e is not None and system.kbps is not None:
                family = families[system.facts.family]
                points.append(Point(system.name, family, system.kbps, e.value, e.low, e.high))
        if points:
            chart = bitrate_chart(points, measure, original)
            charts.append(captioned(measure.heading, chart))
    key = "".join(
        f"<span>{legend_marker(number)}{escape(name)}</span>" for name, number in families.items()
    )
    return (
        f"{heading('Bitrate')}<p>Measured kilobits a second, logarithmic; the dashed line is the "
        f'original.</p><div class="legend">{key}</div><div class="charts">{"".join(charts)}</div>'
    )


def _spread_section(summary: Summary, rows: Sequence[Row], families: Mapping[str, int]) -> str:
    charts = []
    for name, measure in MEASURES.items():
        systems = []
        for system in summary.systems if measure.has_chart else ():
            by_speaker: dict[str, list[float]] = {}
            for row in rows:
                if row.system == system.name and row.speaker and name in row.scores:
                    by_speaker.setdefault(row.speaker, []).append(row.scores[name])
            if system.name != ORIGINAL and by_speaker:
                dots = [(who, float(np.mean(values))) for who, values in by_speaker.items()]
                systems.append((system.name, families[system.facts.family], dots))
        if systems:
            chart = spread_chart(systems, measure)
            charts.append(captioned(measure.heading, chart))
    text = (
        "A dot for each speaker's mean, a bar at the median speaker."
        if charts
        else "The manifest names no speakers."
    )
    return f'{heading("Speakers")}<p>{text}</p><div class="charts">{"".join(charts)}</div>'


def _other_sections(summary: Summary) -> str:
    parts = [heading("Cost")]
    facts = [(s, facts_of(s)) for s in summary.systems]
    lines = []
    for system, each in facts:
        cells = "".join(cell(value, is_text=name == "what") for name, value in each.items())
        lines.append(f"<tr><th>{escape(system.name)}</th>{cells}</tr>")
    parts.append(table(["system", *facts[0][1]], lines, text_columns=(1,)))
    head, books = books_table(summary)
    if books:
        lines = [
            f"<tr><th>{escape(line[0])}</th>{''.join(cell(c) for c in line[1:])}</tr>"
            for line in books
        ]
        parts.append(f"<details><summary>Codes of each book</summary>{table(head, lines)}")
        parts.append("</details>")
    parts.append(_difference_table(summary))
    parts.append(heading("Notes"))
    notes = [f"<b>{escape(key)}</b>: {escape(value)}" for key, value in summary.about.items()]
    notes += [
        f"<b>{MEASURES[name].label} not computed</b>: {escape(reason)}"
        for name, reason in summary.measures_without_values().items()
    ]
    notes += [escape(line) for line in missing_notes(summary)]
    notes += [f"<b>{m.label}</b>: {escape(m.meaning)}" for m in summary.shown_measures()]
    parts.append(f"<ul>{''.join(f'<li>{note}</li>' for note in notes)}</ul>")
    return "\n".join(parts)


def _difference_table(summary: Summary) -> str:
    measures = [m for m in summary.shown_measures() if m.is_main]
    lines = []
    for system in summary.systems:
        if system.name == summary.reference:
            continue
        cells = []
        for measure in measures:
            difference = system.differences.get(measure.name)
            text = "-" if difference is None else show_difference(difference, measure)
            value, _, rest = text.partition(" ")
            cells.append(f"<td>{value}<small>{escape(rest)}</small></td>")
        lines.append(f"<tr><th>{escape(system.name)}</th>{''.join(cells)}</tr>")
    return (
        f"<details><summary>Differences to {escape(summary.reference)}, paired over clips"
        "</summary><p>With interval, two-sided p of the paired bootstrap, and ε of almost "
        "stochastic order (below 0.5: better than the reference).</p>"
        f"{table(['system', *(m.heading for m in measures)], lines)}</details>"
    )
