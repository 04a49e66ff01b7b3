"""A small recognizer of phones that says how much of what is said a sequence of vectors holds.

Trained by one fixed recipe on the code vectors (or any features) of some recordings, measured on
others: the better it does, the more content the vectors hold. Nothing is read or decoded here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcodec.metrics.measure import Group, ModelChoice, ScoringConfig, rate
from dmcodec.metrics.words import ErrorCounts, count_errors

RECIPE = "phone CTC, 6 convolutions of 96 channels, 600 steps of 56 s, revision 2"
"""Names the recipe; results of two recipes cannot be compared."""

_CHANNELS = 96
_KERNEL_SIZE = 5
_DILATIONS = (1, 2, 4, 1, 2, 4)
_DROPOUT = 0.2
_NOISE = 0.25  # of vectors that have unit deviation
_NUM_MASKS = 2  # stretches of at most _MASK_FRAMES frames that are hidden in each recording
_MASK_FRAMES = 10
_NUM_STEPS = 600
_BATCH_FRAMES = 2_800
_LEARNING_RATE = 3e-3
_WARM_UP = 0.15
_WEIGHT_DECAY = 0.01
_MAX_GRADIENT = 5.0
_MIN_FRAME_RATE = 40.0
_BLANK = 0
_MIN_DEVIATION = 1e-4


@dataclass(frozen=True, eq=False)
class SpokenVectors:
    """One recording as the probe sees it.

    vectors: [L, D]. phones: what is said, in order, silences left out.
    """

    vectors: Tensor
    phones: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or not len(self.vectors):
            raise ValueError(f"vectors must be [L, D], got {tuple(self.vectors.shape)}")
        if not self.phones:
            raise ValueError("a recording without phones says nothing about content")


class PhoneProbe(nn.Module):
    """Vectors to phones: a convolutional network whose outputs are decoded greedily."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, inventory: Sequence[str], mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.inventory = tuple(inventory)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.enter = nn.Linear(len(mean), _CHANNELS)
        self.blocks = nn.ModuleList(_Block(dilation) for dilation in _DILATIONS)
        self.leave = nn.Linear(_CHANNELS, 1 + len(self.inventory))

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [B, L, 1 + phones] of vectors [B, L, D], the blank first.

        What lies at and beyond `lengths` [B] changes nothing before it.
        """
        mask = (torch.arange(vectors.shape[1]) < lengths[:, None])[..., None]  # [B, L, 1]
        normed = (vectors - self.mean) / self.deviation
        if self.training:
            normed = _disturb(normed, lengths)
        hidden = F.dropout(self.enter(normed), _DROPOUT, self.training) * mask
        for block in self.blocks:
            hidden = hidden + block(hidden, mask)
        return F.log_softmax(self.leave(hidden), dim=-1)

    @torch.inference_mode()
    def recognize(self, vectors: Tensor) -> tuple[str, ...]:
        """The phones heard in vectors [L, D]."""
        best = self(vectors[None], torch.tensor([len(vectors)]))[0].argmax(dim=-1)
        kept = torch.unique_consecutive(best)
        return tuple(self.inventory[number - 1] for number in kept[kept != _BLANK].tolist())


def _disturb(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Vectors [B, L, D] with noise and hidden stretches, so that none is known by heart."""
    disturbed = vectors + _NOISE * torch.randn_like(vectors)
    frames = torch.arange(vectors.shape[1])
    for _ in range(_NUM_MASKS):
        first = torch.rand(len(vectors), 1) * lengths[:, None]
        stop = first + torch.rand(len(vectors), 1) * _MASK_FRAMES
        disturbed = disturbed * ((frames < first) | (frames >= stop))[..., None]
    return disturbed


