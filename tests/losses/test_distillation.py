import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmcodec.losses.distillation import (
    combine_losses,
    dimension_cosine_loss,
    distillation_loss,
    frame_cosine_loss,
    l1_frame_cosine_loss,
    loss_count,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FORMS = ["dimension_cosine", "frame_cosine", "l1_frame_cosine"]
FLOOR = -math.log(1 / (1 + math.exp(-1)))  # 0.3133: cosine 1 everywhere


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def half_mask(batch: int, frames: int) -> torch.Tensor:
    mask = torch.rand(batch, frames, generator=torch.Generator().manual_seed(7)) < 0.6
    mask[:, 0] = True
    return mask


@pytest.fixture(scope="module")
def release() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "release_distillation.safetensors")


def test_dimension_cosine_equals_the_release_on_plain_features(release):
    loss = dimension_cosine_loss(release["student"], release["teacher"])

    torch.testing.assert_close(loss, release["loss_d_axis"])


def test_l1_frame_cosine_equals_the_corrected_release(release):
    whole = l1_frame_cosine_loss(release["student"], release["teacher"])
    half = l1_frame_cosine_loss(release["student"], release["teacher"], cosine_weight=0.5)

    torch.testing.assert_close(whole, release["loss_t_axis"])
    torch.testing.assert_close(half, release["loss_t_axis_half"])


@pytest.mark.parametrize("form", FORMS)
def test_student_equal_to_its_teacher_scores_0_3133(form):
    teacher = features(3, 50, 16)

    loss = distillation_loss(form, teacher.clone(), teacher)

    assert loss.item() == pytest.approx(FLOOR, abs=1e-5)
    assert pytest.approx(0.3133, abs=1e-4) == FLOOR


@pytest.mark.parametrize("form", ["dimension_cosine", "frame_cosine"])
def test_unrelated_student_scores_about_0_693(form):
    loss = distillation_loss(form, features(4, 200, 200), features(4, 200, 200, seed=1))

    assert loss.item() == pytest.approx(math.log(2), abs=0.01)


