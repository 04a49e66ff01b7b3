import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from dmcodec.losses.reconstruction import envelope_loss, mel_loss, stft_loss
from dmcodec.training.experiment import LossConfig
from dmcodec.training.state import TrainingState, unwrapped
from dmcodec.training.step import TrainingDiverged, total_loss, train_step

ALWAYS = ("adversary.start_step=0", "adversary.update_every=1")
NEVER = ("adversary.start_step=100",)


@pytest.fixture
def start(tiny, fresh_state, make_batches) -> Callable:
    """An experiment, its fresh state and a batch."""

    def make(*assignments: str):
        experiment = tiny(*assignments)
        return experiment, fresh_state(experiment), make_batches(experiment, 1)[0]

    return make


def copies(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def is_unchanged(module: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def test_total_is_weights_times_terms():
    weights = {"time": 2.0, "mel": 3.0, "commitment": 5.0, "feature_matching": 7.0}
    config = LossConfig(**{f"{name}_weight": weight for name, weight in weights.items()})
    terms = {name: torch.tensor(float(i + 1)) for i, name in enumerate(weights)}

    assert total_loss(config, terms) == 2 * 1 + 3 * 2 + 5 * 3 + 7 * 4


@pytest.mark.parametrize("column", ["release", "paper"])
def test_step_equals_the_loss_written_by_hand(tiny, start, accelerator, column):
    experiment, state, batch = start("adversary.start_step=0", "adversary.update_every=2")
    losses = tiny(name=column).losses.model_copy(update={"stft_weight": 0.7})
    experiment = experiment.model_copy(update={"losses": losses})
    state.step = 0  # not the discriminators' turn, which would come first
    codec, discriminators = copy.deepcopy(state.codec), copy.deepcopy(state.discriminators)

    terms = train_step(state, experiment, batch, accelerator)

    original = batch.waveform
    output = codec(original, batch.num_samples, update=True)
    real, fake = discriminators(original), discriminators(output.waveform)
    pairs = [
        (r, f)
        for reals, fakes in zip(real.feature_maps, fake.feature_maps, strict=True)
        for r, f in zip(reals, fakes, strict=True)
    ]
    expected = {
        "time": (original - output.waveform).abs().mean(),
        "mel": mel_loss(original, output.waveform, losses.mel_scales, 16_000),
        "stft": stft_loss(original, output.waveform, losses.stft_scales),
        "commitment": output.quantizer.commitment_loss,
    }
    if column == "release":
        expected["adversarial"] = sum((1 - f).square().mean() for f in fake.logits)
        expected["feature_matching"] = sum((r - f).abs().mean() for r, f in pairs)
        weights = (500, 1, 0.7, 10, 1, 2)
    else:
        expected["adversarial"] = sum((1 - f).clamp(min=0).mean() for f in fake.logits)
        relative = [(r - f).abs().mean() / r.abs().mean() for r, f in pairs]
        expected["feature_matching"] = sum(relative)
        weights = (500, 500, 0.7, 10, 1, 0.06)
    expected["total"] = sum(w * t for w, t in zip(weights, expected.values(), strict=True))
    assert terms.keys() == expected.keys() | {"gradient_norm"}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-4, atol=1e-6)


def test_terms_without_weight_are_left_out(start, accelerator):
    experiment, state, batch = start(
        *ALWAYS, *(f"losses.{n}_weight=0" for n in ("time", "stft", "commitment", "adversarial"))
    )

    terms = train_step(state, experiment, batch, accelerator)

    assert terms.keys() == {"discriminator", "mel", "feature_matching", "total", "gradient_norm"}


def test_before_the_adversary_starts_there_are_no_adversarial_terms(start, accelerator):
    experiment, state, batch = start(*NEVER)
    before = copies(state.discriminators)

    terms = train_step(state, experiment, batch, accelerator)

    assert terms.keys() == {"time", "mel", "stft", "commitment", "total", "gradient_norm"}
    assert is_unchanged(state.discriminators, before)


def test_discriminators_hear_a_window_that_moves(start, accelerator, monkeypatch):
    experiment, state, batch = start(*ALWAYS, "adversary.window_samples=1600")
    heard, whole = [], unwrapped(state.discriminators).forward
    monkeypatch.setattr(
        unwrapped(state.discriminators), "forward", lambda x: heard.append(x) or whole(x)
    )

    for _ in range(3):
        train_step(state, experiment, batch, accelerator)

    size, places = len(batch.waveform), []
    for both, real, fake in zip(heard[::3], heard[1::3], heard[2::3], strict=True):
        assert real.shape == fake.shape == (size, 1, 1600)
        assert torch.equal(both, torch.cat([real, fake]))
        windows = batch.waveform.unfold(2, 1600, 1)  # [B, 1, places, 1600]
        is_here = (windows == real[:, :, None]).all(dim=-1).all(dim=0).flatten()
        assert is_here.sum() == 1
        places.append(int(is_here.nonzero()))
    assert len(set(places)) == 3


def test_a_window_longer_than_the_segments_is_all_of_them(start, accelerator):
    experiment, state, batch = start(*ALWAYS)
    wide, other_state, _ = start(*ALWAYS, "adversary.window_samples=10000000")

    terms = train_step(state, experiment, batch, accelerator)

    assert terms == train_step(other_state, wide, batch, accelerator)


def test_envelope_term_counts_with_its_weight(start, accelerator):
    experiment, state, batch = start(*NEVER, "losses.envelope_weight=50")
    codec = copy.deepcopy(state.codec)

    terms = train_step(state, experiment, batch, accelerator)

    decoded = codec(batch.waveform, batch.num_samples, update=True).waveform
    torch.testing.assert_close(
        terms["envelope"], envelope_loss(batch.waveform, decoded, 16_000).detach()
    )
    others = {name: terms[name] for name in ("time", "mel", "stft", "commitment")}
    rest = total_loss(experiment.losses, others)
    torch.testing.assert_close(terms["total"], rest + 50 * terms["envelope"])


def test_without_an_adversary_the_codec_learns_alone(start, fresh_state, accelerator):
    experiment, _, batch = start()
    experiment = experiment.model_copy(update={"adversary": None})
    state = fresh_state(experiment)

    terms = train_step(state, experiment, batch, accelerator)

    assert state.discriminators is None
    assert "adversarial" not in terms


def test_discriminators_learn_at_every_nth_step_from_their_start(start, accelerator):
    experiment, state, batch = start("adversary.start_step=2", "adversary.update_every=3")
    steps = []

    for step in range(8):
        before = copies(state.discriminators)
        terms = train_step(state, experiment, batch, accelerator)
        assert ("discriminator" in terms) != is_unchanged(state.discriminators, before)
        assert ("adversarial" in terms) == (step >= 2)
        if "discriminator" in terms:
            steps.append(step)

    assert steps == [4, 7]
    assert state.step == 8


def test_codecs_turn_leaves_the_discriminators_alone(start, accelerator):
    experiment, state, batch = start("adversary.start_step=0", "adversary.update_every=2")
    before = copies(state.discriminators)

    terms = train_step(state, experiment, batch, accelerator)

    assert "adversarial" in terms
    assert is_unchanged(state.discriminators, before)
    assert all(parameter.grad is None for parameter in state.discriminators.parameters())
    assert all(parameter.requires_grad for parameter in state.discriminators.parameters())


def test_discriminators_turn_leaves_the_codec_alone(start, accelerator):
    experiment, state, batch = start(*ALWAYS)
    gradients = []
    state.discriminator_optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(parameter.grad for parameter in state.codec.parameters())
    )

    train_step(state, experiment, batch, accelerator)

    assert gradients
    assert all(gradient is None for gradient in gradients)


