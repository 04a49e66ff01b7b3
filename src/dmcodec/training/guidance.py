"""Guidance at work: teachers' features against the codec's, one forward pass for all of them.

    L_LS = w_LM L(W Q_books, S) + w_SM L(W Q_books, A)      eq. 3

with L a loss of `dmcodec.losses.distillation`, Q the mean output of the chosen books, W the
codec's feature map and S, A the features of language and speech model.

Reference: Ahasan et al. 2024, arXiv:2410.15017, sec. 3.2.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from dmcodec.codec.model import Codec
from dmcodec.codec.network import CodecConfig, CodecOutput
from dmcodec.data.features import FrameFeatures, TeacherStores
from dmcodec.data.loader import SegmentBatch, ValidationClip
from dmcodec.losses.distillation import (
    combine_losses,
    distillation_loss,
    frame_cosine_loss,
    loss_count,
)
from dmcodec.teachers.alignment import TIME_RATE, Word
from dmcodec.teachers.extract import (
    CodecFrames,
    TeacherConfig,
    build_teacher,
    teacher_models,
    teacher_settings,
)
from dmcodec.teachers.speech import SpeechTeacher
from dmcodec.teachers.store import FeatureStore
from dmcodec.teachers.text import TextTeacher
from dmcodec.tokens.bitstream import count_frames
from dmcodec.training.distillation import CharacterGuide, DistillationConfig

logger = logging.getLogger(__name__)

_BLANK = 0


class GuidanceHeads(nn.Module):
    """Layers that only training needs, beside the codec's feature map.

    They lie on the mean outputs of books, [B, D, L] -> [B, L, H].
    """

    def __init__(self, config: DistillationConfig, latent_dim: int) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        if config.speech is not None and config.speech.own_map_dim is not None:
            layers["speech"] = nn.Linear(latent_dim, config.speech.own_map_dim)
        if config.characters is not None:
            layers["characters"] = nn.Linear(latent_dim, len(config.characters.alphabet) + 1)
        self.layers = nn.ModuleDict(layers)

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each layer on the book output [B, D, L] of its name, [B, L, H]."""
        return {name: layer(outputs[name].transpose(1, 2)) for name, layer in self.layers.items()}


class GuidanceTerms(NamedTuple):
    """What guides add to a step.

    Attributes:
        loss: all terms times their weights, added: a part of L.
        terms: `distillation` (L_LS), `speech_model`, `characters`, and `distill_text` and
            `distill_speech` (the parts of L_LS), those that there are, without their weights.
    """

    loss: Tensor
    terms: dict[str, Tensor]


def make_heads(config: DistillationConfig | None, latent_dim: int) -> GuidanceHeads | None:
    """The additional layers of a run; None when it needs none."""
    heads = GuidanceHeads(config, latent_dim) if config is not None else None
    return heads if heads is not None and len(heads.layers) else None


