"""What an evaluation is asked to do."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dmcodec.config import Record
from dmcodec.evaluation.protocols import Protocol
from dmcodec.metrics.measure import ScoringConfig
from dmcodec.metrics.registry import GROUPS
from dmcodec.metrics.words import Normalizer
from dmcodec.processes import MAX_WORKERS


class EvaluationConfig(Record):
    """What to evaluate on which clips, and how.

    `columns` are names of columns in the manifests (see `dmcodec.corpus.manifest.read_manifests`).
    `systems` are `NAME=KIND:ARG` (see `systems.parsing`); `kbps` and `delay_samples` say by
    name what a folder or command does not. `search_width` is of all codecs of ours (see
    `Codec.encode`) but those that `search_widths` names. `measures` are groups (see
    `metrics.registry.GROUPS`). `num_processes` 0 does everything in this process. `max_minutes`
    ends scoring, which does slow measures last: what some system then lacks is missing for all,
    and the same command goes on. `reference` is the system that differences are taken against,
    the first one by default. `played` are the clips with players in the report; drawn when empty.
    """

    manifests: tuple[Path, ...] = Field(min_length=1)
    columns: dict[str, str] = Field(default_factory=dict)
    systems: tuple[str, ...] = Field(min_length=1)
    kbps: dict[str, float] = Field(default_factory=dict)
    delay_samples: dict[str, int] = Field(default_factory=dict)
    search_width: int = Field(1, ge=1)
    search_widths: dict[str, int] = Field(default_factory=dict)
    protocol: Protocol = "full"
    num_clips: int | None = Field(None, ge=1)
    measures: tuple[str, ...] = tuple(GROUPS)
    scoring: ScoringConfig = ScoringConfig()
    normalizer: Normalizer = "basic"
    reference: str | None = None
    num_resamples: int = Field(5000, ge=100, le=100_000)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resample: Literal["clip", "speaker"] = "clip"
    seed: int = Field(0, ge=0)
    num_processes: int = Field(1, ge=0, le=MAX_WORKERS)
    max_minutes: float | None = Field(None, gt=0)
    export: Literal["versa"] | None = None
    played: tuple[str, ...] = ()
    max_report_bytes: int = Field(5_000_000, ge=100_000)
