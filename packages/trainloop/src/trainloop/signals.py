"""Stopping on SIGINT and SIGTERM at a step's end instead of in the middle of it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DataWaitInterrupted(BaseException):
    """A stop was asked for and the loader has not delivered a batch since."""


class StopSignals:
    """Context manager: the first signal sets `received`, a second one raises.

    The handlers do nothing in forked children, so that Ctrl-C on a whole process group does not take the
    loader's workers before the run has saved. Off the main thread nothing is installed.

    Args:
        grace: seconds the loader may keep a stopping run waiting before the wait is broken off.
        on_first: called with the signal's number, inside the handler.
    """

    def __init__(self, grace: float = 5.0, on_first: Callable[[int], None] | None = None) -> None:
        self.received: int | None = None
        self._grace = grace
        self._on_first = on_first
        self._pid = os.getpid()
        self._old: dict[int, object] = {}
        self._waiting_since: float | None = None
        self._break = False
        self._closed = threading.Event()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for number, old in self._old.items():
            signal.signal(number, old)  # type: ignore[arg-type]
        self._old = {}

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """Mark a block as waiting for data, which a stopping run may break off.

        Raises:
            DataWaitInterrupted: a stop was asked for and `grace` seconds passed.
        """
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self._break:
            self._break = False
            if self._waiting_since is not None:
                raise DataWaitInterrupted
            return
        if self.received is None:
            self.received = number
            threading.Thread(target=self._watch_data_wait, name="trainloop-stop", daemon=True).start()
            if self._on_first is not None:
                self._on_first(number)
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _watch_data_wait(self) -> None:
        main = threading.main_thread().ident
        while not self._closed.wait(0.05):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._grace and main is not None:
                self._break = True
                if hasattr(signal, "pthread_kill"):
                    signal.pthread_kill(main, signal.SIGTERM)
                else:
                    signal.raise_signal(signal.SIGINT)
                return


def ignore_stop_signals(_worker_id: int = 0) -> None:
    """For `DataLoader(worker_init_fn=…)`: the worker outlives a Ctrl-C or SIGTERM sent to its group.

    A SIGTERM from its own parent still ends it, which is how a loader removes a worker that hangs. Where
    the sender cannot be told (macOS, Windows) the first SIGTERM is ignored and the second ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent_alone, name="trainloop-shield", daemon=True).start()
        return

    def first(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first)


def end_with_parent(parent: int) -> None:
    """For a loader's worker on Linux: end when the process that forked it is killed.

    A worker holds copies of its parent's sockets. While it lives no other rank sees the connection close, and
    waits; torch's own workers look every five seconds, and never notice a parent that died while they started.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the call


def _obey_parent_alone() -> None:
    parent = os.getppid()
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(128 + signal.SIGTERM)
