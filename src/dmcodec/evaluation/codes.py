"""The codes of whole systems: statistics of each book, and what each says about phones."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dmcodec.audio import SAMPLE_RATE, read_audio
from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.summary import CodesSummary
from dmcodec.evaluation.systems.system import ORIGINAL, SystemFacts
from dmcodec.evaluation.workspace import CachedScores, SoundRecord, Workspace, hash_text
from dmcodec.metrics.codes import PhoneInformation, book_statistics, phone_information
from dmcodec.metrics.measure import Unmeasurable
from dmcodec.metrics.phones import NOT_SPEECH, PhoneAligner, dump_phones, label_frames, load_phones
from dmcodec.packages import package_versions, why_unavailable
from dmcodec.pretrained.sphinx import SpokenPhone

logger = logging.getLogger(__name__)


def align_originals(
    utterances: Sequence[Utterance],
    sounds: Mapping[tuple[str, str], SoundRecord],
    workspace: Workspace,
    progress: Callable[[int, int], None],
) -> dict[str, list[SpokenPhone]]:
    """Phones of the clips that have a text and can be aligned, from the cache where possible.

    Without PocketSphinx there are none.
    """
    reason = why_unavailable(("pocketsphinx",), "phone information")
    if reason is not None:
        logger.warning("%s", reason)
        return {}
    cache = workspace.read_cache()
    version = repr(package_versions(("pocketsphinx",)))
    aligner = PhoneAligner()
    found = {}
    spoken = [u for u in utterances if u.text]
    for number, utterance in enumerate(spoken, start=1):
        text = utterance.text or ""
        key = hash_text("phones", version, sounds[ORIGINAL, utterance.id].sound_hash, text)
        cached = cache.get(key)
        if cached is None:
            cached = _align_one(aligner, key, utterance.id, text, workspace)
            workspace.append_to_cache(cached)
        if cached.text is not None:
            found[utterance.id] = load_phones(cached.text)
        progress(number, len(spoken))
    return found


def _align_one(
    aligner: PhoneAligner, key: str, clip: str, text: str, workspace: Workspace
) -> CachedScores:
    waveform = read_audio(workspace.sound_path(ORIGINAL, clip), sample_rate=SAMPLE_RATE)
    try:
        phones = aligner.align(waveform, SAMPLE_RATE, text)
    except Unmeasurable as reason:
        return CachedScores(key=key, values={}, missing={"phones": str(reason)})
    return CachedScores(key=key, values={}, missing={}, text=dump_phones(phones))


def summarize_codes(
    name: str,
    facts: SystemFacts,
    sounds: Mapping[tuple[str, str], SoundRecord],
    phones: Mapping[str, Sequence[SpokenPhone]],
    workspace: Workspace,
    seed: int,
) -> CodesSummary:
    """Statistics of each book of one system over all clips, and its phone information."""
    clips = [clip for (system, clip), r in sounds.items() if system == name and r.has_codes]
    if not clips or facts.codebook_size is None or facts.frame_rate is None:
        return CodesSummary(books=(), phones=())
    codes = {clip: workspace.read_codes(name, clip) for clip in clips}
    inventory: dict[str, int] = {}
    labelled, labels = [], []
    for clip in clips:
        if clip in phones:
            num_frames = codes[clip].shape[1]
            frames = label_frames(phones[clip], inventory, facts.frame_rate, num_frames)
            labelled.append(codes[clip][:, frames != NOT_SPEECH])
            labels.append(frames[frames != NOT_SPEECH])
    informed: tuple[PhoneInformation, ...] = ()
    if sum(len(frames) for frames in labels):
        joined, all_labels = np.concatenate(labelled, axis=1), np.concatenate(labels)
        informed = tuple(
            phone_information(book, all_labels, np.random.default_rng(seed)) for book in joined
        )
    return CodesSummary(
        books=tuple(book_statistics(list(codes.values()), facts.codebook_size)), phones=informed
    )
