"""Trains a small HuBERT on a manifest: a speech teacher where no larger one is at hand.

    python examples/pretrain_hubert.py speech/train.jsonl --valid speech/valid.jsonl \
        -o features/hubert --minutes 10

HuBERT's first iteration: MFCCs are clustered by k-means, and the model learns to tell the clusters
of masked frames. The folder it writes is a Hugging Face model for `distillation.speech.teacher`. A
model of this size, trained for minutes on a processor, is far weaker than the published ones: it
shows the method.

Reference: Hsu et al. 2021, arXiv:2106.07447, sec. II, through `transformers.HubertModel`. Changed:
a linear head instead of cosines; a loss on unmasked frames too (alpha = 0.5), for a faster
start; MFCCs of 50 windows a second, not of every other one of 100.
"""
# ruff: noqa: T201, TID251

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from dmcodec.corpus.manifest import read_manifest
from dmcodec.corpus.sources import read_utterance
from dmcodec.spectral import Mel, mel_filterbank

SAMPLE_RATE = 16_000
WINDOW, HOP = 400, 320  # samples: frame l of the model sees [320 l, 320 l + 400), so do its MFCCs
NUM_MELS, NUM_COEFFICIENTS = 40, 13
MASK_START, MASK_FRAMES = 0.08, 10  # each frame begins a masked span with this chance
MASKED_WEIGHT = 0.5  # of the loss on masked frames; the rest is on the others
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Clip:
    """A waveform `[T]` and the features `[L, 39]` or clusters `[L]` of its frames."""

    waveform: Tensor
    frames: Tensor


def make_model() -> HubertModel:
    """A HuBERT of 1.7 million parameters with 50 frames a second, randomly filled."""
    config = HubertConfig(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=(32, 48, 64, 96, 128, 128, 128),
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )
    return HubertModel(config)


def mfcc(waveform: Tensor) -> Tensor:
    """13 cepstral coefficients of `[T]` with first and second differences, `[L, 39]`.

    No frame is padded: L = floor((T - 400) / 320) + 1. The mean over the clip is taken away, and
    with it gain and channel.
    """
    windows = waveform.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)  # [L, 400]
    power = torch.fft.rfft(windows, 512).abs().square()  # [L, F]
    filters = mel_filterbank(Mel(sample_rate=SAMPLE_RATE, n_fft=512, num_mels=NUM_MELS))
    log_mel = (power @ filters.T).clamp(min=1e-8).log()  # [L, M]
    band = (torch.arange(NUM_MELS) + 0.5) * torch.pi / NUM_MELS
    cosines = torch.cos(torch.arange(NUM_COEFFICIENTS)[:, None] * band)  # [13, M]
    first = log_mel @ cosines.T
    second = differences(first)
    features = torch.cat([first, second, differences(second)], dim=1)
    return features - features.mean(dim=0)


