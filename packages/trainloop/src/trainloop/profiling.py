"""A profile of a few steps in the middle of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainloop.hooks.events import RunEnd, RunFailed, RunStart, StepEnd
from trainloop.hooks.registry import Hooks


class ProfileWindow:
    """A bundle that profiles the steps after `start` up to `stop` and writes a trace for Perfetto.

    Args:
        folder: gets `trace-<start>-<stop>.json`.
        start, stop: global steps; a run resumed inside the window profiles what is left of it.
        options: for `torch.profiler.profile` (`record_shapes`, `profile_memory`, …).

    Raises:
        ValueError: `stop` is not beyond `start`.
    """

    def __init__(self, folder: str | Path, start: int, stop: int, **options: Any) -> None:
        if not 0 <= start < stop:
            raise ValueError(f"a window needs 0 <= start < stop, found {start} and {stop}")
        self.path = Path(folder) / f"trace-{start}-{stop}.json"
        self._start, self._stop, self._options = start, stop, options
        self._profile: torch.profiler.profile | None = None

    def attach(self, hooks: Hooks) -> None:
        for event in (RunStart, StepEnd):
            hooks.on(event, lambda e: self._at(e.step))
        for event in (RunEnd, RunFailed):
            hooks.on(event, lambda _: self._finish())

    def _at(self, step: int) -> None:
        if self._profile is None and self._start <= step < self._stop:
            self._profile = torch.profiler.profile(**self._options)
            self._profile.start()
        elif self._profile is not None and step >= self._stop:
            self._finish()

    def _finish(self) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.path))
        self._profile = None
