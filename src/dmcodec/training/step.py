"""One training step: the codec's loss as the paper writes it, and the discriminators' turn.

    L = w_t L_t + w_f L_f + w_s L_s + w_e L_e + w_w L_w + [ w_g L_g + w_m L_m ] + w_d L_LS
        time      mel       STFT      envelope  commitment                        teachers
                                                            adver-    feature     (guidance.py)
                                                            sarial    matching

The bracket counts from the adversary's start step on, L_LS where an experiment has teachers; STFT
and envelope are not in the paper. The forms of the terms are in `dmcodec.losses`; their weights are
those of `LossConfig`.

Reference: Ahasan et al. 2024, arXiv:2410.15017, sec. 3 and appendix.
"""

from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from dmcodec.codec.model import Codec
from dmcodec.codec.network import CodecOutput
from dmcodec.data.loader import SegmentBatch
from dmcodec.discriminators.ensemble import DiscriminatorOutput
from dmcodec.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from dmcodec.losses.reconstruction import envelope_loss, mel_loss, stft_loss, waveform_l1_loss
from dmcodec.training.experiment import Experiment, LossConfig, OptimizerConfig
from dmcodec.training.guidance import Guidance
from dmcodec.training.state import TrainingState, unwrapped

_SMALLEST_SCALE = 2.0**-16


class TrainingDiverged(RuntimeError):
    """A loss or gradient is no longer finite; the message names it."""


def train_step(
    state: TrainingState,
    experiment: Experiment,
    batch: SegmentBatch,
    accelerator: Accelerator,
    guidance: Guidance | None = None,
) -> dict[str, Tensor]:
    """Moves discriminators and codec by one step; gives every loss as a detached scalar.

    Losses are those of this process's part of the batch; gradients are means over all processes.
    """
    adversary = experiment.adversary
    is_adversarial = adversary is not None and state.step >= adversary.start_step
    _set_learning_rates(state, experiment)

    with accelerator.autocast():
        output: CodecOutput = state.codec(
            batch.waveform,
            batch.num_samples,
            codes=batch.codes,
            num_books=_books_heard(experiment, state.step, accelerator),
            update=not experiment.is_encoder_frozen,
        )
    terms: dict[str, Tensor] = {}

    judged = None
    if is_adversarial:
        assert adversary is not None
        window = _window_heard(experiment, state.step, batch.waveform.shape[-1])
        original, decoded = batch.waveform[..., window], output.waveform[..., window]
        # The last of every n steps, which is the one that gets logged.
        if (state.step - adversary.start_step + 1) % adversary.update_every == 0:
            terms["discriminator"] = _discriminator_step(
                state, experiment, original, decoded, accelerator
            )
        judged = _judge(state, original, decoded, accelerator)

    generator_terms = codec_terms(
        experiment.losses, batch.waveform, output, judged, experiment.codec.sample_rate
    )
    loss = total_loss(experiment.losses, generator_terms)
    if guidance is not None:
        codec = cast(Codec, unwrapped(state.codec))
        with accelerator.autocast():
            guided = guidance.terms(state.step, codec, state.heads, batch, output, accelerator)
        loss = loss + guided.loss
        generator_terms |= guided.terms
    learning = state.codec if state.heads is None else nn.ModuleList([state.codec, state.heads])
    norm = _backward_step(
        loss, learning, state.optimizer, experiment.optimizer, accelerator, generator_terms
    )
    state.average.update_parameters(unwrapped(state.codec))
    state.step += 1
    terms |= generator_terms | {"total": loss, "gradient_norm": norm}
    return {name: term.detach() for name, term in terms.items()}


def _books_heard(experiment: Experiment, step: int, accelerator: Accelerator) -> Tensor | None:
    """From how many books each of this process's segments is decoded, [B]; None: all from all.

    Drawn for the whole batch, so that it does not matter how many processes share it.

    Reference: Zeghidour et al. 2021, arXiv:2107.03312, sec. III-C (quantizer dropout).
    """
    if not experiment.few_books_share:
        return None
    all_books, size = experiment.codec.quantizer.num_codebooks, experiment.batch_size
    rng = np.random.default_rng([experiment.seed, step])
    is_few = rng.random(size) < experiment.few_books_share
    num_books = np.where(is_few, rng.integers(1, all_books + 1, size), all_books)
    local = size // accelerator.num_processes
    first = local * accelerator.process_index
    return torch.from_numpy(num_books[first : first + local])


def _window_heard(experiment: Experiment, step: int, num_samples: int) -> slice:
    """Which samples of the segments the discriminators hear, the same in all processes."""
    assert experiment.adversary is not None
    length = experiment.adversary.window_samples
    if length is None or length >= num_samples:
        return slice(None)
    first = int(np.random.default_rng([experiment.seed, step]).integers(num_samples - length + 1))
    return slice(first, first + length)


