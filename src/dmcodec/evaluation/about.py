"""What an evaluation is asked to do, and what must stand beside every table it gives."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import Field

from dmcodec.config import Record
from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.protocols import Protocol
from dmcodec.metrics.measure import ScoringConfig
from dmcodec.metrics.registry import GROUPS
from dmcodec.metrics.words import Normalizer
from dmcodec.packages import package_versions
from dmcodec.processes import MAX_WORKERS

_PACKAGES = (
    *("numpy", "torch", "transformers", "jiwer", "pocketsphinx", "Resemblyzer"),
    *dict.fromkeys(name for group in GROUPS.values() for name in group.distributions),
)


class EvaluationConfig(Record):
    """What to evaluate on which clips, and how.

    `columns` are names of columns in the manifests (see `dmcodec.corpus.manifest.read_manifests`).
    `systems` are `NAME=KIND:ARG` (see `systems.parse_system`); `kbps` and `delay_samples` say by
    name what a folder or command does not. `search_width` is of all codecs of ours (see
    `Codec.encode`) but those that `search_widths` names. `measures` are groups (see
    `metrics.registry.GROUPS`). `num_processes` 0 does everything in this process. `max_minutes`
    ends scoring, which does slow measures last: what some system then lacks is missing for all,
    and the same command goes on. `reference` is the system that differences are taken against,
    the first one by default. `max_failed_share` of the reconstructions may fail before the whole
    counts as failed. `played` are the clips with players in the report; drawn when empty.
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
    max_failed_share: float = Field(0.01, ge=0, le=1)


def describe(
    config: EvaluationConfig,
    utterances: Sequence[Utterance],
    clips_hash: str,
    lost: Mapping[str, str],
) -> dict[str, str]:
    """What must stand beside every table."""
    speakers = {u.speaker for u in utterances if u.speaker}
    left_out = [group for group in GROUPS if group not in config.measures]
    draw = config.protocol + (f", {config.num_clips} drawn" if config.num_clips else "")
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "clips": f"{len(utterances)} clips of {len(speakers) or 'unknown'} speakers, from "
        + ", ".join(path.name for path in config.manifests),
        "protocol": draw,
        "hash of clips": clips_hash,
        "measures": ", ".join(config.measures)
        + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        **_models(config),
        "intervals": f"{config.confidence:.0%} bootstrap percentiles, {config.num_resamples} "
        f"resamples of {config.resample}s, seed {config.seed}",
        "versions": ", ".join(
            [f"dmcodec {version('dmcodec')}", f"Python {platform.python_version()}"]
            + [f"{name} {found}" for name, found in package_versions(_PACKAGES).items()]
        ),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}; "
        f"codecs on {config.scoring.device}, one thread",
    }
    if lost:
        about["left out"] = f"{len(lost)} originals that could not be read"
    return about


def _models(config: EvaluationConfig) -> dict[str, str]:
    """The models that measures ask, and what both texts of a comparison go through."""
    found = {}
    for group in (GROUPS[name] for name in config.measures):
        if group.model is not None and group.model.lacks(config.scoring) is None:
            found[group.model.label] = group.model.identity(config.scoring)
            if group.hears_text:
                found[group.model.label] += f"; text normalizer: {config.normalizer}"
    return found


def _processor() -> str:
    """The processor's name where the system tells it."""
    listing = Path("/proc/cpuinfo")
    if sys.platform == "linux" and listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
