"""What a run may be guided by, and how strongly: the records of `[distillation]`.

The computation is in guidance.py.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from dmcodec.config import Record
from dmcodec.losses.distillation import DistillationForm
from dmcodec.teachers.speech import SpeechTeacherConfig
from dmcodec.teachers.text import TextTeacherConfig

CONSTANT_ALIGNMENTS = ("mean", "cls")


class Guide(Record):
    """Which books a guide acts on, and from when.

    Attributes:
        books: numbered from 1; the mean of their outputs is compared. [1] is the paper's RVQ-1,
            [8] its RVQ-8 and [1, 2, 3, 4, 5, 6, 7, 8] its RVQ-1:8.
        start_step: first step with this guide.
        ramp_steps: the weight rises over so many steps from there.
    """

    books: tuple[int, ...] = Field((1,), min_length=1)
    start_step: int = Field(0, ge=0)
    ramp_steps: int = Field(0, ge=0)

    @field_validator("books")
    @classmethod
    def _check_books(cls, books: tuple[int, ...]) -> tuple[int, ...]:
        if min(books) < 1 or len(set(books)) != len(books):
            raise ValueError(f"books are numbered from 1, each once, got {list(books)}")
        return books

    def strength_at(self, step: int) -> float:
        """0 before the start, 1 after the ramp, and a straight line between."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / (self.ramp_steps + 1))


class TeacherGuide(Guide):
    """A teacher whose features the codec's features shall resemble.

    Attributes:
        weight: of its term in eq. 3; the paper's weights of both teachers add up to 1.
        loss: the form of the loss. Features that are constant in time need `frame_cosine`.
        store: folder of features made by `dmcodec teach`; None: the models run in every step.
    """

    weight: float = Field(0.5, gt=0)
    loss: DistillationForm = "dimension_cosine"
    store: Path | None = None


class TextGuide(TeacherGuide):
    """Guidance by a language model."""

    teacher: TextTeacherConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        alignment = self.teacher.alignment
        if alignment in CONSTANT_ALIGNMENTS and self.loss == "dimension_cosine":
            raise ValueError(
                f"alignment {alignment!r} is constant in time: the dimension_cosine loss sees its "
                'signs only; take loss = "frame_cosine"'
            )
        if self.store is None and self.teacher.stt.kind == "given":
            raise ValueError("word times from a file are for whole utterances: name a store")
        if self.store is None and self.teacher.stt.use_transcripts:
            raise ValueError("transcripts are of whole utterances: name a store")
        return self


class SpeechGuide(TeacherGuide):
    """Guidance by a self-supervised speech model.

    Attributes:
        own_map_dim: H of a linear map of its own; None: the codec's feature map, which the
            language model shares, as in the paper.
    """

    teacher: SpeechTeacherConfig = SpeechTeacherConfig()
    own_map_dim: int | None = Field(None, ge=1, le=65536)


class CharacterGuide(Guide):
    """A character recognizer on the codec's features, trained with CTC: a control without teacher.

    Reference: Har-Tuv et al. 2025, arXiv:2505.14470 (there with more auxiliary tasks).

    Attributes:
        weight: of the term in L.
        store: a text teacher's store; its words are the targets, its features are not used.
        alphabet: what words are spelled with, in lower case; other characters are left out.
    """

    weight: float = Field(1.0, gt=0)
    store: Path
    alphabet: str = Field(" abcdefghijklmnopqrstuvwxyz'", min_length=1)

    @field_validator("alphabet")
    @classmethod
    def _check_alphabet(cls, alphabet: str) -> str:
        if len(set(alphabet)) != len(alphabet) or " " not in alphabet:
            raise ValueError("the alphabet must hold the space, and each character once")
        return alphabet


class DecodedGuide(Record):
    """A speech model that compares the decoded audio with the original, frame by frame.

    Reference: arXiv:2506.16738 and arXiv:2603.05887, where it about halves the word error rate.
    """

    weight: float = Field(1.0, gt=0, description="of the term in L")
    teacher: SpeechTeacherConfig = SpeechTeacherConfig()


class DistillationConfig(Record):
    """All guides of a run.

    Attributes:
        weight: of L_LS (text and speech together) in L; 120 in the released code.
        text: a language model.
        speech: a speech model.
        decoded: a speech model on the decoded audio.
        characters: a character recognizer.
    """

    weight: float = Field(120.0, gt=0)
    text: TextGuide | None = None
    speech: SpeechGuide | None = None
    decoded: DecodedGuide | None = None
    characters: CharacterGuide | None = None

    @property
    def teachers(self) -> dict[str, TextGuide | SpeechGuide]:
        """The teachers of eq. 3 by name."""
        both = {"text": self.text, "speech": self.speech}
        return {name: guide for name, guide in both.items() if guide is not None}

    def check_codec(self, num_codebooks: int, feature_dim: int | None, sample_rate: int) -> None:
        """Raises ValueError where the guides do not fit the codec."""
        guides: list[Guide] = list(self.teachers.values())
        if self.characters is not None:
            guides.append(self.characters)
        if not guides and self.decoded is None:
            raise ValueError("[distillation] names no guide: leave the group out instead")
        if guides and max(max(guide.books) for guide in guides) > num_codebooks:
            raise ValueError(f"distillation: the codec has books 1 to {num_codebooks}")
        needs_map = self.text is not None or (
            self.speech is not None and self.speech.own_map_dim is None
        )
        if needs_map != (feature_dim is not None):
            raise ValueError(
                "codec.feature_dim must be the width of the teachers' features"
                if needs_map
                else "codec.feature_dim makes a feature map that no teacher uses: leave it out"
            )
        online = [name for name, guide in self.teachers.items() if guide.store is None]
        online += ["decoded"] if self.decoded is not None else []
        if online and sample_rate != 16_000:
            raise ValueError(
                f"teachers that run in the training step ({', '.join(online)}) hear 16 kHz, the "
                f"codec works at {sample_rate} Hz: name a store"
            )