def test_one_step_is_one_pass_through_the_codec(start, accelerator):
    experiment, state, batch = start(*ALWAYS)
    passes = []
    state.codec.register_forward_hook(lambda *_: passes.append(1))

    for _ in range(3):
        train_step(state, experiment, batch, accelerator)

    assert len(passes) == 3
    assert state.codec.quantizer.num_updates == 3


def test_segments_with_few_books_are_drawn_for_the_whole_batch(start, accelerator):
    experiment, state, batch = start("few_books_share=0.5", "batch_size=64")
    heard: list[torch.Tensor] = []

    def give(waveform, num_samples, *, codes, num_books, update):
        heard.append(num_books)
        raise InterruptedError

    state.codec.forward = give
    for processes in (1, 2):
        for rank in range(processes):
            shared = SimpleNamespace(
                autocast=accelerator.autocast, num_processes=processes, process_index=rank
            )
            with pytest.raises(InterruptedError):
                train_step(state, experiment, batch, shared)

    whole, first, second = heard
    books = experiment.codec.quantizer.num_codebooks
    assert torch.equal(whole, torch.cat([first, second]))
    assert set(whole.tolist()) == set(range(1, books + 1))
    assert 0.4 < float((whole == books).float().mean()) < 0.85  # 0.5, and of the rest one in K


def test_few_books_change_what_is_decoded_and_not_the_codes(start, accelerator):
    experiment, state, batch = start("few_books_share=1.0", *NEVER)
    twin = copy.deepcopy(state)

    few = train_step(state, experiment, batch, accelerator)
    all_books = train_step(
        twin, experiment.model_copy(update={"few_books_share": 0.0}), batch, accelerator
    )

    assert few["commitment"] == all_books["commitment"]
    assert few["mel"] != all_books["mel"]


def test_learning_rates_follow_their_own_courses(start, accelerator):
    experiment, state, batch = start("adversary.start_step=2")
    config = experiment.adversary.optimizer
    for step in range(4):
        train_step(state, experiment, batch, accelerator)
        rate = experiment.optimizer.learning_rate_at(step, 0, 20)
        assert state.optimizer.param_groups[0]["lr"] == rate
        rate = config.learning_rate_at(max(step, 2), 2, 20)
        assert state.discriminator_optimizer.param_groups[0]["lr"] == rate


