"""A table of training runs that differ in a few keys: `dmcodec ablate configs/ablations/x.toml`.

Every row is an experiment with some keys set, trained once for each seed and then measured on the
same clips. What is done is kept in the output folder; the same command goes on from there:

    runs/<row>-seed<n>/   training runs                evaluation/   quality, codes
    words/                word errors                  content/      phone errors of the probe
    table.md

With several processes as many runs are trained at once; what each says is in
runs/<row>-seed<n>.log.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from dmcodec.config import Record, load_config, parse_json
from dmcodec.corpus.manifest import read_manifests
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.execution import open_executor
from dmcodec.evaluation.reconstruct import use_one_thread
from dmcodec.evaluation.rows import Row, components
from dmcodec.evaluation.run import Evaluation, evaluate
from dmcodec.evaluation.scoring import check_models
from dmcodec.evaluation.statistics import Bootstrap, ratio
from dmcodec.evaluation.summary import Summary
from dmcodec.jobs import Progress, no_progress
from dmcodec.metrics.measure import BEST, ScoringConfig
from dmcodec.metrics.registry import GROUPS, MEASURES
from dmcodec.packages import import_package
from dmcodec.storage import write_whole
from dmcodec.training.experiment import Experiment
from dmcodec.training.loop import check_training_device, train
from dmcodec.training.step import TrainingDiverged
from dmcodec.training.teach import teach

logger = logging.getLogger(__name__)


class ContentConfig(Record):
    """What the phone probe learns from and hears; see `--measures content` in docs/evaluation.md.

    Attributes:
        train: manifests that it learns from: speakers and sentences that are not in `clips`.
        minutes: at most so many of them.
        clips: what the table calls a list -> its manifest.
        columns: names of the columns of all these lists (see `read_manifests`).
    """

    train: tuple[Path, ...] = Field(min_length=1)
    minutes: float = Field(60.0, gt=0)
    clips: dict[str, Path] = Field(min_length=1)
    columns: dict[str, str] = Field(default_factory=dict)


class AblationRow(Record):
    """One line of the table.

    Attributes:
        name: letters, digits and `+-_.` (it names folders).
        label: what the table calls it; None: the name.
        published_wer: per cent, from the paper, shown beside; None: the paper has no such row.
        experiment: the configuration it trains; None: the ablation's.
        assignments: `key=value` as for `--set`, after those of the ablation.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+_.-]*$")
    label: str | None = None
    published_wer: float | None = Field(None, gt=0)
    experiment: Path | None = None
    assignments: tuple[str, ...] = ()


class AblationConfig(Record):
    """A table: its rows, and how each is trained and measured.

    Attributes:
        experiment: configuration that rows train unless they name another.
        assignments: `key=value` for every row.
        seeds: every row is trained once with each.
        rows: the first is the reference that differences are taken against.
        clips: manifests of the test clips.
        columns: names of their columns (see `read_manifests`).
        num_clips: how many of them are drawn; None: all.
        measures: of quality, as for `dmcodec evaluate --measures`.
        num_word_clips: how many clips are recognized; 0: none. Always from all books: a decoder
            that never saw fewer makes noise of book 1 alone.
        recognizer: see `dmcodec evaluate --recognizer`.
        content: what is measured of the content of book 1 and of all books; None: nothing.
    """

    experiment: Path
    assignments: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field((1, 2), min_length=1)
    rows: tuple[AblationRow, ...] = Field(min_length=2)
    clips: tuple[Path, ...] = Field(min_length=1)
    columns: dict[str, str] = Field(default_factory=dict)
    num_clips: int | None = Field(None, ge=1)
    measures: tuple[Literal["stoi", "pesq", "visqol", "distillmos"], ...] = ("stoi", "pesq")
    num_word_clips: int = Field(300, ge=0)
    recognizer: str = BEST
    content: ContentConfig | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("rows must have different names, and seeds must differ")
        return self

    def scoring(self, device: str = "cpu") -> ScoringConfig:
        """The choices of all its measures."""
        choices = ScoringConfig(recognizer=self.recognizer, device=device)
        if self.content is None:
            return choices
        probe = {
            "content_train": self.content.train,
            "content_minutes": self.content.minutes,
            "content_columns": self.content.columns,
        }
        return choices.model_copy(update=probe)

    def experiment_of(self, row: AblationRow, seed: int) -> Experiment:
        """The complete experiment of one run."""
        assignments = [*self.assignments, *row.assignments, f"seed={seed}"]
        return load_config(row.experiment or self.experiment, Experiment, assignments)


