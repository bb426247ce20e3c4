"""The bar with the time left, and text that does not tear it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


def hms(seconds: float) -> str:
    """`3725` as `1:02:05`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"


class Progress:
    """A tqdm bar on stderr, refreshed a few times a second however fast the steps are.

    With a time budget the bar is the share of steps or of time that is used up, whichever is larger, because the
    time that so many steps would take says nothing then.

    Args:
        enabled: off, every method but `say` does nothing.
        total: optimizer steps in all, or None.
        initial: steps done before this run.
        budget: seconds of training in all, or None.
    """

    def __init__(self, enabled: bool, total: int | None, initial: int = 0, budget: float | None = None) -> None:
        self._total, self._budget = total, budget
        self._bar: tqdm[Any] | None = None
        self._next = 0.0
        if not enabled:
            return
        if budget is None:
            self._bar = tqdm(total=total, initial=initial, dynamic_ncols=True, unit="step", mininterval=0.0)
        else:
            form = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}{postfix}]"
            self._bar = tqdm(total=1.0, desc=f"step {initial}", dynamic_ncols=True, mininterval=0.0, bar_format=form)

    @property
    def wanted(self) -> bool:
        """Whether the bar is about to be redrawn, so that the caller formats numbers only then."""
        return self._bar is not None and time.monotonic() >= self._next

    def update(self, step: int, metrics: Mapping[str, Any], elapsed: float) -> None:
        if self._bar is None:
            return
        self._next = time.monotonic() + 0.25
        shown = {k: f"{v:.4g}" for k, v in metrics.items() if isinstance(v, float)}
        if self._budget is None:
            self._bar.n = step
        else:
            shown["left"] = hms(max(0.0, self._budget - elapsed))
            self._bar.n = min(1.0, max(step / self._total if self._total else 0.0, elapsed / self._budget))
            self._bar.set_description_str(f"step {step}", refresh=False)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Print a line to stderr, above the bar."""
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class ProgressHandler(logging.Handler):
    """Prints log records to stderr above any progress bar: `logging.getLogger().addHandler(ProgressHandler())`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
