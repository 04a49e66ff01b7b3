"""The summary as Markdown and CSV, for papers and spreadsheets."""

import csv
import io
import textwrap
from collections.abc import Sequence

from dmcodec.evaluation.statistics import Difference
from dmcodec.evaluation.summary import Figure, Summary, SystemSummary
from dmcodec.metrics.measure import Measure
from dmcodec.metrics.registry import MEASURES

MAIN_MEASURES = tuple(measure.name for measure in MEASURES.values() if measure.is_main)
"""Measures of the first table."""

_CSV_COLUMNS = (
    "system",
    "measure",
    "value",
    "low",
    "high",
    "clips",
    "missing",
    "measured_kbps",
    "difference",
    "difference_low",
    "difference_high",
    "p_value",
    "aso",
)


def to_markdown(summary: Summary) -> str:
    """All tables: main measures, other measures, systems, codes, differences; then the notes."""
    shown = summary.shown_measures()
    main = [m for m in shown if m.is_main]
    others = [m for m in shown if not m.is_main]
    parts = ["## Systems and main measures", _figures(summary, main, with_kbps=True)]
    if others:
        parts += ["## Other measures", _figures(summary, others, with_kbps=False)]
    parts += ["## What the systems are and cost", _facts(summary)]
    if any(system.codes for system in summary.systems):
        parts += ["## Codes", _table(*books_table(summary))]
    parts += [f"## Differences to {summary.reference}", _differences(summary, main)]
    parts += ["## Notes", notes(summary)]
    return "\n\n".join(parts) + "\n"


def to_short_markdown(summary: Summary, measures: Sequence[str] = MAIN_MEASURES) -> str:
    """Some measures of every system as one table, for a README; intervals left out."""
    table = _table(*short_table(summary, measures))
    return f"{table}\n\n{textwrap.fill(caption(summary), 116)}\n"


def caption(summary: Summary) -> str:
    """What must stand beside a table that leaves the notes out."""
    about = summary.about
    parts = [f"{about['clips']}, hash {about['hash of clips']}"]
    parts += [about[key] for key in ("recognizer", "machine", "versions") if key in about]
    return "; ".join(parts) + "."


def short_table(
    summary: Summary, measures: Sequence[str] = MAIN_MEASURES
) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of some measures, without intervals."""
    shown = [m for m in summary.shown_measures() if m.name in measures]
    rows = []
    for system in summary.systems:
        cells = [system.name, _number(system.kbps, "{:.2f}")]
        for measure in shown:
            estimate = system.estimate(measure.name)
            cells.append("-" if estimate is None else measure.show(estimate.value))
        rows.append(cells)
    return ["system", "kbps", *(measure.heading for measure in shown)], rows


def to_csv(summary: Summary) -> str:
    """One line for each system and measure, plain values in the units of `summary.json`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for system in summary.systems:
        for name, figure in system.figures.items():
            line: dict[str, object] = {
                "system": system.name,
                "measure": name,
                "clips": 0,
                "missing": sum(figure.missing.values()),
                "measured_kbps": system.measured_kbps,
            }
            if figure.estimate is not None:
                e = figure.estimate
                line |= {"value": e.value, "low": e.low, "high": e.high, "clips": e.num_clips}
            if name in system.differences:
                d = system.differences[name]
                line |= {"difference": d.value, "difference_low": d.low, "difference_high": d.high}
                line |= {"p_value": d.p_value, "aso": d.aso}
            writer.writerow(line)
    return text.getvalue()


def notes(summary: Summary) -> str:
    """Protocol, versions and what could not be computed, as a Markdown list."""
    lines = [f"- {key}: {value}" for key, value in summary.about.items()]
    for name, reason in summary.measures_without_values().items():
        lines.append(f"- {MEASURES[name].label} not computed: {reason}")
    lines += [f"- {line}" for line in missing_notes(summary)]
    return "\n".join(lines)


def missing_notes(summary: Summary) -> list[str]:
    """One sentence for each system and reason that takes clips out of a mean, or makes them bad."""
    empty = summary.measures_without_values()
    lacking: dict[tuple[str, str, int], list[str]] = {}
    for system in summary.systems:
        for name, figure in system.figures.items():
            for reason, count in figure.missing.items():
                if name not in empty:
                    lacking.setdefault((system.name, reason, count), []).append(name)
    alike: dict[tuple[tuple[str, ...], str, int], list[str]] = {}
    for (name, reason, count), measures in lacking.items():
        alike.setdefault((tuple(measures), reason, count), []).append(name)
    counted = [
        f"{count} {what}"
        for s in summary.systems
        for count, what in (
            (s.num_silent, f"reconstructions of {s.name} are silent: the low end of the scales"),
            (s.num_unheard, f"clips of {s.name} gave the recognizer no word: all are deletions"),
            (s.num_repetitive, f"clips of {s.name} made the recognizer repeat itself: scored so"),
        )
        if count
    ]
    return counted + [
        f"{', '.join(MEASURES[m].label for m in measures)} missing for {count} clips of "
        f"{_list_systems(names, summary)}: {reason}"
        for (measures, reason, count), names in alike.items()
    ]


