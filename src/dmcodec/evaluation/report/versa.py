"""Input lists for VERSA, to score the same sounds with its measures.

Reference: Shi et al. 2024, arXiv:2412.17667.
"""

from collections.abc import Sequence
from pathlib import Path

from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.rows import Row
from dmcodec.evaluation.systems.system import ORIGINAL
from dmcodec.evaluation.workspace import Workspace
from dmcodec.storage import replace_together, write_whole


def export_versa(
    folder: Path, utterances: Sequence[Utterance], rows: Sequence[Row], workspace: Workspace
) -> None:
    """Writes `gt.scp`, `text` (clips that have one) and `SYSTEM.scp` for each system.

    Score a system with `scorer.py --gt gt.scp --pred SYSTEM.scp --text text --io soundfile`. Lines
    are `id path`; clips that a system failed on are not in its list.

    Raises:
        ValueError: an id holds white space, which such lists cannot.
    """
    for utterance in utterances:
        if any(character.isspace() for character in utterance.id):
            raise ValueError(f"id {utterance.id!r} has white space; VERSA's lists cannot hold it")
    lists: dict[str, list[str]] = {}
    for row in rows:
        if row.length_difference_samples is not None:
            path = workspace.sound_path(row.system, row.id).resolve()
            lists.setdefault(row.system, []).append(f"{row.id} {path}\n")
    texts = [f"{u.id} {' '.join(u.text.split())}\n" for u in utterances if u.text]
    with replace_together(folder) as aside:
        for system, lines in lists.items():
            name = "gt" if system == ORIGINAL else system
            write_whole(aside / f"{name}.scp", "".join(lines))
        if texts:
            write_whole(aside / "text", "".join(texts))
