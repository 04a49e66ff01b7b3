import errno
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmcodec.audio import read_audio, write_audio
from dmcodec.corpus.manifest import Utterance, read_manifest
from dmcodec.evaluation.execution import HereExecutor
from dmcodec.evaluation.reconstruct import SystemRun, fit_length, prepare_originals, run_system
from dmcodec.evaluation.systems.parsing import parse_systems
from dmcodec.evaluation.systems.system import ORIGINAL
from dmcodec.evaluation.workspace import Workspace


def ignore(done: int, total: int) -> None:
    """No progress is shown."""


@pytest.fixture
def prepared(tmp_path: Path, manifest: Path) -> tuple[Workspace, list[str]]:
    workspace, utterances = Workspace(tmp_path / "out"), read_manifest(manifest)
    assert prepare_originals(utterances, workspace, ignore) == {}
    return workspace, [u.id for u in utterances]


def run(prepared: tuple[Workspace, list[str]], text: str, delay: int | None = None) -> SystemRun:
    workspace, ids = prepared
    delays = {} if delay is None else {"x": delay}
    (spec,) = parse_systems([text], {}, delays)
    return run_system(
        spec, ids, workspace, HereExecutor(), device="cpu", is_own_process=False, progress=ignore
    )


def sound(prepared: tuple[Workspace, list[str]], system: str, clip: str = "a/one") -> np.ndarray:
    return read_audio(prepared[0].sound_path(system, clip))


def test_originals_are_16_khz_mono_without_offset(tmp_path: Path, speech: np.ndarray) -> None:
    stereo = np.stack([speech[:8_000] + 0.25, speech[:8_000] + 0.15], axis=1)
    soundfile.write(tmp_path / "x.wav", stereo, 32_000, subtype="FLOAT")
    workspace = Workspace(tmp_path / "out")

    prepare_originals([Utterance(id="x", audio=tmp_path / "x.wav")], workspace, ignore)

    waveform = read_audio(workspace.sound_path(ORIGINAL, "x"))
    assert len(waveform) == 4_000
    assert abs(float(waveform.mean())) < 1e-5


def test_segments_of_one_file_are_clips_of_their_own(tmp_path: Path, speech: np.ndarray) -> None:
    write_audio(tmp_path / "long.wav", speech[:24_000])
    segments = [
        Utterance(
            id=f"s{start}", audio=tmp_path / "long.wav", start_samples=start, num_samples=8_000
        )
        for start in (0, 16_000)
    ]
    workspace = Workspace(tmp_path / "out")

    assert prepare_originals(segments, workspace, ignore) == {}

    for start in (0, 16_000):
        expected = read_audio(tmp_path / "long.wav", start_samples=start, num_samples=8_000)
        original = read_audio(workspace.sound_path(ORIGINAL, f"s{start}"))
        np.testing.assert_allclose(original, expected - expected.mean(), atol=1 / 32768)

    moved = [segments[0].model_copy(update={"start_samples": 8_000})]
    prepare_originals(moved, workspace, ignore)
    again = read_audio(workspace.sound_path(ORIGINAL, "s0"))
    expected = read_audio(tmp_path / "long.wav", start_samples=8_000, num_samples=8_000)
    np.testing.assert_allclose(again, expected - expected.mean(), atol=1 / 32768)


def test_unreadable_original_is_left_out_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    utterances = [
        Utterance(id="broken", audio=tmp_path / "broken.wav"),
        Utterance(id="gone", audio=tmp_path / "gone.wav"),
    ]

    failures = prepare_originals(utterances, Workspace(tmp_path / "out"), ignore)

    assert "cannot be read as sound" in failures["broken"]
    assert "no such file" in failures["gone"]


def test_lengths_are_cut_or_continued_with_silence_at_the_end() -> None:
    waveform = np.arange(1, 5, dtype=np.float32)

    assert fit_length(waveform, 3).tolist() == [1, 2, 3]
    assert fit_length(waveform, 6).tolist() == [1, 2, 3, 4, 0, 0]


def test_a_copying_system_gives_the_originals(prepared: tuple[Workspace, list[str]]) -> None:
    result = run(prepared, "x=command:cp {in} {out}")

    assert (result.num_done, result.num_kept, result.failures) == (3, 0, {})
    np.testing.assert_array_equal(sound(prepared, "x"), sound(prepared, ORIGINAL))


