"""From rows to one record of everything that tables and reports show."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dmcodec.audio import samples_to_seconds
from dmcodec.config import Record
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.reconstruct import SystemRun
from dmcodec.evaluation.rows import Row, components
from dmcodec.evaluation.statistics import (
    Bootstrap,
    Difference,
    Estimate,
    Floats,
    Statistic,
    information_lost,
    ratio,
)
from dmcodec.evaluation.systems.system import ORIGINAL, SystemFacts
from dmcodec.metrics.codes import BookStatistics, PhoneInformation
from dmcodec.metrics.measure import Measure
from dmcodec.metrics.registry import MEASURES
from dmcodec.metrics.words import is_repetitive


class Figure(Record):
    """One measure of one system: the estimate, and how many clips lack it for which reasons."""

    estimate: Estimate | None
    missing: dict[str, int]


class CodesSummary(Record):
    """One entry for each book: statistics, and phone information where phones are known."""

    books: tuple[BookStatistics, ...]
    phones: tuple[PhoneInformation, ...]


class SystemSummary(Record):
    """One line of the table.

    `measured_kbps` counts what carries the speech, over all clips. Real-time factors are seconds
    of work per second of speech, on one thread. `failed` gives id -> reason of clips that did not
    go through. `num_unheard` and `num_repetitive` count clips for which the recognizer wrote
    nothing, or went round in circles. `codes` is None for systems without codebooks.
    """

    name: str
    facts: SystemFacts
    num_clips: int
    num_silent: int
    num_unheard: int = 0
    num_repetitive: int = 0
    failed: dict[str, str]
    measured_kbps: float | None
    encode_rtf: float | None
    decode_rtf: float | None
    first_packet_s: float | None
    peak_memory_mb: float | None
    codes: CodesSummary | None
    figures: dict[str, Figure]
    differences: dict[str, Difference]

    @property
    def kbps(self) -> float | None:
        """The measured bitrate, or the nominal one where nothing was measured."""
        return self.facts.nominal_kbps if self.measured_kbps is None else self.measured_kbps

    def estimate(self, measure: str) -> Estimate | None:
        """The figure of a measure; None when no clip has it."""
        figure = self.figures.get(measure)
        return figure.estimate if figure else None


class Summary(Record):
    """Everything about one evaluation.

    `about` is what must be printed with every table: protocol, hash of the clips, versions,
    machine. `reference` is the system that differences are taken against.
    """

    about: dict[str, str]
    reference: str
    confidence: float
    systems: tuple[SystemSummary, ...]

    def shown_measures(self) -> list[Measure]:
        """Measures that at least one system has a value of, in the order of tables."""
        return [
            measure
            for name, measure in MEASURES.items()
            if any(s.estimate(name) for s in self.systems)
        ]

    def measures_without_values(self) -> dict[str, str]:
        """Measures that were asked for but have no value at all, with their reason."""
        found = {}
        for name in MEASURES:
            figures = [s.figures[name] for s in self.systems if name in s.figures]
            reasons = Counter(r for figure in figures for r in figure.missing)
            if reasons and not any(figure.estimate for figure in figures):
                found[name] = reasons.most_common(1)[0][0]
        return found


def summarize(
    config: EvaluationConfig,
    about: dict[str, str],
    reference: str,
    runs: Mapping[str, SystemRun],
    rows: Sequence[Row],
    codes: Mapping[str, CodesSummary],
) -> Summary:
    """Everything about an evaluation; systems in the order of `runs`, after the original."""
    by_system: dict[str, list[Row]] = {}
    for row in rows:
        by_system.setdefault(row.system, []).append(row)
    bootstrap = Bootstrap(
        num_resamples=config.num_resamples, confidence=config.confidence, seed=config.seed
    )
    by_speaker = config.resample == "speaker"
    systems = []
    for name, run in {ORIGINAL: _ORIGINAL_RUN, **runs}.items():
        own = by_system[name]
        encode_rtf, decode_rtf = real_time_factors(own)
        differences = {}
        if name != reference:
            differences = summarize_differences(own, by_system[reference], bootstrap, by_speaker)
        systems.append(
            SystemSummary(
                name=name,
                facts=run.facts,
                num_clips=len(own) - len(run.failures),
                num_silent=sum(row.is_silent for row in own),
                num_unheard=sum(row.transcript == "" for row in own),
                num_repetitive=sum(is_repetitive(row.transcript or "") for row in own),
                failed=run.failures,
                measured_kbps=measured_kbps(own),
                encode_rtf=encode_rtf,
                decode_rtf=decode_rtf,
                first_packet_s=run.first_packet_s,
                peak_memory_mb=run.peak_memory_mb,
                codes=codes.get(name),
                figures=summarize_figures(own, bootstrap, by_speaker),
                differences=differences,
            )
        )
    return Summary(
        about=about, reference=reference, confidence=config.confidence, systems=tuple(systems)
    )


_ORIGINAL_RUN = SystemRun(
    SystemFacts(
        identity=ORIGINAL,
        family=ORIGINAL,
        description="the original, 16 kHz 16-bit PCM",
        nominal_kbps=256.0,
        sample_rate=16_000,
    ),
    failures={},
    num_done=0,
    num_kept=0,
)


def summarize_figures(
    rows: Sequence[Row], bootstrap: Bootstrap, by_speaker: bool
) -> dict[str, Figure]:
    """All measures of one system's rows."""
    names = {name for row in rows for name in (*row.scores, *row.missing)}
    figures = {}
    for name, measure in MEASURES.items():
        if name not in names:
            continue
        having = [row for row in rows if name in row.scores]
        estimate = None
        if having:
            groups = _speakers(having) if by_speaker else None
            estimate = bootstrap.estimate(_matrix(having, measure), _statistic(measure), groups)
        reasons = Counter(row.missing[name] for row in rows if name in row.missing)
        figures[name] = Figure(estimate=estimate, missing=dict(reasons))
    return figures


