"""Distillation losses: how far the codec's features are from a teacher's.

Three forms on features [B, L, H] with a mask of the frames that count. Where features come from
and which books are compared is decided elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DistillationForm = Literal["dimension_cosine", "frame_cosine", "l1_frame_cosine"]

# Squared norms below this count as this: a dead dimension gives no gradient instead of NaN.
_SQUARED_NORM_FLOOR = 1e-12


def dimension_cosine_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """-log sigmoid of the cosine between the time series of each dimension, averaged.

    For item b and dimension d the cosine runs over the frames of b that count. Items without any
    such frame are left out. Equal features give 0.3133, unrelated ones about 0.693.

    Args:
        student: `[B, L, H]`, the mapped output of the quantizer.
        teacher: `[B, L, H]`, of exactly the student's shape; gets no gradient.
        mask: bool `[B, L]`, True where the teacher has something to say; None: everywhere.
        count: scalar to divide the sum over items by; None: the items of this batch that count.
            Several processes agree with one when all divide by the mean of their `loss_count`.

    Returns:
        Scalar, float32 also under autocast. 0, with zero gradients, when no frame counts.

    Raises:
        ValueError: ranks, shapes or the mask's type do not fit.

    Reference: Ahasan et al. 2024, arXiv:2410.15017, eq. 1. Deviation: frames without speech are
    masked out. A teacher that is constant in time reaches this loss through its signs alone: use
    `frame_cosine_loss` for it.
    """
    student, teacher, mask = _prepare(student, teacher, mask)
    losses = -F.logsigmoid(_cosine(student, teacher, dim=1)).mean(dim=1)  # [B, H] -> [B]
    has_frames = mask.any(dim=1)  # without, the cosine is 0, which would count as a loss of 0.693
    return _mean(losses.masked_fill(~has_frames, 0.0), has_frames, count)


def frame_cosine_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """-log sigmoid of the cosine between the vectors of each frame, averaged over frames.

    Sees the direction of the teacher's vector in each frame, so it also fits a teacher that is
    constant in time. Arguments and result as `dimension_cosine_loss`; `count` is of frames.

    Reference: Ahasan et al. 2025, arXiv:2509.11425 (per-frame cosine for global vectors).
    """
    student, teacher, mask = _prepare(student, teacher, mask)
    losses = -F.logsigmoid(_cosine(student, teacher, dim=2))  # [B, L]
    return _mean(losses.masked_fill(~mask, 0.0), mask, count)


def l1_frame_cosine_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    count: Tensor | None = None,
    *,
    cosine_weight: float = 1.0,
) -> Tensor:
    """Mean absolute difference plus `cosine_weight` times `frame_cosine_loss`.

    The "t-axis" form of the released code, which calls a function that does not exist there.
    Arguments and result as `frame_cosine_loss`.
    """
    cosine = frame_cosine_loss(student, teacher, mask, count)
    student, teacher, mask = _prepare(student, teacher, mask)
    distances = (student - teacher).abs().mean(dim=2)  # [B, L]; masked frames are zero
    return _mean(distances, mask, count) + cosine_weight * cosine


_FORMS: dict[DistillationForm, Callable[..., Tensor]] = {
    "dimension_cosine": dimension_cosine_loss,
    "frame_cosine": frame_cosine_loss,
    "l1_frame_cosine": l1_frame_cosine_loss,
}


def distillation_loss(
    form: DistillationForm,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """The loss of that form; arguments and result as `dimension_cosine_loss`."""
    return _FORMS[form](student, teacher, mask, count)


def loss_count(form: DistillationForm, mask: Tensor) -> Tensor:
    """How many things the mean of a form runs over, for a mask `[B, L]`: items or frames."""
    return (mask.any(dim=1) if form == "dimension_cosine" else mask).sum().float()


def combine_losses(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight times loss over the teachers, which both must name alike.

    Reference: Ahasan et al. 2024, arXiv:2410.15017, eq. 3, where the weights add up to 1.
    """
    if not losses or losses.keys() != weights.keys():
        raise ValueError(
            f"losses of {sorted(losses)} and weights of {sorted(weights)} must name the same, and"
            " at least one, teacher"
        )
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _prepare(
    student: Tensor, teacher: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked float32 features, zero (also in gradient) where masked, and the mask."""
    if student.ndim != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"student {list(student.shape)} and teacher {list(teacher.shape)} must have one shape"
            " [B, L, H]"
        )
    if mask is None:
        mask = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    if mask.shape != student.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool {list(student.shape[:2])}, got {mask.dtype} {list(mask.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        student = student.float().masked_fill(~mask[..., None], 0.0)
        teacher = teacher.detach().float().masked_fill(~mask[..., None], 0.0)
    return student, teacher, mask


def _cosine(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Cosine along one axis of [B, L, H]; 0 where either side is zero."""
    products = (student * teacher).sum(dim=dim)
    squared_norms = [
        x.square().sum(dim=dim).clamp(min=_SQUARED_NORM_FLOOR) for x in (student, teacher)
    ]
    return products * squared_norms[0].rsqrt() * squared_norms[1].rsqrt()


def _mean(values: Tensor, is_counted: Tensor, count: Tensor | None) -> Tensor:
    """Sum of `values`, zero where they do not count, over how many count, or over `count`."""
    divisor = is_counted.sum() if count is None else count
    # Not clamped to 1: a count averaged over processes may be less. Where nothing counts, 0 / 1e-6.
    return values.sum() / divisor.clamp(min=1e-6)
