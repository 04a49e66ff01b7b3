import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from dmcodec.audio import read_audio
from dmcodec.cli import app
from dmcodec.codec.model import Codec
from dmcodec.config import ConfigError
from dmcodec.storage import FolderInUse, lock_folder
from dmcodec.training import interruption, loop
from dmcodec.training.checkpoint import CheckpointError, list_checkpoints, load_experiment
from dmcodec.training.loop import train

CONFIGS = Path(__file__).parents[2] / "configs"
LOSSES = {"time", "mel", "stft", "commitment", "total"}
ADVERSARIAL = {"adversarial", "feature_matching"}
TIMES = ("train/steps_per_s", "train/audio_s_per_s", "train/data_wait_s_per_s")


def read_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_runs(folder: Path, expected: Path) -> None:
    """Last checkpoints and logs agree bit for bit."""
    paths = [list_checkpoints(each / "checkpoints")[-1] for each in (folder, expected)]
    assert paths[0].name == paths[1].name
    for file in sorted(paths[1].glob("*.safetensors")):
        tensors, wanted = load_file(paths[0] / file.name), load_file(file)
        assert tensors.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(tensors[name], value), f"{file.name}/{name}"
    records = [json.loads((path / "progress.json").read_text()) for path in paths]
    assert records[0] == records[1]
    assert without_times(read_lines(folder)) == without_times(read_lines(expected))
    weights = [load_file(each / "codec" / "model.safetensors") for each in (folder, expected)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_run_leaves_a_codec_that_encodes_and_decodes(finished_run, speech):
    waveform = read_audio(speech / "valid-110-1.flac")
    codec = Codec.from_pretrained(finished_run / "codec")

    encoded = codec.encode(speech / "valid-110-1.flac")
    decoded = codec.decode(encoded)

    assert encoded.codes.shape == (1, 4, -(-len(waveform) // 320))
    assert len(encoded.codes.unique()) > 10
    assert decoded.shape == (1, len(waveform))
    assert float(decoded.abs().mean()) > 1e-4


def test_run_keeps_the_last_checkpoints_with_their_experiment(finished_run, tiny):
    checkpoints = list_checkpoints(finished_run / "checkpoints")

    assert [path.name for path in checkpoints] == ["step_00000015", "step_00000020"]
    assert [load_experiment(path) for path in checkpoints] == [tiny(), tiny()]


def test_training_improves_the_codec(finished_run):
    first, last = (line for line in read_lines(finished_run) if "valid/mel_distance" in line)

    assert last["valid/mel_distance"] < first["valid/mel_distance"]


def test_lines_have_the_documented_keys(finished_run):
    lines = read_lines(finished_run)
    books = {f"train/{name}_{book}" for name in ("usage", "perplexity") for book in range(1, 5)}
    always = {f"train/loss_{name}" for name in LOSSES} | books | {"step", *TIMES}
    always |= {"train/gradient_norm", "train/learning_rate"}
    adversarial = {f"train/loss_{name}" for name in ADVERSARIAL}

    expected = {
        5: always,
        10: always | adversarial | {"train/loss_discriminator"},
        15: always | adversarial,
        20: always | adversarial | {"train/loss_discriminator"},
    }
    train_lines = [line for line in lines if "train/loss_total" in line]
    assert {line["step"]: line.keys() for line in train_lines} == expected
    valid = {"step", "valid/mel_distance", "valid/stoi", "valid/pesq_wb"}
    valid_lines = [line for line in lines if line not in train_lines]
    assert {line["step"]: line.keys() for line in valid_lines} == {10: valid, 20: valid}


def test_tensorboard_has_scalars_sound_and_pictures(finished_run):
    events = EventAccumulator(str(finished_run / "tensorboard"))
    events.Reload()

    logged = {line["step"]: line.get("train/loss_mel") for line in read_lines(finished_run)}
    points = {event.step: event.value for event in events.Scalars("train/loss_mel")}
    assert points == pytest.approx(logged)
    assert [event.step for event in events.Scalars("valid/stoi")] == [10, 20]
    for kind in ("original", "decoded"):
        sounds = events.Audio(f"valid/valid-110-0/{kind}")
        assert [sound.step for sound in sounds] == [10, 20]
        assert sounds[0].sample_rate == 16_000
        assert sounds[0].length_frames == 16_000
        assert events.Images(f"valid/valid-110-0/{kind}/log_mel")[0].height == 80


def test_used_folder_is_refused_and_left_alone(tiny, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine")

    with pytest.raises(ValueError, match="is in use: give --resume"):
        train(tiny(), tmp_path, device="cpu")

    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def test_interrupted_run_goes_on_as_if_nothing_had_happened(
    tiny, finished_run, tmp_path, monkeypatch
):
    step = loop.train_step

    def interrupt_after_seven(state, *arguments):
        if state.step == 6:
            signal.raise_signal(signal.SIGTERM)
        return step(state, *arguments)

    monkeypatch.setattr(loop, "train_step", interrupt_after_seven)
    with pytest.raises(SystemExit, match="143"):
        train(tiny(), tmp_path, device="cpu")
    monkeypatch.setattr(loop, "train_step", step)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [
        "step_00000005",
        "step_00000007",
    ]

    scores = train(tiny(), tmp_path, resume=True, device="cpu").scores

    assert_same_runs(tmp_path, finished_run)
    assert scores == pytest.approx(
        {
            k.removeprefix("valid/"): v
            for k, v in read_lines(finished_run)[-2].items()
            if k != "step"
        }
    )


def test_run_cut_into_short_leases_is_the_uninterrupted_one(
    tiny, finished_run, tmp_path, monkeypatch
):
    seconds = [0.0]  # each step takes one
    step = loop.train_step

    def tick(*arguments):
        seconds[0] += 1
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", tick)
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: seconds[0]))

    def lease(stop_after_s: float | None) -> int:
        return train(tiny(), tmp_path, resume=True, device="cpu", stop_after_s=stop_after_s).step

    # No lease is too short for a step; the last one ends in the middle of its time.
    assert [lease(6.5), lease(0), lease(9), lease(100)] == [7, 8, 17, 20]
    assert_same_runs(tmp_path, finished_run)


_TRAIN = """
import sys
from pathlib import Path
import torch
from dmcodec.training.experiment import Experiment
from dmcodec.training.loop import train

torch.set_num_threads(1)
experiment = Experiment.model_validate_json(Path(sys.argv[1]).read_text())
train(experiment, Path(sys.argv[2]), device="cpu")
"""


def test_killed_run_goes_on_as_if_nothing_had_happened(tiny, finished_run, tmp_path):
    (tmp_path / "experiment.json").write_text(tiny().model_dump_json())
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, tmp_path / "experiment.json", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    give_up = time.monotonic() + 120
    while not list_checkpoints(folder / "checkpoints") and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    # Anywhere from right behind the first checkpoint to about the third.
    time.sleep(int.from_bytes(os.urandom(1)) / 256)
    process.kill()
    process.wait()

    train(tiny(), folder, resume=True, device="cpu")

    assert_same_runs(folder, finished_run)


def test_resuming_an_empty_folder_begins(tiny, tmp_path):
    train(tiny("num_steps=1"), tmp_path / "run", resume=True, device="cpu")

    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step_00000001"
    ]


def test_resuming_a_finished_run_changes_nothing(tiny, finished_run, tmp_path, monkeypatch):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    # Nor does it read speech: a table of many finished runs is made in seconds.
    monkeypatch.setattr("dmcodec.training.loop.SegmentDataset", None)

    assert train(tiny(), folder, resume=True, device="cpu") == (20, {})

    assert_same_runs(folder, finished_run)


def test_finished_run_can_be_extended_but_not_cut(tiny, finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "run")

    train(tiny("num_steps=21"), folder, resume=True, device="cpu")
    assert list_checkpoints(folder / "checkpoints")[-1].name == "step_00000021"

    with pytest.raises(ValueError, match="beyond num_steps = 20"):
        train(tiny(), folder, resume=True, device="cpu")


def test_resuming_another_experiment_is_refused(tiny, finished_run):
    with pytest.raises(CheckpointError, match=r"losses\.mel_weight"):
        train(tiny("losses.mel_weight=3"), finished_run, resume=True, device="cpu")


@pytest.fixture
def scored(monkeypatch):
    """Runs of four steps, scored at each of them by the given numbers instead of by ear."""

    def run(experiment, folder, scores) -> list[int]:
        exported = []
        numbers = iter(scores)
        monkeypatch.setattr(loop, "validate", lambda *_: next(numbers))
        monkeypatch.setattr(
            loop, "export_codec", lambda codec, folder, bound: exported.append(folder.name)
        )
        steps = []
        note = loop._note_if_best

        def count(state, *arguments):
            is_best = note(state, *arguments)
            if is_best or not state.best:
                steps.append(state.step)
            return is_best

        monkeypatch.setattr(loop, "_note_if_best", count)
        train(experiment, folder, device="cpu")
        assert exported == ["codec"] * len(steps)
        return steps

    return run


FOUR_STEPS = ("num_steps=4", "validation.every_steps=1", "checkpoint_every_steps=4", "keep_last=1")


def test_best_codec_is_exported_and_its_checkpoint_kept(tiny, tmp_path, scored):
    scores = [{"stoi": value} for value in (0.3, 0.7, 0.6, 0.65)]

    steps = scored(tiny(*FOUR_STEPS, "validation.select_by=stoi"), tmp_path, scores)

    assert steps == [1, 2]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [
        "step_00000002",
        "step_00000004",
    ]


def test_less_distance_is_better(tiny, tmp_path, scored):
    scores = [{"mel_distance": value} for value in (0.9, 1.2, 0.8, 0.85)]

    assert scored(tiny(*FOUR_STEPS), tmp_path, scores) == [1, 3]


def test_until_something_can_be_measured_the_latest_codec_is_exported(tiny, tmp_path, scored):
    scores = [{}, {"stoi": 0.5}, {"mel_distance": 1.0}, {}]

    assert scored(tiny(*FOUR_STEPS), tmp_path, scores) == [1, 2, 3]


def test_new_run_starts_from_a_finished_one(tiny, finished_run, tmp_path):
    source = list_checkpoints(finished_run / "checkpoints")[-1]
    experiment = tiny("num_steps=1", f'init_from="{source}"', "optimizer.learning_rate=1e-9")

    train(experiment, tmp_path, device="cpu")

    started, finished = (Codec.from_pretrained(f / "codec") for f in (tmp_path, finished_run))
    torch.testing.assert_close(
        list(started.parameters()), list(finished.parameters()), rtol=1e-5, atol=1e-6
    )


def test_missing_validation_clips_end_the_run_before_its_first_step(tiny, tmp_path):
    gone = tmp_path / "gone.jsonl"
    gone.write_text('{"audio": "gone.wav"}\n')

    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        train(tiny(f'data.valid_manifest="{gone}"'), tmp_path / "run", device="cpu")

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["tpu", "cuda:1", "gpu"])
def test_unknown_devices_are_refused(tiny, tmp_path, device):
    with pytest.raises(ValueError, match="auto, cpu or cuda"):
        train(tiny(), tmp_path / "run", device=device)


