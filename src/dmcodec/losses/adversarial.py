"""Adversarial losses: what the discriminators and the generator play for.

Least squares and hinge, and feature matching. Every function takes one entry per
sub-discriminator and sums over them, as HiFi-GAN and the released DM-Codec do; a weight outside
turns the sum into a mean where that is wanted.
"""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

AdversarialKind = Literal["least_squares", "hinge"]

# Below any mean magnitude that a working layer has; only a dead layer meets it.
_MEAN_MAGNITUDE_FLOOR = 1e-5


def discriminator_loss(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], kind: AdversarialKind
) -> Tensor:
    """What the discriminators minimise: real logits towards 1, fake logits away from it.

    Per sub-discriminator, with r and f the real and fake logits:
    least squares `mean (1 - r)² + mean f²`; hinge `mean max(0, 1 - r) + mean max(0, 1 + f)`.

    Args:
        real_logits: one tensor of any shape per sub-discriminator, for original waveforms.
        fake_logits: the same shapes, for decoded waveforms (detached by the caller).
        kind: which of the two.

    Returns:
        Scalar, the sum over sub-discriminators, float32 also under autocast.

    Raises:
        ValueError: the lists are empty or of unequal length, or shapes differ.

    Reference: Mao et al. 2016, arXiv:1611.04076 (least squares, labels 1 and 0); Lim & Ye 2017,
    arXiv:1705.02894 (hinge).
    """
    _check_pairs(real_logits, fake_logits, "logits")
    terms = []
    for real, fake in zip(real_logits, fake_logits, strict=True):
        real, fake = _full_precision(real), _full_precision(fake)
        match kind:
            case "least_squares":
                terms.append((1 - real).square().mean() + fake.square().mean())
            case "hinge":
                terms.append(F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            case _:
                assert_never(kind)
    return torch.stack(terms).sum()


def generator_loss(fake_logits: Sequence[Tensor], kind: AdversarialKind) -> Tensor:
    """What the generator minimises: fake logits towards 1.

    Per sub-discriminator: least squares `mean (1 - f)²`; hinge `mean max(0, 1 - f)`.

    Args:
        fake_logits: one tensor of any shape per sub-discriminator, for decoded waveforms.
        kind: which of the two.

    Returns:
        Scalar, the sum over sub-discriminators, float32 also under autocast.

    Raises:
        ValueError: the list is empty.

    Reference: Mao et al. 2016, arXiv:1611.04076; Zeghidour et al. 2021, arXiv:2107.03312, eq. 2
    (hinge that stops at 1 for the generator too, where the usual one is `-mean f`).
    """
    if not fake_logits:
        raise ValueError("generator_loss needs the logits of at least one discriminator, got none")
    terms = []
    for fake in fake_logits:
        fake = _full_precision(fake)
        match kind:
            case "least_squares":
                terms.append((1 - fake).square().mean())
            case "hinge":
                terms.append(F.relu(1 - fake).mean())
            case _:
                assert_never(kind)
    return torch.stack(terms).sum()


def feature_matching_loss(
    real_maps: Sequence[Sequence[Tensor]],
    fake_maps: Sequence[Sequence[Tensor]],
    normalized: bool,
) -> Tensor:
    """Distance between the discriminators' feature maps of original and decoded waveforms.

    The mean absolute difference of each pair of maps, summed over all maps of all
    sub-discriminators. No gradient flows into `real_maps`.

    Args:
        real_maps: per sub-discriminator its feature maps, of any shape, for original waveforms.
        fake_maps: the same shapes, for decoded waveforms.
        normalized: divide each term by the mean magnitude of the real map, so that layers count
            alike whatever their scale.

    Returns:
        Scalar, float32 also under autocast. The released DM-Codec's value is twice the plain one;
        EnCodec's is the normalised one divided by the number of maps.

    Raises:
        ValueError: the lists are empty or of unequal length, or shapes differ.

    Reference: Kong et al. 2020, arXiv:2010.05646, eq. 5 (plain); Défossez et al. 2022,
    arXiv:2210.13438, eq. 2 (normalised).
    """
    if len(real_maps) != len(fake_maps):
        raise ValueError(
            f"feature maps of {len(real_maps)} real and {len(fake_maps)} fake discriminators"
        )
    terms = []
    for real_of_one, fake_of_one in zip(real_maps, fake_maps, strict=True):
        _check_pairs(real_of_one, fake_of_one, "feature maps")
        for real_map, fake_map in zip(real_of_one, fake_of_one, strict=True):
            target = _full_precision(real_map.detach())
            term = F.l1_loss(_full_precision(fake_map), target)
            if normalized:
                term = term / target.abs().mean().clamp(min=_MEAN_MAGNITUDE_FLOOR)
            terms.append(term)
    if not terms:
        raise ValueError("feature_matching_loss needs at least one discriminator, got none")
    return torch.stack(terms).sum()


def _check_pairs(real: Sequence[Tensor], fake: Sequence[Tensor], what: str) -> None:
    if not real or len(real) != len(fake):
        raise ValueError(f"need as many real as fake {what}, got {len(real)} and {len(fake)}")
    for index, (real_tensor, fake_tensor) in enumerate(zip(real, fake, strict=True)):
        if real_tensor.shape != fake_tensor.shape:
            raise ValueError(
                f"{what} {index}: real {list(real_tensor.shape)} and fake "
                f"{list(fake_tensor.shape)} must have equal shapes"
            )


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
