"""One experiment, complete: every key that a training run depends on.

An experiment is one TOML file read by `dmcodec.config.load_config`; the resolved record is saved
with every checkpoint. What the values do is in step.py and loop.py.
"""

from math import cos, pi
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dmcodec.codec.network import CodecConfig
from dmcodec.config import Record
from dmcodec.data.dataset import DataConfig
from dmcodec.discriminators.ensemble import DiscriminatorConfig
from dmcodec.losses.adversarial import AdversarialKind
from dmcodec.losses.reconstruction import RELEASE_MEL_SCALES, STFT_SCALES, MelScale, StftScale
from dmcodec.training.distillation import DistillationConfig


class LossConfig(Record):
    """Weights and forms of the loss terms; the defaults are those of the released code.

    A weight of 0 leaves the term out, and its computation with it.
    """

    time_weight: float = Field(500.0, ge=0)
    mel_weight: float = Field(1.0, ge=0, description="times the weights within mel_scales")
    mel_scales: tuple[MelScale, ...] = RELEASE_MEL_SCALES
    stft_weight: float = Field(0.0, ge=0, description="not in the paper; helps small codecs")
    stft_scales: tuple[StftScale, ...] = STFT_SCALES
    envelope_weight: float = Field(0.0, ge=0, description="1 - STOI, nearly; not in the paper")
    commitment_weight: float = Field(10.0, ge=0)
    adversarial_kind: AdversarialKind = "least_squares"
    adversarial_weight: float = Field(1.0, ge=0)
    feature_matching_weight: float = Field(2.0, ge=0)
    is_feature_matching_normalized: bool = False

    @model_validator(mode="after")
    def _check_any_reconstruction(self) -> Self:
        if self.time_weight + self.mel_weight + self.stft_weight == 0:
            raise ValueError("time_weight, mel_weight and stft_weight are all 0: nothing to learn")
        return self


class OptimizerConfig(Record):
    """AdamW and the course of its learning rate."""

    learning_rate: float = Field(1e-4, gt=0, description="after warm-up")
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1000.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine", "exponential", "wsd"] = "cosine"
    final_share: float = Field(
        0.0, ge=0, le=1, description="of learning_rate, at the last step (all but constant)"
    )
    decay_share: float = Field(
        0.4, gt=0, le=1, description="of the course, in which a wsd schedule falls in a line"
    )

    @model_validator(mode="after")
    def _check_exponential(self) -> Self:
        if self.schedule == "exponential" and self.final_share == 0:
            raise ValueError("an exponential schedule needs final_share above 0")
        return self

    def learning_rate_at(self, step: int, first_step: int, num_steps: int) -> float:
        """Learning rate of step `step` of a course from `first_step` to `num_steps`.

        Steps count from 0; `first_step` is 0 for the codec, the adversary's start for the
        discriminators. Linear from 0 (excluded) over the warm-up, then the schedule down to
        learning_rate * final_share at step num_steps - 1, which holds from there on.
        """
        done = step - first_step
        if done < self.warmup_steps:
            return self.learning_rate * (done + 1) / self.warmup_steps
        span = max(num_steps - 1 - first_step - self.warmup_steps, 1)
        progress = min((done - self.warmup_steps) / span, 1.0)
        if self.schedule == "cosine":
            share = self.final_share + (1 - self.final_share) * 0.5 * (1 + cos(pi * progress))
        elif self.schedule == "exponential":
            share = self.final_share**progress
        elif self.schedule == "wsd":  # warm-up, stable, decay: a run may go on from its stable part
            fall = max(0.0, (progress - 1) / self.decay_share + 1)
            share = 1 - (1 - self.final_share) * fall
        else:
            share = 1.0
        return self.learning_rate * share


