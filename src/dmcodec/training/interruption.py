"""What ends a run after the step at hand, so that it can be saved first: a signal, or the clock."""

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

logger = logging.getLogger(__name__)


class Interruption:
    """While entered, notes the first Ctrl-C or SIGTERM; the second one acts as it always does.

    Signals that are ignored (Ctrl-C in a background job) stay so. Only the main thread can watch
    signals; elsewhere they are left as they are.

    Args:
        is_watching: False leaves them too. Processes that work together receive signals at
            different steps and would wait for each other: they go on from the last checkpoint.
    """

    def __init__(self, *, is_watching: bool) -> None:
        is_watching = is_watching and threading.current_thread() is threading.main_thread()
        self._signals = (signal.SIGINT, signal.SIGTERM) if is_watching else ()
        self._before: dict[signal.Signals, Any] = {}
        self._received: int | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether to save and call `leave`."""
        return self._received is not None

    def leave(self) -> None:
        """Does what the signal would have done, if one came: KeyboardInterrupt, exit code 143."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is not None:
            raise SystemExit(128 + signal.SIGTERM)

    def __enter__(self) -> Self:
        for number in self._signals:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        logger.warning("stopping after this step; once more stops at once")
        self._received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class Deadline:
    """The time after which a run begins no further step.

    Args:
        after_s: seconds from now; None: never.
        accelerator: several processes stop at the same step, by the clock of the main one.
    """

    def __init__(self, after_s: float | None, accelerator: Accelerator) -> None:
        self._end_s = None if after_s is None else time.monotonic() + after_s
        self._accelerator = accelerator

    @property
    def is_over(self) -> bool:
        """Whether to save and stop; all processes ask together and get the same answer."""
        if self._end_s is None:
            return False
        is_over = time.monotonic() >= self._end_s
        if self._accelerator.num_processes == 1:
            return is_over
        answer = torch.tensor([int(is_over)], device=self._accelerator.device)
        return bool(broadcast(answer, from_process=0))
