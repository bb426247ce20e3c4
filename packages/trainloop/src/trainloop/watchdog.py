"""Says where a run is when it does not get on."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from typing import Any, TextIO

from trainloop.hooks.events import AfterEval, AfterExport, AfterSave, RunEnd, RunFailed, RunStart, StepEnd
from trainloop.hooks.registry import Hooks


class Watchdog:
    """A bundle that prints the stack of every thread when no step, evaluation, save or export ended for too long.

    It prints once per silence, and does not stop anything: what hangs in a collective ends by the process
    group's own timeout.

    Args:
        seconds: the longest silence to accept.
        file: where to print; stderr by default. It needs a file descriptor.
    """

    def __init__(self, seconds: float, file: TextIO | None = None) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, found {seconds}")
        self.seconds, self._file = seconds, file
        self._last = 0.0
        self._stop = threading.Event()

    def attach(self, hooks: Hooks) -> None:
        hooks.on(RunStart, self._start)
        for event in (StepEnd, AfterEval, AfterSave, AfterExport):
            hooks.on(event, self._alive)
        for event in (RunEnd, RunFailed):
            hooks.on(event, lambda _: self._stop.set())

    def _start(self, _: RunStart) -> None:
        self._last = time.monotonic()
        self._stop = threading.Event()
        threading.Thread(target=self._watch, args=(self._stop,), name="trainloop-watchdog", daemon=True).start()

    def _alive(self, _: Any) -> None:
        self._last = time.monotonic()

    def _watch(self, stop: threading.Event) -> None:
        said = -1.0
        while not stop.wait(min(1.0, self.seconds / 4)):
            last = self._last
            if last != said and time.monotonic() - last > self.seconds:
                said = last
                file = self._file or sys.stderr
                print(f"no step for {self.seconds:g} s; every thread is here:", file=file, flush=True)
                faulthandler.dump_traceback(file=file, all_threads=True)
