"""What a measure is: how it is shown and pooled, what silence means, and what it is computed with.

No measure is here. Names are VERSA's where VERSA has the measure (arXiv:2412.17667).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from dmcodec.audio import Waveform
from dmcodec.config import Record
from dmcodec.packages import why_unavailable

BEST = "best"
"""The recognizer's name that stands for the best one at hand."""

Pooling = Literal["mean", "errors", "information_lost"]
T = TypeVar("T")


class Unmeasurable(ValueError):
    """A measure that has no value for this pair of waveforms; the message says why."""


class ScoringConfig(Record):
    """Choices that change scores.

    Models are names that `load_recognizer` and `load_speaker_model` know; `utmos` is a TorchScript
    file. The probe of codes learns from at most `content_minutes` of the lists `content_train`,
    whose columns have the names `content_columns`.
    """

    recognizer: str = BEST
    speaker_model: str = "resemblyzer"
    utmos: Path | None = None
    content_train: tuple[Path, ...] = ()
    content_columns: dict[str, str] = Field(default_factory=dict)
    content_minutes: float = Field(60.0, gt=0)
    device: str = "cpu"


class Models:
    """The models of one process, each loaded when first needed."""

    def __init__(self, config: ScoringConfig) -> None:
        self.config = config
        self._loaded: dict[tuple[object, ...], Any] = {}

    def get(self, load: Callable[[str, str], T], name: str) -> T:
        """What `load` gives for a name and the device, loaded once."""
        key = (load, name)
        if key not in self._loaded:
            self._loaded[key] = load(name, self.config.device)
        return self._loaded[key]


class Original:
    """One original waveform [T], with what all systems are compared with computed once."""

    def __init__(self, waveform: Waveform, models: Models) -> None:
        self.waveform = waveform
        self.models = models
        self._analyses: dict[str, Any] = {}

    @property
    def config(self) -> ScoringConfig:
        """The choices that change scores."""
        return self.models.config

    def once(self, name: str, analyse: Callable[[Waveform], T]) -> T:
        """What `analyse` gives for the waveform, remembered by a name."""
        if name not in self._analyses:
            self._analyses[name] = analyse(self.waveform)
        return self._analyses[name]


@dataclass(frozen=True)
class Measure:
    """One column of the tables.

    name: key in rows, CSV and JSON. label: heading for people. better: which way is good; None for
    diagnostics that are neither. scale: factor from the stored value to the shown one (100 for
    percent). pooling: how clips become one figure: the mean of their values; "errors" is all
    errors over all reference words; "information_lost" is WIL of the counts added up.
    meaning: one line for reports. is_main: in the first table. has_chart: its spread over clips
    is drawn in the report.

    silent_score: what a silent estimate gets where the package has no value or a meaningless one:
    the low end of the scale. Leaving such clips out of the mean would flatter the system.
    needs_signal: whether it means nothing when the original is silent. Those that do mean
    something say how loud or how voiced the codec's noise is, and are best for a copy.
    """

    name: str
    label: str
    better: Literal["higher", "lower"] | None
    digits: int
    meaning: str
    unit: str = ""
    scale: float = 1.0
    pooling: Pooling = "mean"
    is_main: bool = False
    has_chart: bool = False
    silent_score: float | None = None
    needs_signal: bool = True

    @property
    def heading(self) -> str:
        """Label with unit and an arrow to the good side."""
        unit = f", {self.unit}" if self.unit else ""
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[self.better]
        return f"{self.label}{unit}{arrow}"

    def show(self, value: float) -> str:
        """A stored value as text."""
        return f"{value * self.scale:.{self.digits}f}"


def rate(
    name: str,
    label: str,
    meaning: str,
    *,
    pooling: Pooling = "errors",
    is_main: bool = False,
    has_chart: bool = False,
    needs_signal: bool = True,
) -> Measure:
    """A measure that is a share, lower being better, shown in percent."""
    return Measure(
        name, label, "lower", 2, meaning, "%", 100.0, pooling, is_main, has_chart,
        needs_signal=needs_signal,
    )  # fmt: skip


Outcomes = dict[str, float | Unmeasurable]
"""Measure -> its value, or why it has none."""


@dataclass(frozen=True)
class ModelChoice:
    """A model that the user chooses, by the choices of `ScoringConfig`.

    label: what tables call it. identity: model and versions, without loading it. modules: packages
    that it imports. check: raises FileNotFoundError or ValueError for a model of no use. lacks:
    why there is none at all.
    """

    label: str
    identity: Callable[[ScoringConfig], str]
    modules: Callable[[ScoringConfig], tuple[str, ...]] = lambda config: ()
    check: Callable[[ScoringConfig], None] = lambda config: None
    lacks: Callable[[ScoringConfig], str | None] = lambda config: None


@dataclass(frozen=True)
class Group:
    """Measures that are computed, and kept, as one: they share work.

    compute: the original and an estimate of the same length to an outcome for each measure, or to
    the text that a recognizer hears. None: of whole systems, computed by the evaluation.
    hears_text: whether it is the text.
    modules: packages it imports. distributions: packages whose versions change its results.
    model: what the user chooses. uses_original: whether results depend on the original. is_slow:
    takes more time than all groups that are not together, so it is computed after them.
    revision: raised when our own code changes results, so that kept ones are not taken for new.
    """

    name: str
    measures: tuple[Measure, ...]
    compute: Callable[[Original, Waveform], Outcomes | str] | None = None
    modules: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    model: ModelChoice | None = None
    uses_original: bool = True
    is_slow: bool = False
    revision: int = 1
    hears_text: bool = False

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What `compute` gives: its measures, or the transcript that they are counted in."""
        return ("transcript",) if self.hears_text else self.names

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its measures."""
        return tuple(measure.name for measure in self.measures)

    def why_not(self, config: ScoringConfig) -> str | None:
        """Why the group cannot be computed here at all, or None when it can."""
        modules = self.modules
        if self.model is not None:
            reason = self.model.lacks(config)
            if reason is not None:
                return reason
            modules += self.model.modules(config)
        return why_unavailable(modules, self.name)


def attempt(measure: Callable[..., float], *arguments: object) -> float | Unmeasurable:
    """The measure's value, or the reason why it has none as a value."""
    try:
        return measure(*arguments)
    except Unmeasurable as reason:
        return reason


def is_silent(waveform: Waveform) -> bool:
    """Whether no sample of a waveform [T] is above one step of 16 bits: zeros, or dither."""
    return not np.any(np.abs(waveform) >= 1.5 / 32768)


def require_sound(measure: str, **waveforms: Waveform) -> None:
    """Raises Unmeasurable, in the name of a measure, when one of the waveforms [T] is silent.

    An original without a signal says nothing about a codec, and packages that raise levels, or
    fill in noise, would score what is left. Of an estimate, zeros alone count as silence.
    """
    for name, waveform in waveforms.items():
        if not np.any(waveform) or (name == "reference" and is_silent(waveform)):
            raise Unmeasurable(f"{measure}: the {name} is silent")


def check_pair(reference: Waveform, estimate: Waveform) -> None:
    """Raises ValueError for waveforms that are not [T] of one length, Unmeasurable for NaN."""
    if reference.ndim != 1 or reference.shape != estimate.shape or not len(reference):
        raise ValueError(
            f"reference {reference.shape} and estimate {estimate.shape} must be [T] of one length"
        )
    for name, waveform in (("reference", reference), ("estimate", estimate)):
        if not np.isfinite(waveform).all():
            raise Unmeasurable(f"the {name} has NaN or infinite samples")
