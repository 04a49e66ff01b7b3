import pytest
import torch

from dmcodec.training.state import StateError, load_module, load_state_tensors, state_tensors


@pytest.fixture
def state(tiny, fresh_state):
    return fresh_state(tiny())


def test_same_seed_gives_the_same_start(tiny, fresh_state, state):
    again = fresh_state(tiny())

    files, expected = state_tensors(again), state_tensors(state)
    assert files.keys() == expected.keys()
    for name, tensors in files.items():
        torch.testing.assert_close(tensors, expected[name], rtol=0, atol=0)


def test_average_starts_as_the_codec_and_in_evaluation_mode(state):
    assert not state.averaged_codec.training
    torch.testing.assert_close(
        state.averaged_codec.state_dict(), state.codec.state_dict(), rtol=0, atol=0
    )


def test_layout_of_checkpoints_is_the_one_that_earlier_runs_wrote(state):
    files = state_tensors(state)

    assert set(files) == {
        "codec",
        "average",
        "optimizer",
        "discriminators",
        "discriminator_optimizer",
    }
    assert {f"module.{name}" for name in files["codec"]} | {"n_averaged"} == set(files["average"])
    assert "encoder.conv_in.conv.parametrizations.weight.original0" in files["codec"]
    assert {"quantizer.codebooks", "quantizer.cluster_sizes", "quantizer.is_started"} < set(
        files["codec"]
    )


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_tensors_that_do_not_fit_are_named(state, change):
    tensors = dict(state.codec.state_dict())
    name = "quantizer.codebooks"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        name = "quantizer.more"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:1]

    with pytest.raises(StateError, match=f"codec does not fit .* such as {name}"):
        load_module(state.codec, tensors, "codec")


@pytest.mark.parametrize("key", ["9999.exp_avg", "0.exp_avg"])
def test_optimizer_tensors_that_do_not_fit_are_refused(state, key):
    files = state_tensors(state)
    files["optimizer"] = {key: torch.zeros(1)}

    with pytest.raises(StateError, match=f"optimizer .* parameter {key.split('.')[0]}"):
        load_state_tensors(state, files)
