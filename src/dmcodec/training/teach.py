"""The features that an experiment wants from stores, computed beforehand: `dmcodec teach`."""

import json
from functools import partial
from pathlib import Path

from dmcodec.corpus.manifest import read_manifests
from dmcodec.jobs import Progress, no_progress
from dmcodec.storage import open_whole
from dmcodec.teachers.alignment import TIME_RATE
from dmcodec.teachers.extract import CodecFrames, ExtractionReport, extract
from dmcodec.teachers.store import FeatureStore
from dmcodec.teachers.text import TextTeacherConfig
from dmcodec.training.experiment import Experiment

WORD_TIMES = "words.jsonl"
"""File in a text teacher's store: words with their times, as `stt.kind = "given"` reads them."""


def teach(
    experiment: Experiment,
    *,
    num_processes: int = 1,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> dict[Path, ExtractionReport]:
    """Fills every store that the experiment's teachers name; what is there already is kept.

    The utterances are those of the training manifests and of the validation manifest. A language
    model's store also gets `WORD_TIMES`, so that another one need not recognize the speech again.

    Args:
        experiment: with `[distillation]`.
        num_processes: at work at the same time.
        device: of the models.
        progress: told the teacher's name, utterances finished and utterances.

    Returns:
        What was done, by store.

    Raises ValueError when no teacher names a store, and what `extract` raises.
    """
    guides = {} if experiment.distillation is None else experiment.distillation.teachers
    with_store = {name: guide for name, guide in guides.items() if guide.store is not None}
    if not with_store:
        raise ValueError(
            "no teacher of this experiment names a store: set distillation.text.store or "
            "distillation.speech.store to a folder"
        )
    manifests = list(experiment.data.train_manifests)
    if experiment.data.valid_manifest is not None:
        manifests.append(experiment.data.valid_manifest)
    utterances = read_manifests(list(dict.fromkeys(manifests)), columns=experiment.data.columns)
    frames = CodecFrames(
        sample_rate=experiment.codec.sample_rate, hop_length=experiment.codec.hop_length
    )
    reports: dict[Path, ExtractionReport] = {}
    for name, guide in with_store.items():
        assert guide.store is not None
        reports[guide.store] = extract(
            utterances,
            guide.store,
            guide.teacher,
            frames,
            num_processes=num_processes,
            device=device,
            progress=partial(progress, name),
        )
        if isinstance(guide.teacher, TextTeacherConfig):
            _write_word_times(guide.store)
    return reports


def _write_word_times(folder: Path) -> None:
    store = FeatureStore(folder)
    with open_whole(folder / WORD_TIMES) as file:
        for utterance_id in store.utterance_ids:
            words = [
                {
                    "text": word.text,
                    "start_s": word.start_samples / TIME_RATE if word.is_timed else None,
                    "end_s": word.end_samples / TIME_RATE if word.is_timed else None,
                }
                for word in store.words(utterance_id)
            ]
            line = json.dumps({"id": utterance_id, "words": words}, ensure_ascii=False)
            file.write(f"{line}\n".encode())
