"""Trains a small wav2vec 2.0 on a manifest: a speech teacher where no larger one is at hand.

    python examples/pretrain_wav2vec2.py speech/train.jsonl -o features/wav2vec2 --minutes 5

The folder it writes is a Hugging Face model that `distillation.speech.teacher.model` takes. A model
of this size, trained for minutes on a processor, is far weaker than HuBERT: it shows the method.

Reference: Baevski et al. 2020, arXiv:2006.11477, through `transformers.Wav2Vec2ForPreTraining`.
"""
# ruff: noqa: NPY002, T201, TID251

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    _compute_mask_indices,
    _sample_negative_indices,
)

from dmcodec.audio import read_audio
from dmcodec.manifest import read_manifest

SAMPLE_RATE = 16_000


def make_model() -> Wav2Vec2ForPreTraining:
    """A wav2vec 2.0 of 1.3 million parameters with 49 frames a second, randomly filled."""
    config = Wav2Vec2Config(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=(64, 64, 96, 128, 128, 128, 128),
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        num_codevectors_per_group=64,
        codevector_dim=64,
        proj_codevector_dim=64,
        num_negatives=50,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.5,
    )
    return Wav2Vec2ForPreTraining(config)


def draw_batch(
    clips: list[np.ndarray], size: int, num_samples: int, rng: np.random.Generator
) -> torch.Tensor:
    """`[size, num_samples]` random segments, each of zero mean and unit variance."""
    rows = []
    for index in rng.integers(len(clips), size=size):
        start = rng.integers(len(clips[index]) - num_samples + 1)
        segment = clips[index][start : start + num_samples]
        rows.append((segment - segment.mean()) / np.sqrt(segment.var() + 1e-7))
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def train_step(
    model: Wav2Vec2ForPreTraining, waveforms: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """The contrastive loss per masked frame, and how often the true frame is found among 51."""
    config = model.config
    frames = int(model._get_feat_extract_output_lengths(waveforms.shape[1]))
    shape = (len(waveforms), frames)
    # transformers draws with numpy's global generator; here it follows ours.
    np.random.seed(int(rng.integers(2**31)))
    mask = _compute_mask_indices(shape, config.mask_time_prob, config.mask_time_length)
    negatives = _sample_negative_indices(shape, config.num_negatives, mask_time_indices=mask)
    output = model(
        waveforms,
        mask_time_indices=torch.from_numpy(mask),
        sampled_negative_indices=torch.from_numpy(negatives),
    )
    hidden, target = output.projected_states.detach(), output.projected_quantized_states.detach()
    own = torch.cosine_similarity(hidden, target, dim=-1)  # [B, L]
    flat = target.reshape(-1, target.shape[-1])
    others = flat[torch.from_numpy(negatives).reshape(-1)].reshape(*negatives.shape, -1)
    best = torch.cosine_similarity(hidden[:, :, None], others, dim=-1).amax(dim=-1)
    found = (own > best)[torch.from_numpy(mask)].float().mean()
    return output.loss / int(mask.sum()), float(found)


def main() -> None:
    """Trains for the time given and saves the model with its preprocessor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=100_000, help="stop here at the latest")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.5, help="of a segment")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    num_samples = int(arguments.seconds * SAMPLE_RATE)
    paths = [utterance.audio for utterance in read_manifest(arguments.manifest)]
    clips = [read_audio(path, sample_rate=SAMPLE_RATE) for path in paths]
    clips = [clip for clip in clips if len(clip) >= num_samples]
    if not clips:
        parser.error(f"no clip of {arguments.manifest} is as long as {arguments.seconds} s")
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    start = time.monotonic()
    num_done = 0
    for step in range(arguments.steps):
        done = max((time.monotonic() - start) / (60 * arguments.minutes), step / arguments.steps)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1.0, (step + 1) / 100) * (1 - done)
        model.set_gumbel_temperature(max(0.5, 2 * 0.999**step))
        waveforms = draw_batch(clips, arguments.batch_size, num_samples, rng)
        loss, found = train_step(model, waveforms, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        num_done += 1
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, found {found:.1%}", flush=True)
    model.save_pretrained(arguments.output)
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=False
    )
    extractor.save_pretrained(arguments.output)
    print(f"{num_done} steps; the model is in {arguments.output}")


if __name__ == "__main__":
    main()