def test_runs_in_other_precision_follow_each_other_in_one_process(tiny, tmp_path):
    for precision in ("no", "bf16"):
        experiment = tiny(f"mixed_precision={precision}", "num_steps=1", "log_every_steps=1")
        train(experiment, tmp_path / precision, device="cpu")

    assert (tmp_path / "bf16" / "codec" / "config.json").is_file()


def test_two_runs_do_not_share_a_folder(tiny, tmp_path):
    with (
        lock_folder(tmp_path / "run"),
        pytest.raises(FolderInUse, match="another job is writing to"),
    ):
        train(tiny(), tmp_path / "run", resume=True, device="cpu")

    assert not (tmp_path / "run").exists()


def test_command_that_stops_says_how_to_go_on(speech, tmp_path):
    words = ["train", str(CONFIGS / "tiny.toml"), "-o", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--set", f'data.train_manifests=["{speech / "train.jsonl"}"]']
    words += ["--set", f'data.valid_manifest="{speech / "valid.jsonl"}"', "--resume"]

    result = CliRunner().invoke(app, [*words, "--stop-after-minutes", "0"])

    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "stopped at step 1 of 20, as asked" in said
    assert "give the same command with --resume to go on" in said
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step_00000001"
    ]


_UNTIL_FULL = """
import resource, signal, sys
from dmcodec.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""


@pytest.mark.parametrize(
    ("limit", "what"), [(60, "tensorboard"), (30_000, "step_00000001/codec.safetensors")]
)
def test_full_disk_ends_the_run_with_a_sentence(speech, tmp_path, limit, what):
    words = ["train", str(CONFIGS / "tiny.toml"), "-o", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--set", f'data.train_manifests=["{speech / "train.jsonl"}"]']
    words += ["--set", f'data.valid_manifest="{speech / "valid.jsonl"}"']
    words += ["--set", "num_steps=2", "--set", "checkpoint_every_steps=1", "--threads", "1"]
    words += ["--set", "validation.every_steps=9"]

    done = subprocess.run(
        [sys.executable, "-c", _UNTIL_FULL, str(limit), *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("dmcodec: ")
    assert last.endswith(f"{what}: File too large")


@pytest.mark.parametrize(
    "assignment",
    [
        "batch_size=100000",
        "num_workers=100000",
        "codec.seanet.num_filters=1000000000",
        "codec.seanet.num_lstm_layers=1000000",
        "codec.sample_rate=1000000000000",
        "data.segment_samples=1000000000000",
        "adversary.networks.stft_filters=1000000000",
        "adversary.networks.n_ffts=[1073741824]",
    ],
)
def test_sizes_that_no_machine_holds_are_refused_by_name(tiny, assignment):
    with pytest.raises(ConfigError, match=assignment.partition("=")[0].replace(".", r"\.")):
        tiny(assignment)
