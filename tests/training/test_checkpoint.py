import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmcodec.codec import tensor_files
from dmcodec.codec.model import Codec
from dmcodec.training import checkpoint as checkpoint_module
from dmcodec.training.checkpoint import (
    CheckpointError,
    initialize_from,
    list_checkpoints,
    load_checkpoint,
    load_experiment,
    prune_checkpoints,
    save_checkpoint,
)
from dmcodec.training.experiment import Experiment
from dmcodec.training.state import TrainingState, state_tensors
from dmcodec.training.step import train_step


def assert_same(state: TrainingState, expected: TrainingState) -> None:
    """Bit for bit: generator, discriminators, averages, codebooks, optimizers, progress."""
    files, wanted = state_tensors(state), state_tensors(expected)
    assert files.keys() == wanted.keys()
    for name, tensors in files.items():
        assert tensors.keys() == wanted[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, wanted[name][key]), f"{name}/{key}"
    assert (state.step, state.best) == (expected.step, expected.best)


@pytest.fixture
def sharded(monkeypatch) -> list[str]:
    """What makes checkpoints of tiny codecs have shards: the assignment, of a smaller unit."""
    bound = property(lambda experiment: 65_536 * experiment.checkpoint_max_file_mb)
    monkeypatch.setattr(Experiment, "checkpoint_max_file_bytes", bound)
    return ["checkpoint_max_file_mb=1"]


@pytest.fixture
def last(finished_run, tmp_path) -> Path:
    """A copy of the finished run's last checkpoint."""
    return shutil.copytree(list_checkpoints(finished_run / "checkpoints")[-1], tmp_path / "last")


def test_five_and_five_steps_equal_ten(fresh_state, tiny, make_batches, accelerator, tmp_path):
    experiment = tiny("num_steps=10", "adversary.start_step=2")
    batches = make_batches(experiment, 10)
    whole = fresh_state(experiment, seed=1)
    for batch in batches:
        train_step(whole, experiment, batch, accelerator)

    first = fresh_state(experiment, seed=1)
    for batch in batches[:5]:
        train_step(first, experiment, batch, accelerator)
    first.best = {"step": 5.0, "stoi": 0.1 + 0.2}
    path = save_checkpoint(first, experiment, tmp_path)
    second = fresh_state(experiment, seed=2)
    load_checkpoint(second, experiment, path)
    assert_same(second, first)
    for batch in batches[5:]:
        train_step(second, experiment, batch, accelerator)

    whole.best = first.best
    assert state_tensors(whole)["discriminator_optimizer"]  # the adversary has begun
    assert_same(second, whole)


def test_checkpoint_in_shards_is_the_whole_one(fresh_state, tiny, last, sharded, tmp_path):
    experiment = tiny(*sharded)
    state, again = fresh_state(experiment, seed=1), fresh_state(experiment, seed=2)
    load_checkpoint(state, experiment, last)

    path = save_checkpoint(state, experiment, tmp_path / "run")
    load_checkpoint(again, experiment, path)

    assert_same(again, state)
    sizes = {file.name: file.stat().st_size for file in path.glob("*.safetensors")}
    assert max(sizes.values()) <= 65_536
    for name in ("codec", "average", "optimizer", "discriminators", "discriminator_optimizer"):
        assert f"{name}.safetensors" not in sizes or sizes[f"{name}.safetensors"] < 65_536
    assert (path / "optimizer.safetensors.index.json").is_file()
    assert len(sizes) > len(state_tensors(state))


def test_run_starts_from_a_checkpoint_in_shards(fresh_state, tiny, last, sharded, tmp_path):
    experiment = tiny(*sharded)
    trained, state = fresh_state(experiment, seed=1), fresh_state(experiment, seed=2)
    load_checkpoint(trained, experiment, last)

    initialize_from(state, save_checkpoint(trained, experiment, tmp_path / "run"))

    expected = trained.averaged_codec.state_dict()
    torch.testing.assert_close(state.averaged_codec.state_dict(), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        state.discriminators.state_dict(), trained.discriminators.state_dict(), rtol=0, atol=0
    )