def differences(values: Tensor) -> Tensor:
    """Half of the next frame minus the one before, `[L, C]`; the ends are repeated."""
    padded = torch.cat([values[:1], values, values[-1:]])
    return (padded[2:] - padded[:-2]) / 2


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The index `[N]` of the centre `[K, C]` next to each point `[N, C]`."""
    return (centres.square().sum(dim=1) - 2 * points @ centres.T).argmin(dim=1)


def fit_centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """K-means: 30 rounds from random points `[N, C]`; an empty cluster keeps its centre."""
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(30):
        labels = nearest(points, centres)
        sizes = torch.bincount(labels, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)
    return centres


def read_clips(manifest: Path, num_samples: int) -> list[Clip]:
    """Waveforms with their MFCCs, of clips as long as a segment."""
    waveforms = [
        torch.from_numpy(read_utterance(utterance, sample_rate=SAMPLE_RATE))
        for utterance in read_manifest(manifest)
    ]
    return [Clip(each, mfcc(each)) for each in waveforms if len(each) >= num_samples]


def draw_batch(
    clips: list[Clip], size: int, num_samples: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Random segments `[B, T]`, each of zero mean and unit variance, and clusters `[B, L]`."""
    waveforms, labels = [], []
    for index in rng.integers(len(clips), size=size):
        clip = clips[index]
        start = int(rng.integers((len(clip.waveform) - num_samples) // HOP + 1))  # a frame
        segment = clip.waveform[start * HOP : start * HOP + num_samples]
        waveforms.append((segment - segment.mean()) / (segment.var(correction=0) + 1e-7).sqrt())
        labels.append(clip.frames[start : start + (num_samples - WINDOW) // HOP + 1])
    return torch.stack(waveforms), torch.stack(labels)


def draw_mask(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """`[B, L]`, true on masked frames: spans that may overlap."""
    starts = torch.from_numpy(rng.random(shape) < MASK_START)
    starts[:, rng.integers(shape[1])] = True  # at least one
    reached = F.max_pool1d(F.pad(starts.float(), (MASK_FRAMES - 1, 0)), MASK_FRAMES, stride=1)
    return reached.bool()


def predict(
    model: HubertModel, head: nn.Linear, waveforms: Tensor, labels: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Cross entropy over masked and over other frames; the share of masked clusters told."""
    hidden = model(waveforms, mask_time_indices=mask).last_hidden_state  # [B, L, H]
    logits = head(hidden)  # [B, L, K]
    told = (logits.argmax(dim=2) == labels)[mask].float().mean()
    masked = F.cross_entropy(logits[mask], labels[mask])
    return masked, F.cross_entropy(logits[~mask], labels[~mask]), float(told)


def describe(results: list[tuple[float, float, float]]) -> str:
    """Means of what `predict` gives."""
    masked, others, told = np.mean(results, axis=0)
    return f"loss {masked:.3f} on masked frames, {others:.3f} on others; told {told:.1%} of masked"


def train(
    model: HubertModel,
    head: nn.Linear,
    clips: list[Clip],
    arguments: argparse.Namespace,
    rng: np.random.Generator,
) -> int:
    """Trains until the time or the steps are over; gives the number of steps.

    The time is the processor's: a busy machine makes it longer, not shorter of steps.
    """
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    num_samples = int(arguments.seconds * SAMPLE_RATE)
    start = time.process_time()
    history: list[tuple[float, float, float]] = []
    while len(history) < arguments.steps:
        done = (time.process_time() - start) / (60 * arguments.minutes)
        done = max(done, len(history) / arguments.steps)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (len(history) + 1) / 100) * (1 - done)
        waveforms, labels = draw_batch(clips, arguments.batch_size, num_samples, rng)
        mask = draw_mask(labels.shape, rng)
        masked, others, told = predict(model, head, waveforms, labels, mask)
        (MASKED_WEIGHT * masked + (1 - MASKED_WEIGHT) * others).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append((float(masked.detach()), float(others.detach()), told))
        if len(history) % 50 == 0:
            print(f"step {len(history)}: {describe(history[-50:])}", flush=True)
    return len(history)


@torch.inference_mode()
def measure(
    model: HubertModel,
    head: nn.Linear,
    clips: list[Clip],
    num_samples: int,
    rng: np.random.Generator,
) -> str:
    """Losses on 320 segments, in words."""
    results = []
    for _ in range(20):
        waveforms, labels = draw_batch(clips, 16, num_samples, rng)
        masked, others, told = predict(model, head, waveforms, labels, draw_mask(labels.shape, rng))
        results.append((float(masked), float(others), told))
    return describe(results)


def main() -> None:
    """Trains for the time given and saves the model with its preprocessor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--valid", type=Path, help="manifest to measure on at the end")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time")
    parser.add_argument("--steps", type=int, default=100_000, help="stop here at the latest")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a segment")
    parser.add_argument("--clusters", type=int, default=100)
    arguments = parser.parse_args()

    generator = torch.manual_seed(0)  # the model's weights too
    rng = np.random.default_rng(0)
    num_samples = int(arguments.seconds * SAMPLE_RATE)
    clips = read_clips(arguments.manifest, num_samples)
    if not clips:
        parser.error(f"no clip of {arguments.manifest} is as long as {arguments.seconds} s")
    points = torch.cat([clip.frames for clip in clips])
    scale = points.std(dim=0)
    sample = points[torch.randperm(len(points), generator=generator)[:50_000]]
    centres = fit_centres(sample / scale, arguments.clusters, generator)

    def labelled(clips: list[Clip]) -> list[Clip]:
        return [Clip(clip.waveform, nearest(clip.frames / scale, centres)) for clip in clips]

    clips = labelled(clips)
    shares = torch.bincount(torch.cat([clip.frames for clip in clips])) / len(points)
    entropy = float(torch.special.entr(shares).sum())
    print(
        f"{len(clips)} clips, {len(points)} frames; a guess that knows how often each cluster is: "
        f"loss {entropy:.3f}, told {float(shares.max()):.1%}",
        flush=True,
    )
    model = make_model().train()
    head = nn.Linear(model.config.hidden_size, len(centres))
    num_done = train(model, head, clips, arguments, rng)
    model.eval().save_pretrained(arguments.output)
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=False
    )
    extractor.save_pretrained(arguments.output)
    print(f"{num_done} steps; the model is in {arguments.output}")
    if arguments.valid:
        valid = labelled(read_clips(arguments.valid, num_samples))
        print(f"valid: {measure(model, head, valid, num_samples, rng)}")


if __name__ == "__main__":
    main()