def summarize_differences(
    rows: Sequence[Row], reference_rows: Sequence[Row], bootstrap: Bootstrap, by_speaker: bool
) -> dict[str, Difference]:
    """All measures of one system less those of the reference, over clips that both have."""
    others = {row.id: row for row in reference_rows}
    differences = {}
    for name, measure in MEASURES.items():
        pairs = [
            (row, others[row.id])
            for row in rows
            if row.id in others and name in row.scores and name in others[row.id].scores
        ]
        if not pairs or measure.better is None:
            continue
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        sign = 1.0 if measure.better == "higher" else -1.0
        differences[name] = bootstrap.difference(
            _matrix(first, measure),
            _matrix(second, measure),
            _statistic(measure),
            values=sign * np.array([row.scores[name] for row in first]),
            other_values=sign * np.array([row.scores[name] for row in second]),
            groups=_speakers(first) if by_speaker else None,
        )
    return differences


def measured_kbps(rows: Sequence[Row]) -> float | None:
    """Bits of all clips over their duration; None when the system does not say its bits."""
    having = [row for row in rows if row.num_bits is not None]
    if not having:
        return None
    seconds = samples_to_seconds(sum(row.num_samples for row in having))
    return sum(row.num_bits or 0 for row in having) / seconds / 1000


def real_time_factors(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Seconds of encoding and of decoding per second of speech, over all clips."""
    having = [r for r in rows if r.encode_s is not None and r.decode_s is not None]
    if not having:
        return None, None
    seconds = samples_to_seconds(sum(row.num_samples for row in having))
    encode_s = sum(row.encode_s or 0.0 for row in having)
    return encode_s / seconds, sum(row.decode_s or 0.0 for row in having) / seconds


def _statistic(measure: Measure) -> Statistic:
    return information_lost if measure.pooling == "information_lost" else ratio


def _matrix(rows: Sequence[Row], measure: Measure) -> Floats:
    return np.array([components(row, measure) for row in rows], dtype=np.float64)


def _speakers(rows: Sequence[Row]) -> NDArray[np.int64]:
    """[N] a number for each clip's speaker; a clip without one stands for itself."""
    names = [row.speaker or f"clip {row.id}" for row in rows]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