class _Block(nn.Module):
    """What one block adds to hidden states [B, L, C]."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_CHANNELS)
        padding = dilation * (_KERNEL_SIZE // 2)
        self.convolve = nn.Conv1d(
            _CHANNELS, _CHANNELS, _KERNEL_SIZE, padding=padding, dilation=dilation
        )
        self.project = nn.Linear(_CHANNELS, _CHANNELS)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm(hidden) * mask  # as if nothing followed: convolutions pad with zeros
        convolved = self.convolve(normed.transpose(1, 2)).transpose(1, 2)  # [B, L, C]
        return F.dropout(self.project(F.gelu(convolved)), _DROPOUT, self.training)


def train_probe(
    recordings: Sequence[SpokenVectors],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PhoneProbe:
    """A probe trained on the CPU by the recipe, whatever the number of recordings.

    The same recordings, seed and number of threads give the same probe; the global random
    generator is left alone.

    Args:
        recordings: what it learns from; their vectors have one size D.
        seed: of weights, batches and dropout.
        progress: called after each step with the steps done and all.
    """
    if len({recording.vectors.shape[1] for recording in recordings}) != 1:
        raise ValueError("the probe needs recordings, all with vectors of one size")
    vectors = [recording.vectors.float() for recording in recordings]
    inventory = sorted({phone for recording in recordings for phone in recording.phones})
    numbers = {phone: number for number, phone in enumerate(inventory, start=_BLANK + 1)}
    targets = [torch.tensor([numbers[phone] for phone in each.phones]) for each in recordings]
    frames = torch.cat(vectors)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        probe = PhoneProbe(inventory, frames.mean(0), frames.std(0).clamp(min=_MIN_DEVIATION))
        optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=_WEIGHT_DECAY)
        batches = _batches([len(each) for each in vectors], np.random.default_rng(seed))
        for step in range(_NUM_STEPS):
            chosen = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * _schedule(step / _NUM_STEPS)
            loss = _loss(probe, [vectors[n] for n in chosen], [targets[n] for n in chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(probe.parameters(), _MAX_GRADIENT)
            optimizer.step()
            progress(step + 1, _NUM_STEPS)
    return probe.eval()


def _loss(probe: PhoneProbe, vectors: list[Tensor], targets: list[Tensor]) -> Tensor:
    """CTC loss of a batch; recordings with more phones than frames count as 0."""
    lengths = torch.tensor([len(each) for each in vectors])
    padded = nn.utils.rnn.pad_sequence(vectors, batch_first=True)  # [B, L, D]
    return F.ctc_loss(
        probe(padded, lengths).transpose(0, 1),  # [L, B, symbols]
        torch.cat(targets),
        lengths,
        torch.tensor([len(each) for each in targets]),
        blank=_BLANK,
        zero_infinity=True,
    )


def _schedule(progress: float) -> float:
    """Factor of the learning rate: up in a line, down in half a cosine."""
    if progress < _WARM_UP:
        return progress / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def _batches(lengths: Sequence[int], rng: np.random.Generator) -> Iterator[list[int]]:
    """For ever: numbers of recordings of about equal length that fill a batch, padding included."""
    while True:
        blurred = np.array(lengths) * rng.uniform(0.9, 1.1, len(lengths))
        epoch: list[list[int]] = [[]]
        longest = 0
        for number in np.argsort(blurred).tolist():
            longest = max(longest, lengths[number])
            if epoch[-1] and longest * (len(epoch[-1]) + 1) > _BATCH_FRAMES:
                epoch.append([])
                longest = lengths[number]
            epoch[-1].append(number)
        for place in rng.permutation(len(epoch)):
            yield epoch[place]


def phone_errors(probe: PhoneProbe, recordings: Sequence[SpokenVectors]) -> list[ErrorCounts]:
    """Errors of the probe in each recording, against the phones spoken."""
    return [
        count_errors(" ".join(each.phones), " ".join(probe.recognize(each.vectors.float())))[0]
        for each in recordings
    ]


def fill_up(vectors: Tensor, frame_rate: float) -> Tensor:
    """Vectors [L, D] at a frame rate that has room for phones: each repeated where there is none.

    Fast speech has 20 phones a second, and a CTC output at most one a frame.
    """
    return vectors.repeat_interleave(math.ceil(_MIN_FRAME_RATE / frame_rate), dim=0)


def _describe(config: ScoringConfig) -> str:
    lists = ", ".join(path.name for path in config.content_train)
    return f"{RECIPE}; on at most {config.content_minutes:g} min of {lists}"


def _lacks(config: ScoringConfig) -> str | None:
    if config.content_train:
        return None
    return (
        "content: no list to learn from; name one of other speakers with "
        "--set 'scoring.content_train=[\"train.jsonl\"]'"
    )


CONTENT = Group(
    "content",
    (
        rate(
            "content_per", "PER of codes", "phone errors of a small probe that reads the codes",
            is_main=True,
        ),
    ),
    modules=("pocketsphinx", "jiwer"),
    model=ModelChoice("probe of codes", identity=_describe, lacks=_lacks),
)  # fmt: skip