class AdversaryConfig(Record):
    """The discriminators and when they play."""

    networks: DiscriminatorConfig = DiscriminatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    start_step: int = Field(0, ge=0, description="first step with adversarial losses")
    window_samples: int | None = Field(
        None,
        ge=1,
        description="discriminators hear so many samples of each segment, from a place that every "
        "step draws anew; None: all",
    )
    update_every: int = Field(1, ge=1, description="discriminators learn at every n-th step")


class ValidationConfig(Record):
    """What is measured on held-out speakers, how often, and which figure chooses the best."""

    every_steps: int = Field(1000, ge=1)
    max_clips: int = Field(50, ge=1, description="the first so many of the manifest")
    max_samples: int | None = Field(None, ge=1, description="cut clips to this length; None: whole")
    num_logged_clips: int = Field(3, ge=0, description="audio and spectrograms in TensorBoard")
    select_by: Literal["mel_distance", "stoi", "pesq_wb"] = "mel_distance"


class Experiment(Record):
    """A training run from its data to its result."""

    seed: int = Field(0, ge=0)
    num_steps: int = Field(
        ..., ge=1, description="a resumed run may extend it; its schedules then end at the new end"
    )
    batch_size: int = Field(
        ..., ge=1, le=1 << 14, description="segments a step, over all processes"
    )
    num_workers: int = Field(0, ge=0, le=1024, description="processes that read audio ahead")
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    average_decay: float = Field(0.999, ge=0, lt=1, description="EMA of the generator's weights")
    init_from: Path | None = Field(
        None, description="checkpoint, fine-tuning kit or codec folder that gives the first weights"
    )
    few_books_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of the segments, those decoded from a random number of books, 1 to K: for "
        "codecs that shall also work with fewer books",
    )
    is_encoder_frozen: bool = Field(
        False, description="encoder and books stay those of init_from; only the decoder learns"
    )
    checkpoint_every_steps: int = Field(1000, ge=1)
    checkpoint_max_file_mb: int | None = Field(
        None, ge=1, description="tensors in files of at most so many million bytes; None: one each"
    )
    keep_last: int = Field(2, ge=1, description="checkpoints kept beside the best")
    log_every_steps: int = Field(10, ge=1)
    codec: CodecConfig = CodecConfig()
    data: DataConfig
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    adversary: AdversaryConfig | None = Field(
        None, description="None (no such group in the file): no adversarial losses"
    )
    validation: ValidationConfig = ValidationConfig()
    distillation: DistillationConfig | None = Field(
        None, description="None (no such group in the file): no teachers"
    )

    @property
    def checkpoint_max_file_bytes(self) -> int | None:
        """The most bytes of a file of tensors; None: any number."""
        mb = self.checkpoint_max_file_mb
        return None if mb is None else mb * 1_000_000

    @model_validator(mode="after")
    def _check_data_fits_codec(self) -> Self:
        codec = (self.codec.sample_rate, self.codec.hop_length)
        data = (self.data.sample_rate, self.data.hop_length)
        if codec != data:
            raise ValueError(
                f"data.sample_rate and data.hop_length are {data}, those of the codec {codec}"
            )
        if self.is_encoder_frozen and self.init_from is None:
            raise ValueError("is_encoder_frozen needs init_from: whose encoder and books?")
        if self.is_encoder_frozen and self.distillation is not None:
            guides = self.distillation
            if guides.teachers or guides.characters is not None:
                raise ValueError(
                    "books that do not learn cannot be guided: with is_encoder_frozen, "
                    "[distillation] takes decoded only"
                )
        if self.data.codes is not None and not self.is_encoder_frozen:
            raise ValueError("data.codes needs is_encoder_frozen: an encoder that learns must run")
        if self.distillation is None and self.codec.feature_dim is not None:
            raise ValueError(
                f"codec.feature_dim is {self.codec.feature_dim}, but no [distillation] uses the map"
            )
        if self.distillation is not None:
            self.distillation.check_codec(
                self.codec.quantizer.num_codebooks, self.codec.feature_dim, self.codec.sample_rate
            )
        return self