@pytest.mark.parametrize("damage", ["missing", "cut", "another's"])
def test_shard_that_is_damaged_is_named(fresh_state, tiny, last, sharded, tmp_path, damage):
    experiment = tiny(*sharded)
    state = fresh_state(experiment)
    load_checkpoint(state, experiment, last)
    path = save_checkpoint(state, experiment, tmp_path / "run")
    shards = sorted(path.glob("optimizer-*.safetensors"))
    if damage == "missing":
        shards[1].unlink()
    elif damage == "cut":
        shards[1].write_bytes(shards[1].read_bytes()[:-9])
    else:
        shards[1].write_bytes(shards[0].read_bytes())

    with pytest.raises(CheckpointError, match=rf"{shards[1].name} is (missing|damaged)"):
        load_checkpoint(fresh_state(experiment), experiment, path)


def test_gradient_scaler_is_kept(fresh_state, tiny, tmp_path):
    experiment = tiny()
    state = fresh_state(experiment)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    path = save_checkpoint(state, experiment, tmp_path)
    other = fresh_state(experiment)
    other.scaler = torch.amp.GradScaler("cpu")

    load_checkpoint(other, experiment, path)

    assert other.scaler.state_dict() == state.scaler.state_dict()
    kinds = [{k: type(v) for k, v in each.scaler.state_dict().items()} for each in (other, state)]
    assert kinds[0] == kinds[1]  # a step count that became a float would end the next step


