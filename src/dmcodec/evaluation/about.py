"""What must stand beside every table of an evaluation: clips, models, versions, machine."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.metrics.registry import GROUPS
from dmcodec.packages import package_versions

_PACKAGES = (
    *("numpy", "torch", "transformers", "jiwer", "pocketsphinx", "Resemblyzer"),
    *dict.fromkeys(name for group in GROUPS.values() for name in group.distributions),
)


def describe_conditions(
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