def ablate(
    config: AblationConfig,
    output: Path,
    *,
    device: str = "auto",
    num_processes: int = 1,
    progress: Progress = no_progress,
) -> str:
    """Trains and measures every row; gives the table in Markdown and writes it to `output`.

    Args:
        config: what to compare.
        output: folder of runs and results; goes on from what it holds.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        num_processes: that compute features and scores and, each with one thread, train a run
            each. A small step keeps a GPU waiting: several runs at once share it well.
        progress: told of every finished run.

    Raises ValueError or FileNotFoundError for an experiment, clip or model that cannot be used,
    before the first run where that can be known; TrainingDiverged names the row.
    """
    experiments = {
        (row.name, seed): config.experiment_of(row, seed)
        for row in config.rows
        for seed in config.seeds
    }
    check_training_device(device)
    has_words = (output / "words" / "rows.jsonl").is_file()
    _check_before_training(config, list(experiments.values()), needs_recognizer=not has_words)
    models_on = "cuda" if _takes_gpu(device) else "cpu"
    folders = {key: output / "runs" / f"{key[0]}-seed{key[1]}" for key in experiments}
    for (_, seed), experiment in experiments.items():
        if seed == config.seeds[0] and _has_store(experiment):  # seeds share the features
            teach(experiment, num_processes=num_processes, device=models_on)
    _train_all(experiments, folders, device, num_processes, progress)

    whole = {_system(*key): str(folder / "codec") for key, folder in folders.items()}
    scoring = config.scoring(models_on)
    shared = {
        "manifests": config.clips,
        "columns": config.columns,
        "num_processes": num_processes,
        "scoring": scoring,
    }
    request = {**shared, "measures": (*config.measures, "codes"), "num_clips": config.num_clips}
    quality = _evaluate(request, whole, output / "evaluation", progress)
    words = content = None
    if config.num_word_clips:
        request = {**shared, "measures": ("words",), "num_clips": config.num_word_clips}
        words = _evaluate(request, whole, output / "words", progress)
    if config.content:
        manifests = tuple(config.content.clips.values())
        request = {**shared, "manifests": manifests, "measures": ("content",)}
        request["columns"] = config.content.columns
        books = {f"{name}.book1": f"{codec}@1" for name, codec in whole.items()}
        content = _evaluate(request, whole | books, output / "content", progress)
    losses = {key: _last_validation(folder) for key, folder in folders.items()}
    table = _make_table(config, quality, words, content, losses)
    write_whole(output / "table.md", table)
    return table


def _check_before_training(
    config: AblationConfig, experiments: Sequence[Experiment], *, needs_recognizer: bool
) -> None:
    """Raises what would otherwise end the table after hours: lists and models that are missing."""
    import_package("PIL.Image", "the report")
    if config.num_word_clips and needs_recognizer:
        check_models(("words",), config.scoring())
    lists = [(config.clips, tuple(config.columns.items()))]
    for data in (each.data for each in experiments):
        columns = tuple(data.columns.items())
        lists.append((data.train_manifests, columns))
        if data.valid_manifest is not None:
            lists.append(((data.valid_manifest,), columns))
    if config.content:
        for manifests in (config.content.train, tuple(config.content.clips.values())):
            lists.append((manifests, tuple(config.content.columns.items())))
    for manifests, columns in dict.fromkeys(lists):
        read_manifests(manifests, columns=dict(columns))
    for group in (*config.measures, *(("content",) if config.content else ())):
        if reason := GROUPS[group].why_not(config.scoring()):
            raise ValueError(reason)


_Key = tuple[str, int]
"""A run: its row's name and its seed."""


def _train_all(
    experiments: Mapping[_Key, Experiment],
    folders: Mapping[_Key, Path],
    device: str,
    num_processes: int,
    progress: Progress,
) -> None:
    """Trains what is not trained yet, up to `num_processes` runs at once.

    The first error is raised when the runs under way have come to their ends.
    """
    progress("training", 0, len(experiments))
    if num_processes <= 1:
        for number, (key, experiment) in enumerate(experiments.items(), start=1):
            _train_run(key, experiment, folders[key], device)
            progress("training", number, len(experiments))
        return
    prepare = partial(_prepare_process, device, 1 / num_processes)
    with open_executor(num_processes, prepare) as executor:
        runs = [
            executor.submit(_train_apart, key, experiment, folders[key], device)
            for key, experiment in experiments.items()
        ]
        for number, run in enumerate(as_completed(runs), start=1):
            if problem := run.exception():
                logger.error("%s; runs under way are waited for", problem)
                raise problem
            progress("training", number, len(experiments))


