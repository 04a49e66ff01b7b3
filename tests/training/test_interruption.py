import signal
import threading
from collections.abc import Iterator

import pytest

from dmcodec.training.interruption import Interruption


@pytest.fixture(autouse=True)
def _foreground() -> Iterator[None]:
    """As in a terminal; a background job ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_first_signal_is_noted_and_the_second_acts():
    with Interruption(is_watching=True) as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.is_asked_for
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_leaving_does_what_the_signal_would_have_done(number, expected):
    with Interruption(is_watching=True) as interruption:
        signal.raise_signal(number)
        with pytest.raises(expected):
            interruption.leave()


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)

    with Interruption(is_watching=True) as interruption:
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert not interruption.is_asked_for


def test_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    with Interruption(is_watching=True) as interruption:
        signal.raise_signal(signal.SIGINT)

    assert not interruption.is_asked_for
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_other_threads_and_joint_processes_do_not_watch():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with Interruption(is_watching=True):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with Interruption(is_watching=False):
        seen.append(signal.getsignal(signal.SIGINT))

    assert seen == [before, before]
