"""When Python looks for cycles: not in the middle of a step."""

from __future__ import annotations

import gc

from trainloop.hooks.events import RunEnd, RunFailed, RunStart, StepEnd
from trainloop.hooks.registry import Hooks


class GarbageCollection:
    """A bundle that turns automatic collection off during a run and collects between steps instead.

    On several ranks an automatic collection stops one of them at a time and all wait for it; collecting
    at the same step everywhere they wait once.

    Args:
        every: steps between two collections.
    """

    def __init__(self, every: int = 1000) -> None:
        if every < 1:
            raise ValueError(f"every must be 1 or more, found {every}")
        self._every = every
        self._was_on = False

    def attach(self, hooks: Hooks) -> None:
        hooks.on(RunStart, lambda _: self._begin())
        hooks.on(StepEnd, lambda _: gc.collect(), every=self._every)
        for event in (RunEnd, RunFailed):
            hooks.on(event, lambda _: self._end())

    def _begin(self) -> None:
        self._was_on = gc.isenabled()
        gc.collect()
        gc.disable()

    def _end(self) -> None:
        if self._was_on:
            gc.enable()