def _train_run(key: _Key, experiment: Experiment, folder: Path, device: str) -> None:
    """Trains one row with one seed, or goes on; TrainingDiverged names it."""
    try:
        train(experiment, folder, resume=True, device=device)
    except TrainingDiverged as problem:
        raise TrainingDiverged(f"row {key[0]}, seed {key[1]}: {problem}") from problem


def _takes_gpu(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def _prepare_process(device: str, memory_share: float) -> None:
    """Makes this process one of several that train: one thread, its share of a GPU's memory."""
    use_one_thread()
    if _takes_gpu(device):
        # For some lengths of sound cuDNN takes tens of GB as a workspace, which torch keeps, and a
        # run that begins later finds no memory. With a bound torch takes the next algorithm.
        torch.cuda.set_per_process_memory_fraction(memory_share)


# Set in a process whose run was interrupted: the run that it has in its queue is not begun.
_is_interrupted = Event()


def _train_apart(key: _Key, experiment: Experiment, folder: Path, device: str) -> None:
    """`_train_run` in a process among others: lines of several runs on one terminal say nothing."""
    if _is_interrupted.is_set():
        raise KeyboardInterrupt
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.log"
    package = logging.getLogger("dmcodec")
    with path.open("a", encoding="utf-8") as file, redirect_stderr(file):
        handler = logging.StreamHandler(file)
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            _train_run(key, experiment, folder, device)
        except (KeyboardInterrupt, SystemExit):
            _is_interrupted.set()
            raise
        finally:
            package.removeHandler(handler)


def _has_store(experiment: Experiment) -> bool:
    guidance = experiment.distillation
    return guidance is not None and any(g.store for g in guidance.teachers.values())


def _system(row: str, seed: int) -> str:
    return f"{row}-seed{seed}"


def _evaluate(
    request: Mapping[str, object], codecs: Mapping[str, str], output: Path, progress: Progress
) -> Evaluation:
    """The evaluation of codecs (name -> folder, or folder@books) that `request` describes."""
    systems = tuple(f"{name}=dmcodec:{codec}" for name, codec in codecs.items())
    config = EvaluationConfig.model_validate({**request, "systems": systems})
    return evaluate(config, output, progress)


def _last_validation(run: Path) -> dict[str, float]:
    """The last scores on held-out speakers in a run's log."""
    last: dict[str, float] = {}
    path = run / "metrics.jsonl"
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            values = {k: v for k, v in parse_json(line).items() if k.startswith("valid/")}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: damaged: {error}; train the row again") from error
        last = values or last
    return last


def _make_table(
    config: AblationConfig,
    quality: Evaluation,
    words: Evaluation | None,
    content: Evaluation | None,
    losses: Mapping[_Key, Mapping[str, float]],
) -> str:
    """The table in Markdown: a line for each row, and what the figures are of."""
    has_published = any(row.published_wer for row in config.rows)
    lists = _clips_by_list(config.content) if config.content else {}
    head = ["row", "distillation loss, text", "speech"]
    head += [f"PER of {book}, {name}, %" for book in ("book 1", "all books") for name in lists]
    head += ["phones in book 1, %", "by chance, %"]
    head += ["WER, %"] if words else []
    head += ["WER in the paper, %"] if has_published else []
    head += [MEASURES[each].label for each in config.measures]
    head += ["book 1 used, %", "perplexity"]
    reference = [_system(config.rows[0].name, seed) for seed in config.seeds]
    lines = []
    for row in config.rows:
        names = [_system(row.name, seed) for seed in config.seeds]
        books = [_first_book(quality.summary, name) for name in names]
        own = [losses[row.name, seed] for seed in config.seeds]
        cells = [row.label or row.name]
        for teacher in ("text", "speech"):
            key = f"valid/loss_distill_{teacher}"
            cells.append(_by_seed([each[key] for each in own if key in each], 3))
        if content:
            cells += _content_cells(content.rows, lists.values(), names, reference)
        cells += [_by_seed([100 * each[key] for each in books], 1) for key in ("phones", "chance")]
        if words:
            cells.append(_pooled(words.rows, names, reference, "wer"))
        if has_published:
            cells.append("-" if row.published_wer is None else f"{row.published_wer:.2f}")
        cells += [_pooled(quality.rows, names, reference, each) for each in config.measures]
        cells += [_by_seed([100 * each["usage"] for each in books], 0)]
        cells += [_by_seed([each["perplexity"] for each in books], 0)]
        lines.append(cells)
    rules = ["---"] * len(head)
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rules, *lines])
    return text + "\n\n" + _notes(config, quality.summary, words, content) + "\n"