def codec_terms(
    config: LossConfig,
    reference: Tensor,
    output: CodecOutput,
    judged: tuple[DiscriminatorOutput, DiscriminatorOutput] | None,
    sample_rate: int,
) -> dict[str, Tensor]:
    """The unweighted terms of L that have a weight.

    Args:
        config: which terms, and their forms.
        reference: original waveforms [B, 1, T].
        output: what the codec made of them.
        judged: the discriminators' views of original and decoded; None before they start.
        sample_rate: Hz.
    """
    decoded = output.waveform
    terms = {}
    if config.time_weight:
        terms["time"] = waveform_l1_loss(reference, decoded)
    if config.mel_weight:
        terms["mel"] = mel_loss(reference, decoded, config.mel_scales, sample_rate)
    if config.stft_weight:
        terms["stft"] = stft_loss(reference, decoded, config.stft_scales)
    if config.envelope_weight:
        terms["envelope"] = envelope_loss(reference, decoded, sample_rate)
    if config.commitment_weight and output.quantizer is not None:
        terms["commitment"] = output.quantizer.commitment_loss
    if judged is not None:
        real, fake = judged
        if config.adversarial_weight:
            terms["adversarial"] = generator_loss(fake.logits, config.adversarial_kind)
        if config.feature_matching_weight:
            terms["feature_matching"] = feature_matching_loss(
                real.feature_maps, fake.feature_maps, config.is_feature_matching_normalized
            )
    return terms


def total_loss(config: LossConfig, terms: dict[str, Tensor]) -> Tensor:
    """L: each term times its weight, added."""
    weights = {
        "time": config.time_weight,
        "mel": config.mel_weight,
        "stft": config.stft_weight,
        "envelope": config.envelope_weight,
        "commitment": config.commitment_weight,
        "adversarial": config.adversarial_weight,
        "feature_matching": config.feature_matching_weight,
    }
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _discriminator_step(
    state: TrainingState,
    experiment: Experiment,
    original: Tensor,
    decoded: Tensor,
    accelerator: Accelerator,
) -> Tensor:
    """The discriminators learn to tell original from decoded."""
    assert experiment.adversary is not None
    assert state.discriminators is not None
    assert state.discriminator_optimizer is not None
    size = len(original)
    both = torch.cat([original, decoded.detach().to(original.dtype)])
    with accelerator.autocast():
        judged: DiscriminatorOutput = state.discriminators(both)
    loss = discriminator_loss(
        [logits[:size] for logits in judged.logits],
        [logits[size:] for logits in judged.logits],
        experiment.losses.adversarial_kind,
    )
    _backward_step(
        loss,
        state.discriminators,
        state.discriminator_optimizer,
        experiment.adversary.optimizer,
        accelerator,
        {"discriminator": loss},
    )
    return loss


def _judge(
    state: TrainingState, reference: Tensor, decoded: Tensor, accelerator: Accelerator
) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
    """The discriminators' views of original (no gradient) and decoded (gradient to the codec)."""
    assert state.discriminators is not None
    # Not through the distributed wrapper: the codec's turn needs no gradient of these weights.
    discriminators = unwrapped(state.discriminators)
    discriminators.requires_grad_(False)
    with accelerator.autocast():
        with torch.no_grad():
            real = discriminators(reference)
        fake = discriminators(decoded)
    discriminators.requires_grad_(True)
    return real, fake


def _backward_step(
    loss: Tensor,
    module: nn.Module,
    optimizer: Optimizer,
    config: OptimizerConfig,
    accelerator: Accelerator,
    terms: dict[str, Tensor],
) -> Tensor:
    """Gradients of `loss`, clipped, then one step of the optimizer; gives their norm.

    No gradient is left behind: with fp16, clipping unscales those of every optimizer at hand, and
    an overflow would count again in the other network's turn.
    """
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(module.parameters(), config.max_gradient_norm)
    assert norm is not None
    _check_finite(terms, norm, accelerator.scaler)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _check_finite(
    terms: dict[str, Tensor], norm: Tensor, scaler: torch.amp.GradScaler | None
) -> None:
    """Raises TrainingDiverged naming every loss that is not finite, or their gradient.

    With fp16 a gradient may overflow: the scaler then skips the step and halves its scale, until
    the scale is so small that the gradient itself must be at fault.
    """
    checked = dict(terms)
    if scaler is None or scaler.get_scale() < _SMALLEST_SCALE:
        checked["gradient norm"] = norm
    is_finite = torch.stack([term.detach().float() for term in checked.values()]).isfinite()
    if not bool(is_finite.all()):
        bad = [name for name, good in zip(checked, is_finite.tolist(), strict=True) if not good]
        raise TrainingDiverged(
            f"not finite: {', '.join(bad)}. The last checkpoint is intact; resume with a lower "
            "learning_rate or max_gradient_norm, or look at the data of this step"
        )


def _set_learning_rates(state: TrainingState, experiment: Experiment) -> None:
    rate = experiment.optimizer.learning_rate_at(state.step, 0, experiment.num_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    if experiment.adversary is not None and state.discriminator_optimizer is not None:
        start = experiment.adversary.start_step
        config = experiment.adversary.optimizer
        rate = config.learning_rate_at(max(state.step, start), start, experiment.num_steps)
        for group in state.discriminator_optimizer.param_groups:
            group["lr"] = rate