class Guidance:
    """The guides of a run with their models and stores open.

    Args:
        config: the guides.
        codec: whose frames they are for.
        device: of models that run in the step.

    Raises:
        FileNotFoundError, ModuleNotFoundError: a store, a model or a package is missing.
        StoreError: a store is of another teacher.
        ValueError: a teacher's width is not the map's.
    """

    def __init__(self, config: DistillationConfig, codec: CodecConfig, device: str = "cpu") -> None:
        self.config = config
        self._frames = CodecFrames(sample_rate=codec.sample_rate, hop_length=codec.hop_length)
        self._models: dict[str, TextTeacher | SpeechTeacher] = {}
        stores: dict[str, FeatureStore] = {}
        for name, guide in config.teachers.items():
            teacher: TeacherConfig = guide.teacher
            width = codec.feature_dim
            if name == "speech" and config.speech is not None and config.speech.own_map_dim:
                width = config.speech.own_map_dim
            if guide.store is not None:
                stores[name] = _open_store(guide.store, teacher, self._frames)
                found = stores[name].feature_dim
            else:
                self._models[name] = build_teacher(teacher, self._frames, device)
                found = self._models[name].feature_dim
            if found != width:
                raise ValueError(
                    f"the {name} teacher's features have width {found}, the linear map gives "
                    f"{width}: set codec.feature_dim (or distillation.speech.own_map_dim)"
                )
        self._decoded: SpeechTeacher | None = None
        if config.decoded is not None:
            model = build_teacher(config.decoded.teacher, self._frames, device)
            self._decoded = cast(SpeechTeacher, model)
        if config.characters is not None:
            stores["words"] = FeatureStore(config.characters.store)
        self.stores = TeacherStores(**stores) if stores else None

    def terms(
        self,
        step: int,
        codec: Codec,
        heads: nn.Module | None,
        batch: SegmentBatch,
        output: CodecOutput,
        accelerator: Accelerator | None = None,
    ) -> GuidanceTerms:
        """What the guides add to L in a step.

        Args:
            step: counts from 0.
            codec: the bare codec, whose feature map is used.
            heads: the layers of `GuidanceHeads`, as wrapped for several processes; or None.
            batch: what the codec was given.
            output: what it made of it.
            accelerator: makes several processes divide by the same counts; None for one.
        """
        outputs = output.quantizer.book_outputs if output.quantizer is not None else ()
        students = self._students(codec, heads, outputs)
        terms: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for name, guide in self.config.teachers.items():
            strength = guide.strength_at(step)
            weights[name] = strength * guide.weight
            if strength == 0:
                # Every weight takes part in every step: processes wait for all gradients.
                parts[name] = 0.0 * students[name].sum()
                continue
            features = self._features(name, batch)
            values, mask = (each.to(students[name].device) for each in features)
            count = _shared(loss_count(guide.loss, mask), accelerator)
            parts[name] = distillation_loss(guide.loss, students[name], values, mask, count)
        weighted: dict[str, float] = {}
        if parts:
            weighted["distillation"] = self.config.weight
            terms["distillation"] = combine_losses(parts, weights)
        if self.config.decoded is not None:
            weighted["speech_model"] = self.config.decoded.weight
            terms["speech_model"] = self._compare_decoded(batch, output, accelerator)
        if self.config.characters is not None:
            strength = self.config.characters.strength_at(step)
            weighted["characters"] = strength * self.config.characters.weight
            assert batch.guidance is not None
            terms["characters"] = character_loss(
                self.config.characters,
                students["characters"],
                batch.guidance.words,
                self._frames,
                accelerator,
            )
        loss = combine_losses(terms, weighted)
        return GuidanceTerms(
            loss, terms | {f"distill_{name}": part for name, part in parts.items()}
        )

    @torch.no_grad()
    def validate(
        self, codec: Codec, heads: nn.Module | None, clip: ValidationClip
    ) -> dict[str, float]:
        """`loss_distill_text` and so on for a clip that the stores know, or with online models."""
        waveform = clip.waveform.to(codec.device)
        num_samples = torch.tensor([waveform.shape[-1]])
        output: CodecOutput = codec(waveform)
        assert output.quantizer is not None
        students = self._students(codec, heads, output.quantizer.book_outputs)
        losses = {}
        for name, guide in self.config.teachers.items():
            store = None if self.stores is None else getattr(self.stores, name)
            num_frames = students[name].shape[1]
            if store is None:
                features = self._run(name, waveform, num_samples, num_frames)
            elif clip.utterance.id in store:
                values, mask = store.read(clip.utterance.id, 0, num_frames)
                features = FrameFeatures(
                    torch.from_numpy(values)[None], torch.from_numpy(mask)[None]
                )
            else:
                continue
            values, mask = (each.to(codec.device) for each in features)
            if bool(mask.any()):
                loss = distillation_loss(guide.loss, students[name], values, mask)
                losses[f"loss_distill_{name}"] = float(loss)
        return losses

    def _students(
        self, codec: Codec, heads: nn.Module | None, outputs: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The codec's side of every guide, [B, L, H]."""
        guides = {**self.config.teachers}
        chosen = {name: mean_of_books(outputs, guide.books) for name, guide in guides.items()}
        if self.config.characters is not None:
            chosen["characters"] = mean_of_books(outputs, self.config.characters.books)
        students = heads(chosen) if heads is not None else {}
        for name in guides:
            if name not in students:
                assert codec.feature_map is not None
                students[name] = codec.feature_map(chosen[name].transpose(1, 2))  # [B, L, H]
        return students

    def _features(self, name: str, batch: SegmentBatch) -> FrameFeatures:
        if name in self._models:
            num_frames = count_frames(batch.waveform.shape[-1], self._frames.hop_length)
            return self._run(name, batch.waveform, batch.num_samples, num_frames)
        assert batch.guidance is not None
        return cast(FrameFeatures, getattr(batch.guidance, name))

    @torch.no_grad()
    def _run(
        self, name: str, waveform: Tensor, num_samples: Tensor, num_frames: int
    ) -> FrameFeatures:
        """An online teacher on waveforms [B, 1, T]."""
        model = self._models[name]
        if isinstance(model, SpeechTeacher):
            return FrameFeatures(*model.frame_features(waveform[:, 0], num_samples, num_frames))
        values, masks = [], []
        for item, length in zip(waveform[:, 0].cpu().numpy(), num_samples.tolist(), strict=True):
            track, _ = model.track(item[:length], None, "segment", num_frames)
            values.append(torch.from_numpy(track.dense()))
            masks.append(torch.from_numpy(track.mask))
        return FrameFeatures(torch.stack(values), torch.stack(masks))

    def _compare_decoded(
        self, batch: SegmentBatch, output: CodecOutput, accelerator: Accelerator | None
    ) -> Tensor:
        """How far the speech model's features of the decoded audio are from the original's."""
        assert self._decoded is not None
        num_frames = count_frames(batch.waveform.shape[-1], self._frames.hop_length)
        with torch.no_grad():
            values, mask = self._decoded.frame_features(
                batch.waveform[:, 0], batch.num_samples, num_frames
            )
        decoded, _ = self._decoded.frame_features(
            output.waveform[:, 0].float(), batch.num_samples, num_frames
        )
        count = _shared(loss_count("frame_cosine", mask), accelerator)
        return frame_cosine_loss(decoded, values, mask, count)


def mean_of_books(outputs: Sequence[Tensor], books: Sequence[int]) -> Tensor:
    """Mean of the outputs [B, D, L] of books that are numbered from 1.

    Straight through, each output hands its whole gradient on to the latents, and so does their
    mean. But the mean of n books is about n times smaller than their sum, and the gradient of a
    cosine grows as its argument shrinks: a teacher of n books would pull n times harder. So an n-th
    of the gradient is handed on.
    """
    mean = torch.stack([outputs[book - 1] for book in books]).mean(dim=0)
    return mean.detach() + (mean - mean.detach()) / len(books)


def character_loss(
    config: CharacterGuide,
    logits: Tensor,
    words: Sequence[Sequence[Word]],
    frames: CodecFrames,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """CTC loss per character of the words in each segment, averaged over segments with words.

    From logits [B, L, V] only the frames from a segment's first whole word to its last are used:
    words that the crop cuts have no target.
    """
    frame_samples = frames.hop_length * TIME_RATE / frames.sample_rate  # in the words' unit of time
    inputs, targets = [], []
    for item, spoken in zip(logits, words, strict=True):
        text = " ".join(word.text.lower() for word in spoken)
        target = [config.alphabet.index(c) + 1 for c in text if c in config.alphabet]
        if not target:
            continue
        first = int(spoken[0].start_samples // frame_samples)
        stop = -int(-spoken[-1].end_samples // frame_samples)  # rounded up
        inputs.append(item[first:stop].float().log_softmax(dim=-1))
        targets.append(torch.tensor(target, device=logits.device))
    count = _shared(logits.new_tensor(float(len(inputs)), dtype=torch.float32), accelerator)
    if not inputs:  # every weight takes part in every step, as in `Guidance.terms`
        return 0.0 * logits.float().sum()
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.ctc_loss(
            nn.utils.rnn.pad_sequence(inputs),  # [L', B', V]
            torch.cat(targets),
            torch.tensor([len(each) for each in inputs]),
            torch.tensor([len(each) for each in targets]),
            blank=_BLANK,
            reduction="none",
            zero_infinity=True,  # more characters than frames have no alignment
        )
    lengths = torch.tensor([len(each) for each in targets], device=logits.device)
    return (losses / lengths).sum() / count


def _shared(count: Tensor, accelerator: Accelerator | None) -> Tensor:
    """The mean over processes of a count.

    Gradients are averaged over processes: of n that each divide by a mean count c, the average is
    the sum of all over n c, as one process has it.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return count
    return cast(Tensor, accelerator.reduce(count, reduction="mean"))


def _open_store(folder: Path, config: TeacherConfig, frames: CodecFrames) -> FeatureStore:
    """A store of that teacher; its models are compared where they are on this machine."""
    models: dict[str, str] | None
    try:
        models = teacher_models(config, may_download=False)
    except (FileNotFoundError, ModuleNotFoundError) as missing:
        logger.info("%s: its models are not compared: %s", folder, missing)
        models = None
    settings = teacher_settings(config, frames)
    return FeatureStore(folder, settings=settings, models=models)