def test_experiment_is_saved_whole(tiny, finished_run):
    assert load_experiment(list_checkpoints(finished_run / "checkpoints")[-1]) == tiny()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("codec", "cut"),
        ("codec", "empty"),
        ("codec", "header"),
        ("codec", "tensor"),
        ("average", "tensor"),
        ("optimizer", "tensor"),
        ("optimizer", "missing"),
        ("discriminators", "tensor"),
        ("discriminator_optimizer", "missing"),
    ],
)
def test_damaged_tensors_are_refused(fresh_state, tiny, last, name, damage):
    path = last / f"{name}.safetensors"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "tensor":
        tensors = load_file(path)
        tensors.popitem()
        save_file(tensors, path)
    else:
        changed = {"cut": data[: len(data) // 2], "empty": b"", "header": b"\xff" * 8 + data[8:]}
        path.write_bytes(changed[damage])

    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(fresh_state(tiny()), tiny(), last)


@pytest.mark.parametrize("name", ["progress.json", "experiment.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"step": 3}', '{"seed": "a"}'])
def test_damaged_records_are_refused(fresh_state, tiny, last, name, content):
    if content is None:
        (last / name).unlink()
    else:
        (last / name).write_text(content)

    with pytest.raises(CheckpointError, match="last"):
        load_checkpoint(fresh_state(tiny()), tiny(), last)


def test_missing_checkpoint_is_named(fresh_state, tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(fresh_state(tiny()), tiny(), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("losses.time_weight=3", "losses.time_weight"),
        ("seed=5", "seed"),
        ("batch_size=2", "batch_size"),
        ("codec.quantizer.codebook_size=16", "codec.quantizer.codebook_size"),
        ("adversary.networks.periods=[2]", "adversary.networks.periods"),
        ("data.segment_samples=6400", "data.segment_samples"),
        ("average_decay=0.5", "average_decay"),
    ],
)
def test_another_experiment_is_refused_by_its_key(fresh_state, tiny, last, assignment, key):
    other = tiny(assignment)

    with pytest.raises(CheckpointError, match=f"made with another {key}: "):
        load_checkpoint(fresh_state(other), other, last)


def test_course_and_reports_may_change_on_resuming(fresh_state, tiny, last, caplog):
    other = tiny(
        "num_steps=40",
        "optimizer.learning_rate=0.0005",
        "adversary.optimizer.max_gradient_norm=1",
        "validation.select_by=stoi",
        "checkpoint_every_steps=7",
        "keep_last=9",
        "log_every_steps=1",
        "num_workers=1",
    )
    state = fresh_state(other)

    with caplog.at_level(logging.INFO):
        load_checkpoint(state, other, last)

    assert state.step == 20
    assert "changed on resuming: optimizer.learning_rate from 0.001 to 0.0005" in caplog.text


@pytest.mark.parametrize(
    "assignment",
    ["validation.max_clips=1", "validation.max_samples=8000", "data.valid_manifest=other.jsonl"],
)
def test_best_on_other_clips_is_forgotten(fresh_state, tiny, last, assignment):
    same, other = fresh_state(tiny()), fresh_state(tiny(assignment))

    load_checkpoint(same, tiny(), last)
    load_checkpoint(other, tiny(assignment), last)

    assert same.best
    assert other.best == {}


def test_infinite_norm_means_no_clipping_and_survives_saving(fresh_state, tiny, tmp_path):
    experiment = tiny("optimizer.max_gradient_norm=inf")
    saved = save_checkpoint(fresh_state(experiment), experiment, tmp_path)

    load_checkpoint(fresh_state(experiment), experiment, saved)

    assert load_experiment(saved) == experiment


def test_checkpoints_are_pruned_to_the_last_and_the_best(tmp_path):
    for step in (5, 10, 15, 20, 25):
        (tmp_path / f"step_{step:08d}").mkdir()
    (tmp_path / "step_notes").mkdir()

    prune_checkpoints(tmp_path, keep_last=2, best_step=10)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000010",
        "step_00000020",
        "step_00000025",
        "step_notes",
    ]


def test_leftovers_of_a_kill_are_ignored_and_cleaned(fresh_state, tiny, tmp_path):
    experiment = tiny()
    for name in (".writing_step_00000005", ".deleting_step_00000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "codec.safetensors").write_bytes(b"half")
    assert list_checkpoints(tmp_path) == []

    path = save_checkpoint(fresh_state(experiment), experiment, tmp_path)

    assert list(tmp_path.iterdir()) == [path]
    assert list_checkpoints(tmp_path) == [path]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Killer:
    """Stops the n-th operation that changes files, before it or (deleting a folder) half-way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations_left: int | None = None
        for owner, name in (
            (checkpoint_module, "write_whole"),
            (tensor_files, "write_whole"),
            (Path, "mkdir"),
            (Path, "rename"),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self.watch(getattr(owner, name)))

    def watch(self, operation):
        def run(path, *arguments, **options):
            if self.operations_left is not None:
                self.operations_left -= 1
            if self.operations_left == 0:
                if operation.__name__ == "rmtree" and path.exists():
                    for file in sorted(path.iterdir())[::2]:
                        file.unlink()
                raise Killed
            return operation(path, *arguments, **options)

        return run


def test_kill_at_any_file_operation_leaves_a_checkpoint(fresh_state, tiny, tmp_path, monkeypatch):
    experiment = tiny("codec.seanet.num_filters=2", "codec.seanet.latent_dim=4")
    experiment = experiment.model_copy(update={"adversary": None})
    state, again = fresh_state(experiment), fresh_state(experiment)

    def save(step: int, folder: Path) -> None:
        state.step = step
        save_checkpoint(state, experiment, folder)
        prune_checkpoints(folder, keep_last=1, best_step=1)

    killer = Killer(monkeypatch)
    for num_operations in range(1, 100):
        folder = tmp_path / f"killed_at_{num_operations}"
        save(1, folder)
        save(2, folder)
        killer.operations_left = num_operations
        try:
            save(3, folder)
        except Killed:
            killer.operations_left = None
        else:
            break
        for path in list_checkpoints(folder):  # what is listed is complete
            load_checkpoint(again, experiment, path)
        assert again.step in (2, 3)
        save(3, folder)
        assert [load_step(path) for path in list_checkpoints(folder)] == [1, 3]
        assert sorted(folder.iterdir()) == list_checkpoints(folder)

    # Making the folder, three files of tensors, two of text, renaming; then deleting the old one.
    assert num_operations > 8


def load_step(path: Path) -> int:
    return json.loads((path / "progress.json").read_text())["step"]


def test_new_run_starts_from_the_averaged_weights(fresh_state, tiny, last):
    trained = fresh_state(tiny())
    load_checkpoint(trained, tiny(), last)
    state = fresh_state(tiny())

    initialize_from(state, last)

    expected = trained.averaged_codec.state_dict()
    torch.testing.assert_close(state.codec.state_dict(), expected, rtol=0, atol=0)
    torch.testing.assert_close(state.averaged_codec.state_dict(), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        state.discriminators.state_dict(), trained.discriminators.state_dict(), rtol=0, atol=0
    )
    assert state.step == 0
    assert state_tensors(state)["optimizer"] == {}


def test_new_run_starts_from_a_codec_folder(fresh_state, tiny, finished_run):
    state = fresh_state(tiny("codec.quantizer.ema_decay=0.5"))
    discriminators = {k: v.clone() for k, v in state.discriminators.state_dict().items()}
    codec = Codec.from_pretrained(finished_run / "codec")
    waveform = torch.rand(1, 1, 5_000) - 0.5

    initialize_from(state, finished_run / "codec")

    for started in (state.codec, state.averaged_codec):
        torch.testing.assert_close(
            started(waveform).waveform, codec(waveform).waveform, rtol=1e-4, atol=1e-6
        )
        assert torch.equal(started.encode(waveform).codes, codec.encode(waveform).codes)
        assert bool(started.quantizer.is_started)
    torch.testing.assert_close(state.discriminators.state_dict(), discriminators, rtol=0, atol=0)


@pytest.mark.parametrize("source", ["checkpoint", "codec"])
def test_start_from_another_network_is_refused(fresh_state, tiny, finished_run, last, source):
    state = fresh_state(tiny("codec.seanet.dilation_base=3"))

    with pytest.raises(CheckpointError, match="another network"):
        initialize_from(state, last if source == "checkpoint" else finished_run / "codec")


def test_start_from_other_discriminators_makes_new_ones_and_says_so(
    fresh_state, tiny, last, caplog
):
    caplog.set_level("INFO", logger="dmcodec")
    state = fresh_state(tiny("adversary.networks.stft_filters=6"))
    fresh = {k: v.clone() for k, v in state.discriminators.state_dict().items()}

    initialize_from(state, last)

    torch.testing.assert_close(state.discriminators.state_dict(), fresh, rtol=0, atol=0)
    assert f"not from {last}, but new: discriminators" in caplog.messages


def test_discriminators_beside_a_codec_folder_are_taken(
    fresh_state, tiny, finished_run, last, tmp_path
):
    shutil.copytree(finished_run / "codec", tmp_path / "codec")
    shutil.copy(last / "discriminators.safetensors", tmp_path / "codec")
    state = fresh_state(tiny())

    initialize_from(state, tmp_path / "codec")

    expected = load_file(last / "discriminators.safetensors")
    torch.testing.assert_close(state.discriminators.state_dict(), expected, rtol=0, atol=0)


def test_checkpoints_have_the_permissions_of_the_umask(fresh_state, tiny, tmp_path):
    before = os.umask(0o077)
    try:
        path = save_checkpoint(fresh_state(tiny()), tiny(), tmp_path / "run")
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "text",
    [
        '{"step": "soon", "best": {}, "gradient_scaler": null}',
        '{"step": -1, "best": {}, "gradient_scaler": null}',
        '{"step": 5, "best": {"stoi": "high"}, "gradient_scaler": null}',
        '{"step": 5, "best": [], "gradient_scaler": null}',
        '{"step": 5, "best": {"stoi": 0.5}, "gradient_scaler": null}',
        '{"step": 5, "best": {"stoi": 0.5, "step": NaN}, "gradient_scaler": null}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_progress_of_wrong_contents_is_an_error(fresh_state, tiny, last, text):
    (last / "progress.json").write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(CheckpointError, match=r"progress\.json"):
        load_checkpoint(fresh_state(tiny()), tiny(), last)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("optimizer", lambda tensors: tensors.update(nonsense=torch.zeros(1))),
        ("optimizer", lambda tensors: tensors.update({"x.exp_avg": torch.zeros(1)})),
        ("optimizer", lambda tensors: tensors.update({"0.exp_avg_sq": torch.zeros(1)})),
        ("optimizer", lambda tensors: tensors.update({"0.step": torch.zeros(3)})),
        (
            "optimizer",
            lambda tensors: tensors.update({"0.step": torch.zeros((), dtype=torch.int8)}),
        ),
        ("optimizer", lambda tensors: tensors["0.exp_avg"].fill_(torch.nan)),
        ("optimizer", lambda tensors: tensors["0.exp_avg_sq"].fill_(-1)),
        ("optimizer", lambda tensors: tensors["0.step"].fill_(torch.inf)),
        ("codec", lambda tensors: _fill_first(tensors, torch.nan)),
        ("average", lambda tensors: _fill_first(tensors, torch.inf)),
    ],
)
def test_tensors_of_wrong_contents_are_an_error(fresh_state, tiny, last, name, change):
    path = last / f"{name}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=f"damaged: {name}"):
        load_checkpoint(fresh_state(tiny()), tiny(), last)


def _fill_first(tensors, value):
    next(v for v in tensors.values() if v.is_floating_point()).fill_(value)