def test_dimension_cosine_by_hand():
    # Dimension 0: (1, 0) against (1, 1): cosine 1/sqrt 2. Dimension 1: (0, 2) against (0, -1): -1.
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [1.0, -1.0]]])

    loss = dimension_cosine_loss(student, teacher)

    expected = (math.log(1 + math.exp(-(0.5**0.5))) + math.log(1 + math.e)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_unmasked_frame_gets_gradient_and_masked_ones_none(form):
    student = features(3, 20, 8).requires_grad_()
    mask = half_mask(3, 20)

    distillation_loss(form, student, features(3, 20, 8, seed=1), mask).backward()

    sizes = student.grad.abs().sum(dim=2)
    assert (sizes[mask] > 0).all()
    assert (sizes[~mask] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_masked_frames_change_nothing_even_when_they_are_not_numbers(form):
    student, teacher, mask = features(2, 12, 4), features(2, 12, 4, seed=1), half_mask(2, 12)
    expected = distillation_loss(form, student, teacher, mask)
    student = student.masked_fill(~mask[..., None], torch.nan).requires_grad_()

    loss = distillation_loss(form, student, teacher.masked_fill(~mask[..., None], torch.inf), mask)
    loss.backward()

    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_mask_equals_cutting_the_frames_out(form):
    student, teacher = features(1, 12, 4), features(1, 12, 4, seed=1)
    mask = half_mask(1, 12)

    loss = distillation_loss(form, student, teacher, mask)

    cut = distillation_loss(form, student[:, mask[0]], teacher[:, mask[0]])
    torch.testing.assert_close(loss, cut)


@pytest.mark.parametrize("form", FORMS)
def test_shuffling_the_teacher_in_time_raises_the_loss_of_a_fitted_student(form):
    teacher = features(4, 60, 12)
    student = teacher + 0.3 * features(4, 60, 12, seed=1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))

    fitted = distillation_loss(form, student, teacher)
    shuffled = distillation_loss(form, student, teacher[:, order])

    assert shuffled > fitted + 0.2


@pytest.mark.parametrize("form", FORMS)
def test_teacher_magnitudes_count_not_only_signs(form):
    teacher = features(2, 30, 6)

    loss = distillation_loss(form, teacher.sign(), teacher)

    assert loss > FLOOR + 0.02


@pytest.mark.parametrize("form", FORMS)
def test_gradient_descent_on_the_student_reaches_the_floor(form):
    teacher = features(2, 30, 6)
    student = features(2, 30, 6, seed=1).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)

    for _ in range(150):
        optimizer.zero_grad()
        loss = distillation_loss(form, student, teacher)
        loss.backward()
        optimizer.step()

    assert loss.item() == pytest.approx(FLOOR, abs=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_compare_gives_zero_with_zero_gradient(form):
    student = features(2, 10, 4).requires_grad_()

    loss = distillation_loss(
        form, student, features(2, 10, 4, seed=1), torch.zeros(2, 10, dtype=torch.bool)
    )
    loss.backward()

    assert loss == 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_item_without_frames_does_not_dilute_the_others(form):
    student, teacher, mask = features(2, 10, 4), features(2, 10, 4, seed=1), half_mask(2, 10)
    mask[1] = False

    loss = distillation_loss(form, student, teacher, mask)

    torch.testing.assert_close(loss, distillation_loss(form, student[:1], teacher[:1], mask[:1]))


@pytest.mark.parametrize("form", FORMS)
def test_dead_student_gives_finite_gradients(form):
    student = torch.zeros(1, 10, 4, requires_grad=True)

    distillation_loss(form, student, features(1, 10, 4)).backward()

    assert student.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_batch_divided_by_the_mean_count_average_to_the_whole(form):
    student, teacher, mask = features(4, 10, 3), features(4, 10, 3, seed=1), half_mask(4, 10)
    mask[3] = False
    mask[1, 5:] = False
    halves = [slice(0, 2), slice(2, 4)]
    count = torch.stack([loss_count(form, mask[half]) for half in halves]).mean()

    parts = [
        distillation_loss(form, student[half], teacher[half], mask[half], count) for half in halves
    ]

    whole = distillation_loss(form, student, teacher, mask)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_reaches_the_teacher(form):
    teacher = features(1, 10, 4).requires_grad_()
    student = features(1, 10, 4, seed=1).requires_grad_()

    distillation_loss(form, student, teacher).backward()

    assert teacher.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_features_are_compared_in_float32(form):
    student, teacher = features(2, 10, 4).bfloat16(), features(2, 10, 4, seed=1).half()
    expected = distillation_loss(form, student.float(), teacher.float())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(form, student, teacher)

    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 1, 9, 4), (2, 1, 9, 4)),
        ((2, 9, 4), (2, 1, 9, 4)),
        ((2, 9, 4), (1, 9, 4)),
        ((2, 10, 4), (2, 9, 4)),
        ((2, 9, 4), (2, 9, 1)),
        ((9, 4), (9, 4)),
    ],
)
def test_other_than_equal_batches_of_frames_are_refused(form, shapes):
    with pytest.raises(ValueError, match=r"one shape \[B, L, H\]"):
        distillation_loss(form, torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 9), torch.ones(2, 1, dtype=torch.bool), torch.ones(9, dtype=torch.bool)]
)
def test_masks_of_another_shape_or_type_are_refused(mask):
    with pytest.raises(ValueError, match="mask must be bool"):
        frame_cosine_loss(torch.zeros(2, 9, 4), torch.zeros(2, 9, 4), mask)


def test_two_teachers_combine_by_their_weights():
    losses = {"text": torch.tensor(0.4), "speech": torch.tensor(0.6)}

    combined = combine_losses(losses, {"text": 0.8, "speech": 0.2})

    torch.testing.assert_close(combined, torch.tensor(0.44))
    with pytest.raises(ValueError, match="must name the same"):
        combine_losses(losses, {"text": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        combine_losses({}, {})
