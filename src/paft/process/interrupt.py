"""Signals that ask a run to stop: at once, or at the next place where nothing is lost."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

log = logging.getLogger("paft")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, and what schedulers send before they end a job."""


class Interrupted(BaseException):
    """A signal stopped the run. What is finished is in the store; what was begun goes on when it is run again."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that died of the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


_stopping = threading.Event()
"""Set when this process is on its way out: signals that schedulers repeat would only disturb it."""


def stop(signum: int) -> NoReturn:
    """Raise `Interrupted`; from now on only Ctrl-C is heard."""
    _stopping.set()
    raise Interrupted(signum)


def _stop_now(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGINT or not _stopping.is_set():
        stop(signum)


def stop_on_signals(*, take_over: bool = False) -> None:
    """From now on a signal raises `Interrupted` in the main thread, unless the process was told to ignore it.

    `take_over` replaces the handlers of whoever started this code, a launcher's for example.
    """
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN or take_over:
            signal.signal(signum, _stop_now)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by who started this process, until now


@contextmanager
def unheard() -> Iterator[None]:
    """Inside, signals wait; a process that is started here never hears of one, unless it lets them through."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """To the very end of this process, where Python's handlers are gone and a repeated signal would still kill it."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


class Postponed:
    """From `begin` to `end`, the first signal is only remembered; a second Ctrl-C stops at once.

    Schedulers send theirs more than once.

    Handlers that another program has set, such as a launcher's, stay in place.
    """

    def __init__(self) -> None:
        self.received = 0
        self._ours = [s for s in SIGNALS if _is_free(s)]
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        self._before = {s: signal.signal(s, self._remember) for s in self._ours}

    def end(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            stop(signum)
        if not self.received:
            log.info("%s: saving after this step; Ctrl-C stops at once", signal.Signals(signum).name)
        self.received = self.received or signum


def _is_free(signum: int) -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False  # Python lets no other thread set handlers
    return signal.getsignal(signum) in (_stop_now, signal.SIG_DFL, signal.default_int_handler)