def _content_cells(
    rows: Sequence[Row],
    lists: Iterable[set[str]],
    names: Sequence[str],
    reference: Sequence[str],
) -> list[str]:
    """Phone errors from book 1 and from all books, on the clips of each list."""
    return [
        _pooled(
            [row for row in rows if row.id in clips],
            [name + book for name in names],
            [name + book for name in reference],
            "content_per",
        )
        for book in (".book1", "")
        for clips in lists
    ]


def _clips_by_list(config: ContentConfig) -> dict[str, set[str]]:
    """What the table calls a list -> ids of its clips."""
    return {
        name: {utterance.id for utterance in read_manifests([path], columns=config.columns)}
        for name, path in config.clips.items()
    }


def _first_book(summary: Summary, name: str) -> dict[str, float]:
    """Statistics of a system's first book; `phones` and `chance` are NaN without phones."""
    codes = next(system.codes for system in summary.systems if system.name == name)
    assert codes is not None
    book, phones = codes.books[0], codes.phones[0] if codes.phones else None
    return {
        "usage": book.usage,
        "perplexity": book.perplexity,
        "phones": phones.share if phones else float("nan"),
        "chance": phones.chance if phones else float("nan"),
    }


def _by_seed(values: Sequence[float], digits: int) -> str:
    """The mean over seeds and, in brackets, the least and the greatest."""
    if not values or not np.isfinite(values).all():
        return "-"
    mean, low, high = np.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _pooled(
    rows: Sequence[Row], names: Sequence[str], reference: Sequence[str], measure: str
) -> str:
    """A measure over all clips and seeds with its interval; a star where it differs from the first.

    Clips are resampled, each with its runs of all seeds; the difference is paired by clip.
    """
    own, others = (_clips_of(rows, each, measure) for each in (names, reference))
    shared = sorted(own.keys() & others.keys())
    if not shared:
        return "-"
    first = np.array([own[clip] for clip in shared])
    second = np.array([others[clip] for clip in shared])
    kind = MEASURES[measure]
    bootstrap = Bootstrap()
    estimate = bootstrap.estimate(first, ratio)
    low, high = kind.show(estimate.low), kind.show(estimate.high)
    text = f"{kind.show(estimate.value)} [{low}, {high}]"
    if list(names) == list(reference):
        return text
    values = [each[:, 0] / each[:, 1] for each in (first, second)]
    difference = bootstrap.difference(
        first, second, ratio, values=values[0], other_values=values[1]
    )
    return text + (" *" if difference.p_value < 0.05 else "")


def _clips_of(
    rows: Sequence[Row], names: Sequence[str], measure: str
) -> dict[str, tuple[float, float]]:
    """Components of each clip that every one of the systems has, added over the systems."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        parts = components(row, MEASURES[measure]) if row.system in names else None
        if parts is not None:
            found.setdefault(row.id, []).append(parts[:2])
    return {
        clip: (sum(a for a, _ in parts), sum(b for _, b in parts))
        for clip, parts in found.items()
        if len(parts) == len(names)
    }


def _notes(
    config: AblationConfig, summary: Summary, words: Evaluation | None, content: Evaluation | None
) -> str:
    notes = [
        f"Seeds {', '.join(map(str, config.seeds))}. Brackets of losses, phones, use and "
        "perplexity: least and greatest over seeds; others: 95 % bootstrap intervals over clips. "
        f"*: differs from {config.rows[0].label or config.rows[0].name} (paired bootstrap over "
        "clips, p < 0.05).",
        f"Distillation losses are on held-out speakers. Quality and codes: "
        f"{summary.about['clips']}, hash {summary.about['hash of clips']}.",
        "Phones in book 1: mutual information with the aligned phones over their entropy. By "
        "chance: the same with codes of shuffled frames, lower for a book of less perplexity: rows "
        "compare by what is above it.",
    ]
    if words:
        about = words.summary.about
        notes.append(f"Words: {about['clips']}; {about['recognizer']}.")
    if content:
        about = content.summary.about
        notes.append(f"PER: {about['clips']}; {about['probe of codes']}.")
    return " ".join(notes)
