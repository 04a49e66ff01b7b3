"""What jobs share: the limit of failures, the report and what the command line makes of it."""

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dmcodec import cli
from dmcodec.cli.terminal import show_reports
from dmcodec.jobs import Report, count_allowed, write_failures


@pytest.mark.parametrize(
    ("limit", "total", "allowed"),
    [
        ("0", 10, 0),
        ("100", 10, 100),
        (7, 10, 7),
        ("5%", 200, 10),
        ("5%", 199, 9),  # 9.95
        ("0.5%", 200, 1),
        ("2.9%", 1000, 29),  # 0.029 * 1000 is less than 29 in floating point
        ("100%", 3, 3),
        ("0%", 3, 0),
        ("1%", 0, 0),
    ],
)
def test_limit_is_a_number_or_a_percentage_rounded_down(limit, total, allowed):
    assert count_allowed(limit, total) == allowed


@pytest.mark.parametrize("limit", ["", "many", "-1", "1.5", "5 %", "%", "nan%", "1e3", "5%%", -1])
def test_other_limits_are_refused(limit):
    with pytest.raises(ValueError, match=r"neither a number \(100\) nor a percentage"):
        count_allowed(limit, 10)


def test_report_counts_and_says_where_failures_are_listed(tmp_path: Path) -> None:
    report = Report(total=20, num_done=3, num_before=6, failures=[{"id": "a", "reason": "gone"}])
    assert report.num_finished == 10
    assert report.describe() == "3 done, 6 were there, 1 failed"
    assert [report.is_beyond(limit) for limit in ("0", "1", "4%", "5%")] == [True, False] * 2

    report.listed_in = tmp_path / "failures.jsonl"
    assert report.describe() == "3 done, 6 were there, 1 failed (listed in failures.jsonl)"


def test_list_of_failures_is_there_only_with_failures(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    failures = [{"id": "ü", "audio": "a.wav", "reason": "gone"}, {"id": "b", "reason": name}]

    write_failures(tmp_path / "f.jsonl", failures)

    lines = (tmp_path / "f.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"id": "ü", "audio": "a.wav", "reason": "gone"}'
    assert [json.loads(line) for line in lines] == failures
    write_failures(tmp_path / "f.jsonl", [])
    assert not list(tmp_path.iterdir())


def test_every_report_is_shown_before_one_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [{"id": f"u{number}", "reason": "gone"} for number in range(25)]
    listed = Report(total=100, num_done=75, failures=failures, listed_in=tmp_path / "failed.jsonl")
    reports = {
        "one": listed,
        "two": Report(total=2, num_done=1, failures=[{"reason": "x.wav: gone"}]),
        "three": Report(total=1, num_done=1),
    }

    show_reports(reports, "50%")
    allowed = capsys.readouterr().err.splitlines()
    with pytest.raises(typer.Exit) as stop:
        show_reports(reports, "24%")

    assert allowed[:20] == [f"dmcodec: u{number}: gone" for number in range(20)]
    assert allowed[20:] == [
        "one: 75 done, 25 failed (listed in failed.jsonl)",
        "dmcodec: x.wav: gone",
        "two: 1 done, 1 failed",
    ]
    assert stop.value.exit_code == 1
    assert capsys.readouterr().err.splitlines()[20:] == [
        "one: 75 done, 25 failed (listed in failed.jsonl), more than --max-failures 24%",
        "dmcodec: x.wav: gone",
        "two: 1 done, 1 failed, more than --max-failures 24%",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["encode", "x.wav"],
        ["decode", "x.dmc"],
        ["reconstruct", "x.wav"],
        ["teach", "x.toml"],
        ["tokenize", "x.jsonl", "-o", "out"],
        ["evaluate", "x.jsonl", "--system", "a=opus:6"],
    ],
)
def test_limit_is_checked_before_any_work(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*words, "--max-failures", "5percent"])

    assert isinstance(result.exception, ValueError)
    assert "--max-failures '5percent' is neither a number" in str(result.exception)
