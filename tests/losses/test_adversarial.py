from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmcodec.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss

GOLDEN = Path(__file__).parents[1] / "golden"
REAL = [torch.tensor([[0.5, 2.0]]), torch.tensor([[-1.0]])]
FAKE = [torch.tensor([[-2.0, 0.5]]), torch.tensor([[3.0]])]


@pytest.fixture(scope="module")
def release() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "release_losses.safetensors")


def release_logits(release, side):
    return [release[f"logits.{side}.{index}"] for index in range(2)]


def release_maps(release, side):
    prefix = f"feature_maps.{side}"
    return [[release[f"{prefix}.0.0"], release[f"{prefix}.0.1"]], [release[f"{prefix}.1.0"]]]


def test_discriminator_loss_equals_the_release(release):
    loss = discriminator_loss(
        release_logits(release, "real"), release_logits(release, "fake"), "least_squares"
    )

    torch.testing.assert_close(loss, release["loss_discriminator"])


def test_generator_loss_equals_the_release(release):
    loss = generator_loss(release_logits(release, "fake"), "least_squares")

    torch.testing.assert_close(loss, release["loss_generator"])


def test_twice_the_plain_feature_loss_equals_the_release(release):
    loss = feature_matching_loss(
        release_maps(release, "real"), release_maps(release, "fake"), normalized=False
    )

    torch.testing.assert_close(2 * loss, release["loss_feature"])


def test_discriminator_least_squares_by_hand():
    # ((1 - .5)² + (1 - 2)²) / 2 + ((-2)² + .5²) / 2 = 0.625 + 2.125; (1 + 1)² + 3² = 13.
    loss = discriminator_loss(REAL, FAKE, "least_squares")

    torch.testing.assert_close(loss, torch.tensor(0.625 + 2.125 + 13.0))


def test_discriminator_hinge_by_hand():
    # (0.5 + 0) / 2 + (0 + 1.5) / 2 = 0.25 + 0.75; (1 + 1) + (1 + 3) = 6.
    loss = discriminator_loss(REAL, FAKE, "hinge")

    torch.testing.assert_close(loss, torch.tensor(0.25 + 0.75 + 6.0))


def test_generator_least_squares_by_hand():
    # (3² + .5²) / 2 = 4.625; (1 - 3)² = 4.
    torch.testing.assert_close(generator_loss(FAKE, "least_squares"), torch.tensor(4.625 + 4.0))


def test_generator_hinge_by_hand():
    # (3 + .5) / 2 = 1.75; max(0, 1 - 3) = 0.
    torch.testing.assert_close(generator_loss(FAKE, "hinge"), torch.tensor(1.75))


def test_hinge_leaves_logits_beyond_the_margin_alone():
    real = torch.tensor([1.5, 0.5], requires_grad=True)
    fake = torch.tensor([-1.5, -0.5], requires_grad=True)

    discriminator_loss([real], [fake], "hinge").backward()

    torch.testing.assert_close(real.grad, torch.tensor([0.0, -0.5]))
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 0.5]))


def test_plain_feature_loss_by_hand_is_a_sum_over_maps_and_discriminators():
    real = [[torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0]])], [torch.tensor([[0.0, -4.0]])]]
    fake = [[torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0]])], [torch.tensor([[1.0, -1.0]])]]

    loss = feature_matching_loss(real, fake, normalized=False)

    torch.testing.assert_close(loss, torch.tensor(0.5 + 2.0 + 2.0))


def test_normalized_feature_loss_by_hand_divides_by_the_mean_magnitude_of_the_real_map():
    real = [[torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0]])], [torch.tensor([[0.0, -4.0]])]]
    fake = [[torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0]])], [torch.tensor([[1.0, -1.0]])]]

    loss = feature_matching_loss(real, fake, normalized=True)

    torch.testing.assert_close(loss, torch.tensor(0.5 / 2 + 2.0 / 2 + 2.0 / 2))


@pytest.mark.parametrize("normalized", [False, True])
def test_feature_loss_gives_gradient_to_the_fake_maps_only(normalized):
    real = torch.tensor([1.0, -2.0], requires_grad=True)
    fake = torch.tensor([0.5, 0.5], requires_grad=True)

    feature_matching_loss([[real]], [[fake]], normalized).backward()

    assert real.grad is None
    assert fake.grad.abs().min() > 0


def test_normalized_feature_loss_of_a_dead_real_map_is_finite():
    fake = torch.full((4,), 1e-3, requires_grad=True)

    loss = feature_matching_loss([[torch.zeros(4)]], [[fake]], normalized=True)
    loss.backward()

    assert loss.isfinite()
    assert fake.grad.isfinite().all()


def test_half_precision_maps_and_logits_are_compared_in_float32():
    # In float16 the mean of these squares overflows.
    real, fake = torch.full((8,), 300.0).half(), torch.full((8,), -300.0).half()

    assert discriminator_loss([real], [fake], "least_squares") == 299.0**2 + 300.0**2
    assert generator_loss([fake], "least_squares") == 301.0**2
    assert feature_matching_loss([[200 * real]], [[200 * fake]], False).dtype == torch.float32


def test_logits_of_unequal_shapes_or_numbers_are_refused():
    with pytest.raises(ValueError, match=r"logits 0: real \[1, 2\] and fake \[2\]"):
        discriminator_loss([torch.zeros(1, 2)], [torch.zeros(2)], "hinge")
    with pytest.raises(ValueError, match="got 2 and 1"):
        discriminator_loss([torch.zeros(2)] * 2, [torch.zeros(2)], "hinge")
    with pytest.raises(ValueError, match="got 0 and 0"):
        discriminator_loss([], [], "hinge")
    with pytest.raises(ValueError, match="got none"):
        generator_loss([], "hinge")


def test_feature_maps_of_unequal_shapes_or_numbers_are_refused():
    one, two = [[torch.zeros(2)]], [[torch.zeros(2)], [torch.zeros(2)]]
    with pytest.raises(ValueError, match="1 real and 2 fake"):
        feature_matching_loss(one, two, False)
    with pytest.raises(ValueError, match="got 1 and 2"):
        feature_matching_loss(one, [[torch.zeros(2), torch.zeros(2)]], False)
    with pytest.raises(ValueError, match="feature maps 0"):
        feature_matching_loss(one, [[torch.zeros(1)]], False)
    with pytest.raises(ValueError, match="got none"):
        feature_matching_loss([], [], False)