def _list_systems(names: Sequence[str], summary: Summary) -> str:
    return "every system" if len(names) == len(summary.systems) else ", ".join(names)


def show_figure(figure: Figure | None, measure: Measure, num_clips: int) -> str:
    """`value [low, high]`, with the number of clips where it is not all of them."""
    if figure is None or figure.estimate is None:
        return "-"
    estimate = figure.estimate
    text = (
        f"{measure.show(estimate.value)} "
        f"[{measure.show(estimate.low)}, {measure.show(estimate.high)}]"
    )
    return text if estimate.num_clips == num_clips else f"{text} (n={estimate.num_clips})"


def show_difference(difference: Difference, measure: Measure) -> str:
    """`+value [low, high]`, p and the stochastic order."""
    sign = "+" if difference.value >= 0 else ""
    p_value = "p<0.001" if difference.p_value < 0.001 else f"p={difference.p_value:.3f}"
    return (
        f"{sign}{measure.show(difference.value)} "
        f"[{measure.show(difference.low)}, {measure.show(difference.high)}], {p_value}, "
        f"ε={difference.aso:.2f}"
    )


def facts_of(system: SystemSummary) -> dict[str, str]:
    """What a system is and costs, ready to show; `-` where unknown."""
    facts = system.facts
    books = "-"
    if facts.num_codebooks is not None:
        books = f"{facts.num_codebooks} x {facts.codebook_size}"
    return {
        "what": facts.description,
        "kbps nominal": _number(facts.nominal_kbps, "{:.3g}"),
        "kbps measured": _number(system.measured_kbps, "{:.2f}"),
        "frames/s": _number(facts.frame_rate, "{:g}"),
        "books": books,
        "parameters": _number(facts.num_parameters, "{:.2f} M", 1e-6),
        "encode RTF": _number(system.encode_rtf, "{:.3f}"),
        "decode RTF": _number(system.decode_rtf, "{:.3f}"),
        "1 s encoded and decoded in": _number(system.first_packet_s, "{:.0f} ms", 1000),
        "peak memory": _number(system.peak_memory_mb, "{:.0f} MB"),
        "clips failed": str(len(system.failed)),
    }


def _figures(summary: Summary, measures: Sequence[Measure], *, with_kbps: bool) -> str:
    head = ["system"] + (["kbps"] if with_kbps else []) + [m.heading for m in measures]
    rows = []
    for system in summary.systems:
        cells = [system.name] + ([_number(system.kbps, "{:.2f}")] if with_kbps else [])
        cells += [show_figure(system.figures.get(m.name), m, system.num_clips) for m in measures]
        rows.append(cells)
    return _table(head, rows)


def _facts(summary: Summary) -> str:
    rows = [[s.name, *facts_of(s).values()] for s in summary.systems]
    return _table(["system", *facts_of(summary.systems[0])], rows)


def books_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each book; of codecs in several rows each book once."""
    head = ["codec", "book", "usage %", "perplexity", "entropy, bits", "saved by ideal coder %"]
    head += ["bigram perplexity", "phone information %", "by chance %"]
    rows: list[list[str]] = []
    for system in summary.systems:
        if system.codes is None:
            continue
        informed = system.codes.phones or (None,) * len(system.codes.books)
        books = zip(system.codes.books, informed, strict=True)
        for number, (book, phones) in enumerate(books, start=system.facts.first_codebook):
            line = [
                system.facts.family,
                str(number),
                f"{100 * book.usage:.1f}",
                f"{book.perplexity:.0f}",
                f"{book.entropy_bits:.2f}",
                f"{100 * book.saved:.1f}",
                _number(book.bigram_perplexity, "{:.0f}"),
                _number(phones.share if phones else None, "{:.1f}", 100),
                _number(phones.chance if phones else None, "{:.1f}", 100),
            ]
            if line not in rows:
                rows.append(line)
    return head, rows


def _differences(summary: Summary, measures: Sequence[Measure]) -> str:
    rows = []
    for system in summary.systems:
        if system.name == summary.reference:
            continue
        cells = [system.name]
        for measure in measures:
            difference = system.differences.get(measure.name)
            cells.append("-" if difference is None else show_difference(difference, measure))
        rows.append(cells)
    explained = (
        "Paired over the clips that both have: difference, interval, two-sided p of the paired "
        "bootstrap, and ε of almost stochastic order (below 0.5: better than the reference)."
    )
    return f"{explained}\n\n{_table(['system', *(m.heading for m in measures)], rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "/") for c in line) + " |" for line in lines)


def _number(value: float | None, pattern: str, scale: float = 1.0) -> str:
    return "-" if value is None else pattern.format(value * scale)
