import io
import logging

from rich.console import Console

from dmcodec.training.display import Display


def show(is_terminal: bool, width: int = 60) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=width)
    with Display(10, 100, is_shown=True, console=console) as display:
        display.update(40, 2.0, "loss 1.25  mel 0.125  feature_matching 3.500  codes used 99%")
    return console.file.getvalue()


def test_log_file_gets_one_plain_line(caplog):
    with caplog.at_level(logging.INFO):
        output = show(is_terminal=False)

    assert output == ""
    expected = "step 40/100, 0:00:30 left: loss 1.25  mel 0.125  feature_matching 3.500"
    assert [record.message.startswith(expected) for record in caplog.records] == [True]


def test_narrow_terminal_shows_every_figure(caplog):
    with caplog.at_level(logging.INFO):
        output = show(is_terminal=True, width=60)

    assert caplog.records == []
    for figure in ("40/100", "1.25", "0.125", "3.500", "99%"):
        assert figure in output


def test_other_processes_show_nothing(caplog):
    console = Console(file=io.StringIO(), force_terminal=True)
    with caplog.at_level(logging.INFO), Display(0, 9, is_shown=False, console=console) as display:
        display.update(1, 1.0, "loss 1")

    assert console.file.getvalue() == ""
    assert caplog.records == []