def test_average_follows_its_decay(start, accelerator):
    experiment, state, batch = start("average_decay=0.75", *NEVER)

    train_step(state, experiment, batch, accelerator)
    first = copies(state.codec)
    train_step(state, experiment, batch, accelerator)

    for average, before, now in zip(
        state.averaged_codec.parameters(), first, state.codec.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.75 * before + 0.25 * now)
    assert torch.equal(state.averaged_codec.quantizer.codebooks, state.codec.quantizer.codebooks)


def test_gradients_are_clipped(start, accelerator):
    experiment, state, batch = start("optimizer.max_gradient_norm=0.5", *NEVER)
    norms = []
    state.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            torch.cat([p.grad.flatten() for p in state.codec.parameters()]).norm()
        )
    )

    terms = train_step(state, experiment, batch, accelerator)

    assert terms["gradient_norm"] > 1
    torch.testing.assert_close(norms, [torch.tensor(0.5)], rtol=1e-3, atol=0)


def spoil(module: nn.Module) -> None:
    with torch.no_grad():
        next(iter(module.parameters()))[0] = torch.nan


def test_loss_that_is_not_finite_is_named(start, accelerator):
    experiment, state, batch = start(*NEVER)
    spoil(state.codec.decoder)

    with pytest.raises(TrainingDiverged, match="not finite: time, mel, stft, gradient norm"):
        train_step(state, experiment, batch, accelerator)


def test_discriminators_that_are_not_finite_are_named(start, accelerator):
    experiment, state, batch = start(*ALWAYS)
    spoil(state.discriminators)

    with pytest.raises(TrainingDiverged, match="not finite: discriminator, gradient norm"):
        train_step(state, experiment, batch, accelerator)


def test_gradient_that_is_not_finite_is_named_and_not_applied(start, accelerator):
    experiment, state, batch = start(*NEVER)
    next(state.codec.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    before = copies(state.codec)

    with pytest.raises(TrainingDiverged, match="not finite: gradient norm"):
        train_step(state, experiment, batch, accelerator)

    assert is_unchanged(state.codec, before)


def place(state: TrainingState, accelerator: Accelerator) -> None:
    state.codec, state.optimizer, state.discriminators, state.discriminator_optimizer = (
        accelerator.prepare(
            state.codec, state.optimizer, state.discriminators, state.discriminator_optimizer
        )
    )


def test_bfloat16_step_is_close_to_the_full_one(start, accelerator):
    experiment, state, batch = start(*ALWAYS)
    expected = train_step(state, experiment, batch, accelerator)
    AcceleratorState._reset_state(reset_partial_state=True)
    half = Accelerator(cpu=True, mixed_precision="bf16")
    experiment, state, batch = start(*ALWAYS)
    place(state, half)

    terms = train_step(state, experiment, batch, half)

    for name in ("time", "mel", "stft", "discriminator", "adversarial", "total"):
        assert terms[name].dtype == torch.float32
        torch.testing.assert_close(terms[name], expected[name], rtol=0.05, atol=0)
    assert state.codec.quantizer.codebooks.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in state.codec.parameters())


@pytest.fixture
def half(accelerator: Accelerator) -> Callable[[float], Accelerator]:
    """float16 with a gradient scaler, which accelerate itself gives on a GPU only."""

    def make(scale: float) -> Accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        return accelerator

    return make


def test_float16_step_is_close_to_the_full_one(start, accelerator, half):
    experiment, state, batch = start(*ALWAYS)
    expected = train_step(state, experiment, batch, accelerator)
    experiment, state, batch = start(*ALWAYS)
    accelerator = half(1.0)
    place(state, accelerator)
    before = copies(state.codec)

    terms = train_step(state, experiment, batch, accelerator)

    for name in ("time", "mel", "stft", "discriminator", "adversarial", "total", "gradient_norm"):
        torch.testing.assert_close(terms[name], expected[name], rtol=0.02, atol=0)
    assert not is_unchanged(state.codec, before)


def test_float16_overflow_skips_the_step_and_halves_the_scale_once(start, half):
    experiment, state, batch = start(*ALWAYS)
    accelerator = half(1.0)
    place(state, accelerator)
    codec_before, before = copies(state.codec), copies(state.discriminators)
    hook = next(state.codec.parameters()).register_hook(lambda gradient: gradient * torch.inf)

    train_step(state, experiment, batch, accelerator)
    assert is_unchanged(state.codec, codec_before)
    assert not is_unchanged(state.discriminators, before)
    assert accelerator.scaler.get_scale() == 0.5
    hook.remove()

    train_step(state, experiment, batch, accelerator)
    assert not is_unchanged(state.codec, codec_before)
    assert accelerator.scaler.get_scale() == 0.5


def test_float16_gradient_that_overflows_at_any_scale_is_named(start, half):
    experiment, state, batch = start(*NEVER)
    accelerator = half(2.0**-17)
    place(state, accelerator)
    next(state.codec.parameters()).register_hook(lambda gradient: gradient * torch.inf)

    with pytest.raises(TrainingDiverged, match="not finite: gradient norm"):
        train_step(state, experiment, batch, accelerator)
