"""The routine of training - losses, data, batch size - changed at steps of the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainloop.engine import Engine
from trainloop.feed import shield_workers
from trainloop.hooks.events import BeforeLoad, RunStart, StepEnd
from trainloop.hooks.schedule import Entries, Schedule, Steps, starts_until
from trainloop.step import Feeder, StepContext, StepOutput

if TYPE_CHECKING:
    from trainloop.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Phase:
    """A routine: what is done with a batch, where batches come from, how many make a step.

    Attributes:
        name: in tables.
        feeder: turns a batch into a loss: the task, the losses, the length sequences are cut to.
        loader: batches of another size, length or task; None goes on with those of the phase before.
        accumulate: batches in a step; None goes on with the number of the phase before.
    """

    name: str
    feeder: Feeder
    loader: Iterable[Any] | None = None
    accumulate: int | None = None


class TrainSchedule(Schedule):
    """Phases of training: the feeder of the trainer, and with loaders in its phases (`loader`) its loader too.

    ```python
    phases = TrainSchedule({0: Phase("short", short, small), 1000: Phase("long", long, big)})
    hooks.attach(phases)
    Trainer(engines, phases.loader, phases, hooks=hooks, …)
    ```

    A phase with another loader begins a new epoch of it; the rest of the epoch before is left. When all loaders have
    `state_dict`/`load_state_dict` their positions are saved, and one that comes back goes on where it was.

    Args:
        phases: step to phase.

    Raises:
        ValueError: steps that do not go up; a loader in some phase and none in the first; loaders with and without a
            state; `accumulate` below 1.
    """

    name = "phases"
    order = 105

    def __init__(self, phases: Entries[Phase]) -> None:
        self._phases = Steps(self.name, phases)
        first = self._phases.values[0]
        loaders, accumulate = [first.loader], [first.accumulate]
        for phase in self._phases.values[1:]:
            if (loaders[-1] is None and phase.loader is not None) or (accumulate[-1] is None and phase.accumulate):
                raise ValueError(
                    f"{self.name}: {phase.name!r} has a loader or accumulate of its own and {first.name!r}, the first "
                    "phase, has not; give the first one what it starts with"
                )
            loaders.append(phase.loader if phase.loader is not None else loaders[-1])
            accumulate.append(phase.accumulate or accumulate[-1])
        for phase in self._phases.values:
            if phase.accumulate is not None and phase.accumulate < 1:
                raise ValueError(f"{self.name}: {phase.name!r} accumulates {phase.accumulate}; it must be 1 or more")
        self._loaders, self._accumulate = loaders, accumulate
        self._now = 0
        self.loader = None if first.loader is None else _phase_loader(self, loaders)

    def __call__(self, engine: Engine, batch: Any, ctx: StepContext) -> StepOutput | None:
        return self._phases.at(ctx.step).feeder(engine, batch, ctx)

    @property
    def current_loader(self) -> Iterable[Any]:
        """The loader of the phase the run is in."""
        loader = self._loaders[self._now]
        assert loader is not None
        return loader

    def apply(self, step: int) -> None:
        self._now = self._phases.index(step)

    def next_change(self, step: int) -> int | None:
        return self._phases.next_change(step)

    def knots(self, until: int) -> Iterable[int]:
        return starts_until(self._phases, until)

    def row(self, step: int) -> dict[str, float | str]:
        return {"phase": self._phases.at(step).name}

    def _enter(self, event: BeforeLoad | RunStart) -> None:
        if event.trainer.feeder is not self:
            raise ValueError(f"{self.name}: give it to the trainer as its feeder too: Trainer(engines, loader, phases)")
        if self.loader is not None and event.trainer.loader is not self.loader:
            raise ValueError(f"{self.name}: the phases have loaders; give the trainer phases.loader as its loader")
        super()._enter(event)
        self._set_accumulate(event.trainer)

    def _advance(self, event: StepEnd) -> None:
        before = self._now
        super()._advance(event)
        if self._now == before:
            return
        if self._loaders[self._now] is not self._loaders[before]:
            event.trainer.end_epoch()
        self._set_accumulate(event.trainer)

    def _set_accumulate(self, trainer: Trainer) -> None:
        wanted = self._accumulate[self._now]
        if wanted is not None:
            trainer.accumulate = wanted


class _PhaseLoader:
    """Iterates the loader of the phase the run is in."""

    def __init__(self, schedule: TrainSchedule) -> None:
        self._schedule = schedule

    def __iter__(self) -> Iterator[Any]:
        return iter(self._schedule.current_loader)


class _StatefulPhaseLoader(_PhaseLoader):
    """One whose loaders all know their position."""

    def __init__(self, schedule: TrainSchedule, loaders: list[Any]) -> None:
        super().__init__(schedule)
        self._loaders = loaders

    def state_dict(self) -> dict[str, Any]:
        return {"loaders": [loader.state_dict() for loader in self._loaders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for loader, own in zip(self._loaders, state["loaders"], strict=True):
            loader.load_state_dict(own)


def _phase_loader(schedule: TrainSchedule, loaders: list[Any]) -> Iterable[Any]:
    distinct = list({id(loader): loader for loader in loaders}.values())
    stateful = [hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in distinct]
    if len(set(stateful)) > 1:
        raise ValueError(
            f"{schedule.name}: some loaders save their position and some do not, and a resume restores either kind "
            "alone; give all of them state_dict and load_state_dict, or none"
        )
    for loader in distinct:
        shield_workers(loader)
    return _StatefulPhaseLoader(schedule, distinct) if all(stateful) else _PhaseLoader(schedule)
