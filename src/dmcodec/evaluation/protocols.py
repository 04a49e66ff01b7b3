"""Which clips of a list are evaluated: fixed draws that anyone can repeat."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Literal

from dmcodec.corpus.manifest import Utterance
from dmcodec.evaluation.workspace import hash_text

Protocol = Literal["full", "dmcodec-300"]

_TEST_CLEAN_SIZE = 2620
_DMCODEC_CLIPS = 300


def choose_clips(
    utterances: Sequence[Utterance], protocol: Protocol, num_clips: int | None
) -> list[Utterance]:
    """The clips of a protocol, in the order of the list.

    "full": all, or `num_clips` of them. "dmcodec-300": 300 of the 2620 utterances of LibriSpeech
    test-clean (the paper evaluates 300 clips; which ones is not published, so this draw is ours).

    Clips are drawn by the hash of their utterance name (the last part of the id), so the draw
    depends on nothing else: not on the order of the list, nor on any library.
    """
    if protocol == "dmcodec-300":
        if num_clips is not None:
            raise ValueError("the protocol dmcodec-300 has 300 clips; leave --num-clips out")
        if len(utterances) != _TEST_CLEAN_SIZE:
            raise ValueError(
                f"the protocol dmcodec-300 draws from the {_TEST_CLEAN_SIZE} utterances of "
                f"LibriSpeech test-clean, this list has {len(utterances)}; for other lists use "
                "--protocol full --num-clips 300"
            )
        num_clips = _DMCODEC_CLIPS
    if num_clips is None or num_clips >= len(utterances):
        return list(utterances)
    chosen = {u.id for u in sorted(utterances, key=lambda u: rank_clip(u.id))[:num_clips]}
    return [utterance for utterance in utterances if utterance.id in chosen]


def hash_clips(utterances: Sequence[Utterance], sound_hash: Callable[[str], str]) -> str:
    """16 hexadecimal digits for ids, sounds and texts of all clips, whatever their order."""
    ordered = sorted(utterances, key=lambda u: u.id)
    return hash_text(*(part for u in ordered for part in (u.id, sound_hash(u.id), u.text or "")))


def rank_clip(utterance_id: str) -> tuple[bytes, str]:
    """A sort key that is as good as random and the same everywhere and for ever."""
    name = utterance_id.rpartition("/")[2]
    return blake2b(f"dmcodec-300 {name}".encode(), digest_size=16).digest(), utterance_id
