"""Which files a command works on and where its results go, planned before the first is read."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from os.path import isdir
from pathlib import Path

from dmcodec.audio import find_audio_files
from dmcodec.sound.folders import find_files


def find_inputs(
    inputs: Sequence[Path],
    on_problem: Callable[[str], None],
    suffixes: Sequence[str] | None = None,
) -> list[Path]:
    """Files as they are given, and those inside folders (sound files, or of the suffixes given).

    A file that is named twice is one; hidden files inside folders are left out, links followed.
    `on_problem` gets a sentence for each folder without any.
    """
    found: list[Path] = []
    for path in inputs:
        if not isdir(path):  # of a name that no file can have Path.is_dir raises
            found.append(path)
            continue
        inside = find_audio_files(path) if suffixes is None else find_files(path, suffixes)
        if not inside:
            on_problem(f"folder {path} holds no file to work on")
        found += inside
    return list(dict.fromkeys(found))


def plan_outputs(
    inputs: Sequence[Path],
    paths: Sequence[Path],
    folder: Path | None,
    suffix: str,
    ids: Mapping[Path, str] | None = None,
) -> list[Path]:
    """Where each of `paths` goes: beside itself, or into `folder` with the layout of the inputs.

    The suffix replaces the file's own; names that would meet (a.wav and a.flac) keep theirs too.
    In `folder` a file with an id of its own is named by it.

    Raises ValueError where two would still be one.
    """
    roots = [path for path in inputs if isdir(path)]

    def place(path: Path, name: str) -> Path:
        if folder is None:
            return path.with_name(name)
        if ids is not None and path in ids:
            return folder / f"{ids[path]}{suffix}"
        # `folder/../x.wav` begins with the folder's name and is not in it.
        inside = (root for root in roots if root in path.parents)
        root = next((r for r in inside if ".." not in path.relative_to(r).parts), path.parent)
        return folder / path.parent.relative_to(root) / name

    short = [place(path, path.stem + suffix) for path in paths]
    uses = Counter(short)
    outputs = [
        target if uses[target] == 1 else place(path, path.name + suffix)
        for path, target in zip(paths, short, strict=True)
    ]
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file: name a folder for the results with -o")
        outside = [t for t in outputs if ".." in t.relative_to(folder).parts]
        if outside:
            raise ValueError(f"{outside[0]} would be written outside {folder}")
    clashes = [str(target) for target, count in Counter(outputs).items() if count > 1]
    if clashes:
        raise ValueError(f"several inputs would be written to {clashes[0]}: name their folders")
    return outputs