def test_known_delay_is_cut_from_the_start(prepared: tuple[Workspace, list[str]]) -> None:
    run(prepared, "x=command:cp {in} {out}", delay=320)

    original = sound(prepared, ORIGINAL)
    expected = np.concatenate([original[320:], np.zeros(320, np.float32)])
    np.testing.assert_array_equal(sound(prepared, "x"), expected)


def test_second_run_keeps_everything(
    prepared: tuple[Workspace, list[str]], codec_folder: Path
) -> None:
    first = run(prepared, f"x=dmcodec:{codec_folder}@1:2")
    again = run(prepared, f"x=dmcodec:{codec_folder}@1:2")
    other = run(prepared, f"x=dmcodec:{codec_folder}@1:3")

    assert [(r.num_done, r.num_kept) for r in (first, again, other)] == [(3, 0), (0, 3), (3, 0)]
    assert first.first_packet_s == again.first_packet_s
    assert prepared[0].read_codes("x", "b/three").shape == (3, 80)


def test_changed_or_lost_sound_is_made_again(
    prepared: tuple[Workspace, list[str]], codec_folder: Path
) -> None:
    workspace = prepared[0]
    text = f"x=dmcodec:{codec_folder}@1"
    run(prepared, text)
    workspace.sound_path("x", "a/one").unlink()
    (workspace.sound_path("x", "a/two").with_suffix(".json")).write_text("{cut sho")

    assert run(prepared, text).num_done == 2


def test_failures_are_reported_clip_by_clip(
    prepared: tuple[Workspace, list[str]], tmp_path: Path, speech: np.ndarray
) -> None:
    folder = tmp_path / "made"
    (folder / "a").mkdir(parents=True)
    write_audio(folder / "a" / "one.wav", speech[:9_000])
    (folder / "a" / "two.wav").write_bytes(b"RIFF")

    result = run(prepared, f"x=folder:{folder}")

    assert result.num_done == 1
    assert "cannot be read" in result.failures["a/two"]
    assert "no such sound file" in result.failures["b/three"]
    record = prepared[0].read_sound_record("x", "a/one")
    assert record is not None
    assert record.length_difference_samples == 9_000 - 19_200


def test_silence_is_noticed(prepared: tuple[Workspace, list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "made" / "a"
    folder.mkdir(parents=True)
    write_audio(folder / "one.wav", np.zeros(8_000, np.float32))

    run(prepared, f"x=folder:{folder.parent}")

    record = prepared[0].read_sound_record("x", "a/one")
    assert record is not None
    assert record.is_silent


def test_what_cannot_be_written_is_no_fault_of_the_clips(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *sound: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("dmcodec.evaluation.reconstruct.write_audio", refuse)

    with pytest.raises(OSError, match="Read-only file system"):
        prepare_originals(read_manifest(manifest), Workspace(tmp_path / "out"), ignore)


def test_sound_made_by_a_killed_job_is_not_taken_for_the_one_on_record(
    prepared: tuple[Workspace, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = f"{sys.executable} -c 'import sys, soundfile as s; x, r = s.read(sys.argv[1]);"
    quiet = f"x=command:{quiet} s.write(sys.argv[2], x / 2, r)' {{in}} {{out}}"
    copy = "x=command:cp {in} {out}"
    run(prepared, copy)
    expected = sound(prepared, "x")

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the sound is there, its record not yet
        patch.setattr(Workspace, "write_sound_record", die)
        with pytest.raises(KeyboardInterrupt):
            run(prepared, quiet)
    assert not np.array_equal(sound(prepared, "x"), expected)
    run(prepared, copy)

    np.testing.assert_array_equal(sound(prepared, "x"), expected)


@pytest.mark.parametrize("text", ["", "[]", '{"facts": 3}', "[" * 100_000])
def test_damaged_facts_of_a_system_are_as_none(
    prepared: tuple[Workspace, list[str]], text: str
) -> None:
    run(prepared, "x=command:cp {in} {out}")
    prepared[0].system_path("x").write_text(text)

    again = run(prepared, "x=command:cp {in} {out}")

    assert (again.num_kept, again.first_packet_s) == (3, None)
