"""What teachers say about a segment: features cut at the same time as the audio.

Frames begin at the segment's first sample divided by the hop, so that frame i of the features and
frame i of the codec hear the same samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmcodec.corpus.manifest import Utterance
from dmcodec.teachers.alignment import TIME_RATE, Word
from dmcodec.teachers.store import FeatureStore, StoreError
from dmcodec.tokens.bitstream import count_frames


class FrameFeatures(NamedTuple):
    """Teacher features on the codec's frames.

    Attributes:
        values: float16 `[L, H]`, or `[B, L, H]` of a batch; zero where masked.
        mask: bool `[L]` or `[B, L]`, False where the teacher has nothing to say.
    """

    values: Tensor
    mask: Tensor


class SegmentGuidance(NamedTuple):
    """What stores hold about one segment; None for teachers without a store.

    Attributes:
        text: of the language model.
        speech: of the speech model.
        words: those spoken wholly inside the segment, times from its first sample on.
    """

    text: FrameFeatures | None = None
    speech: FrameFeatures | None = None
    words: tuple[Word, ...] = ()


class BatchGuidance(NamedTuple):
    """The same for the segments of a batch."""

    text: FrameFeatures | None = None
    speech: FrameFeatures | None = None
    words: tuple[tuple[Word, ...], ...] = ()


@dataclass(frozen=True)
class TeacherStores:
    """The stores that segments are guided by; at least one.

    Attributes:
        text: features of the language model.
        speech: features of the speech model.
        words: a text teacher's store, whose words are wanted.
    """

    text: FeatureStore | None = None
    speech: FeatureStore | None = None
    words: FeatureStore | None = None

    def check(
        self, utterances: Sequence[Utterance], num_samples: Sequence[int], hop_length: int
    ) -> None:
        """Every utterance must be in every store, with its codec's number of frames."""
        for store in (self.text, self.speech, self.words):
            if store is None:
                continue
            missing = [each.id for each in utterances if each.id not in store]
            if missing:
                raise StoreError(
                    f"{store.folder}: {len(missing)} of {len(utterances)} utterances have no "
                    f"features, such as {missing[0]!r}: run dmcodec teach again; its failed.jsonl "
                    "names those that could not be read"
                )
            for utterance, length in zip(utterances, num_samples, strict=True):
                found, due = store.num_frames(utterance.id), count_frames(int(length), hop_length)
                if found != due:
                    raise StoreError(
                        f"{store.folder}: {utterance.id!r} has {found} frames there and {due} in "
                        "its sound file: it is another recording"
                    )

    def cut(
        self,
        utterance_id: str,
        *,
        start_samples: int,
        num_samples: int,
        num_frames: int,
        hop_length: int,
        sample_rate: int,
    ) -> SegmentGuidance:
        """What there is about the samples [start, start + num) of an utterance.

        Frames behind the last sample, up to `num_frames`, are masked.
        """
        first, count = start_samples // hop_length, count_frames(num_samples, hop_length)

        def read(store: FeatureStore | None) -> FrameFeatures | None:
            if store is None:
                return None
            values = np.zeros((num_frames, store.feature_dim), dtype=np.float16)
            mask = np.zeros(num_frames, dtype=np.bool_)
            values[:count], mask[:count] = store.read(utterance_id, first, count)
            return FrameFeatures(torch.from_numpy(values), torch.from_numpy(mask))

        words: tuple[Word, ...] = ()
        if self.words is not None:
            start = start_samples * TIME_RATE / sample_rate
            end = start + num_samples * TIME_RATE / sample_rate
            words = tuple(
                replace(
                    word,
                    start_samples=word.start_samples - start,
                    end_samples=word.end_samples - start,
                )
                for word in self.words.words(utterance_id)
                if word.is_timed and start <= word.start_samples and word.end_samples <= end
            )
        return SegmentGuidance(read(self.text), read(self.speech), words)


def collate_guidance(items: Sequence[SegmentGuidance]) -> BatchGuidance:
    """The guidance of a batch from that of its segments."""

    def stack(features: Sequence[FrameFeatures | None]) -> FrameFeatures | None:
        present = [each for each in features if each is not None]
        if not present:
            return None
        return FrameFeatures(
            torch.stack([each.values for each in present]),  # [B, L, H]
            torch.stack([each.mask for each in present]),  # [B, L]
        )

    return BatchGuidance(
        stack([item.text for item in items]),
        stack([item.speech for item in items]),
        tuple(item.words for item in items),
    )
