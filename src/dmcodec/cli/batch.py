"""The loop of the commands that make a file of each file they are given."""

from collections.abc import Callable, Sequence
from os.path import exists
from pathlib import Path

from dmcodec.cli.options import describe_problem
from dmcodec.cli.terminal import show_progress
from dmcodec.jobs import Failure, Report


def for_each(
    title: str,
    paths: Sequence[Path],
    targets: Sequence[Path],
    work: Callable[[Path, Path], None],
    force: bool,
    *,
    beside: Sequence[str] = (),
    is_writing: bool = True,
    problems: Sequence[str] = (),
) -> Report:
    """Works on every file with a progress bar, also when others fail.

    Without `force` nothing is replaced: neither a target nor its namesakes with suffixes `beside`.
    `problems` are of inputs that gave no file: they are counted with the failures.
    An input is never replaced.
    """
    failures: list[Failure] = [{"reason": problem} for problem in problems]
    report = Report(total=len(paths) + len(problems), failures=failures)
    inputs = {number for path in paths if (number := _file_number(path)) is not None}
    with show_progress() as progress:
        for path, target in zip(paths, targets, strict=True):
            progress(title, report.num_finished, report.total)
            try:
                for result in (target, *map(target.with_suffix, beside)) if is_writing else ():
                    if not exists(result):
                        continue
                    if _file_number(result) in inputs:
                        raise FileExistsError(
                            f"{result} is one of the inputs and is not replaced: name another "
                            "folder with -o"
                        )
                    if not force:
                        raise FileExistsError(f"{result} exists: give --force to replace it")
                work(path, target)
                report.num_done += 1
            except (ValueError, OSError) as problem:
                text = describe_problem(problem)
                failures.append({"reason": text if str(path) in text else f"{path}: {text}"})
    return report


def _file_number(path: Path) -> tuple[int, int] | None:
    """What a file has under all of its names; None for what is none, or cannot be one."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
