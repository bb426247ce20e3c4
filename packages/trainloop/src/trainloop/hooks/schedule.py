"""What is done at which step: the common part of the schedules, and tables and pictures of what they will do."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trainloop.hooks.curve import Curve
from trainloop.hooks.events import BeforeLoad, RunStart, StepEnd
from trainloop.hooks.extras import require
from trainloop.hooks.registry import Hooks

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from trainloop.engine import Engine

T = TypeVar("T")
Entries = Mapping[int, T] | Sequence[tuple[int, T]]


def pairs(entries: Entries[T]) -> list[tuple[int, T]]:
    """The entries of a mapping, or those given one by one."""
    return list(entries.items()) if isinstance(entries, Mapping) else list(entries)


class Steps(Generic[T]):
    """What holds from which step on, until the next one.

    Args:
        who: the schedule, for messages.
        entries: step to what holds from there; the first step is 0.
        period: the entries are gone through again every so many steps.

    Raises:
        ValueError: no entry, steps that are negative, do not start at 0 or do not go up, or reach the period.
    """

    def __init__(self, who: str, entries: Entries[T], period: int | None = None) -> None:
        self.starts = [start for start, _ in pairs(entries)]
        self.values = [value for _, value in pairs(entries)]
        self.period = period
        for start in self.starts:
            if not isinstance(start, int) or start < 0:
                raise ValueError(f"{who}: a step must be a whole number from 0, found {start!r}")
        for before, after in zip(self.starts, self.starts[1:], strict=False):
            if after <= before:
                how = "twice" if after == before else f"after {before}"
                raise ValueError(f"{who}: steps must go up, each once; found {after} {how}. Write them in order")
        if not self.starts or self.starts[0] != 0:
            found = self.starts[0] if self.starts else "no step"
            raise ValueError(f"{who}: the first step must be 0, found {found}; say what holds from the start")
        if period is not None and period <= self.starts[-1]:
            raise ValueError(
                f"{who}: the period must be longer than its last step {self.starts[-1]}, found {period}; "
                "what begins there would never be reached"
            )

    def index(self, step: int) -> int:
        return bisect_right(self.starts, step if self.period is None else step % self.period) - 1

    def at(self, step: int) -> T:
        return self.values[self.index(step)]

    def next_change(self, step: int) -> int | None:
        """The first step after `step` at which something else holds, or None."""
        round_, offset = (0, step) if self.period is None else divmod(step, self.period)
        following = bisect_right(self.starts, offset)
        if following < len(self.starts):
            return round_ * (self.period or 0) + self.starts[following]
        return None if self.period is None else (round_ + 1) * self.period


class Schedule:
    """Something set at exact steps of the run. What it sets is a function of the step alone, so it has no state.

    `apply(step)` is called when `step` steps are done, before the next one is trained: at the start of a run, before
    a checkpoint of that step is loaded (states may depend on what it sets), and then at the steps that
    `next_change` names. Schedules act after the other hooks of a `StepEnd`. In a loop written by hand, call `apply`
    before each step.

    Attributes:
        name: what it is attached under; two on one registry need different ones.
        order: lower ones act first.
    """

    name: str = ""
    order: int = 100
    _next: float = 0

    def apply(self, step: int) -> None:
        """Set everything as it has to be for the step after `step` finished ones."""
        raise NotImplementedError

    def next_change(self, step: int) -> int | None:
        """The first step after `step` at which `apply` has something to do, or None for never."""
        raise NotImplementedError

    def knots(self, until: int) -> Iterable[int]:
        """Steps up to `until` at which a table says what holds."""
        raise NotImplementedError

    def row(self, step: int) -> dict[str, float | str]:
        """What holds at `step`, by column of the table."""
        raise NotImplementedError

    def attach(self, hooks: Hooks) -> None:
        hooks.on(BeforeLoad, self._enter, order=self.order)
        hooks.on(RunStart, self._enter, order=self.order)
        hooks.on(StepEnd, self._advance, order=self.order)

    def describe(self, until: int) -> str:
        """A table of what this schedule does up to step `until`; see `describe`."""
        return describe(self, until=until)

    def _enter(self, event: BeforeLoad | RunStart) -> None:
        self._set(event.step)

    def _advance(self, event: StepEnd) -> None:
        if event.step >= self._next:
            self._set(event.step)

    def _set(self, step: int) -> None:
        self.apply(step)
        following = self.next_change(step)
        self._next = float("inf") if following is None else following


def optimizer_of(engine: Engine) -> torch.optim.Optimizer:
    """The engine's optimizer.

    Raises:
        ValueError: it has none.
    """
    if engine.optimizer is None:
        raise ValueError(f"engine {engine.name!r} has no optimizer, so there is nothing to schedule; give it one")
    return engine.optimizer


def soonest(step: int, parts: Iterable[Curve | Steps[Any]]) -> int | None:
    """The first step after `step` at which one of the parts changes."""
    return min((n for part in parts if (n := part.next_change(step)) is not None), default=None)


def starts_until(steps: Steps[Any], until: int) -> list[int]:
    """The steps up to `until` at which something else begins to hold, repetitions included."""
    found, step = [0], steps.next_change(0)
    while step is not None and step <= until:
        found.append(step)
        step = steps.next_change(step)
    return found


def describe(*schedules: Schedule, until: int) -> str:
    """A table of what the schedules will do together: a row for every step up to `until` where one turns.

    Between two rows a number moves from the one to the other, and everything else stays as in the upper one.
    """
    rows = _rows(schedules, until)
    columns = list(dict.fromkeys(c for _, row in rows for c in row))
    cells = [["step", *columns]]
    cells += [[str(step), *(_text(row.get(c, "")) for c in columns)] for step, row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "-+-".join("-" * w for w in widths), *lines[1:]])


def plot(*schedules: Schedule, until: int, path: str | Path | None = None) -> Figure:
    """A picture of what the schedules will do: one axis for each number, and one for each thing that is switched.

    Args:
        until: the last step drawn.
        path: where to write it, in the format of its suffix; None to write nothing.

    Raises:
        ImportError: matplotlib is not installed (`pip install trainloop[plot]`).
    """
    matplotlib_figure = require("matplotlib.figure", "plot()")
    steps = sorted({*range(0, until + 1, max(1, until // 500)), *(s for s, _ in _rows(schedules, until))})
    rows = [{k: v for schedule in schedules for k, v in schedule.row(step).items()} for step in steps]
    columns = list(dict.fromkeys(c for row in rows for c in row))
    figure: Figure = matplotlib_figure.Figure(figsize=(8.0, 1.0 + 1.2 * len(columns)), layout="constrained")
    for column, axis in zip(columns, figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0], strict=True):
        values = [row.get(column, "") for row in rows]
        axis.plot(steps, values, drawstyle="default" if isinstance(values[0], float) else "steps-post")
        axis.set_title(column, loc="left", fontsize="small")
    axis.set_xlabel("step")
    if path is not None:
        figure.savefig(path)
    return figure


def _rows(schedules: Sequence[Schedule], until: int) -> list[tuple[int, dict[str, float | str]]]:
    knots = sorted({0, *(k for schedule in schedules for k in schedule.knots(until) if 0 <= k <= until)})
    return [(k, {c: v for schedule in schedules for c, v in schedule.row(k).items()}) for k in knots]


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
