"""Which engines train when, and running averages of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from trainloop.engine import Engine, Role
from trainloop.engines import Engines
from trainloop.hooks.curve import Curve, as_curve
from trainloop.hooks.events import AfterOptimizerStep, RunEnd, RunFailed, RunStart
from trainloop.hooks.registry import Hooks
from trainloop.hooks.schedule import Entries, Schedule, Steps, pairs, starts_until


class ModelSchedule(Schedule):
    """Says which engines train from which step on; engines it never mentions are left alone.

    ```python
    ModelSchedule(engines, {0: ["d"], 5: ["g"]}, period=6)  # five steps of d, one of g, again and again
    ModelSchedule(engines, {0: ["big"], 1000: {"small": "train", "big": "teacher"}})
    ```

    An engine that is mentioned and does not train is `frozen`: it rests, and its optimizer with it. One handed over
    as `teacher` is in `engines.teachers`, in evaluation mode, and is still saved. Take its output under
    `torch.no_grad()`, as `Distillation` does.

    Args:
        engines: of the run.
        steps: step to the names of those that train, or name to role (`train`, `frozen`, `teacher`).
        period: go through the steps again every so many.

    Raises:
        ValueError: steps that do not go up, an unknown engine or role, nobody training, an engine without optimizer.
    """

    name = "models"
    order = 110

    def __init__(
        self, engines: Engines, steps: Entries[Sequence[str] | Mapping[str, Role]], period: int | None = None
    ) -> None:
        self._engines = engines
        self._steps = Steps(self.name, [(start, _roles(value)) for start, value in pairs(steps)], period)
        self._ruled = list(dict.fromkeys(name for roles in self._steps.values for name in roles))
        for start, roles in zip(self._steps.starts, self._steps.values, strict=True):
            self._check(f"{self.name} at step {start}", roles)
        self._own = {name: engines[name].role for name in self._ruled}
        self._modes = [(m, m.training) for name in self._ruled for m in engines[name].module.modules()]

    def apply(self, step: int) -> None:
        roles = self._steps.at(step)
        for name in self._ruled:
            engine, role = self._engines[name], roles.get(name, "frozen")
            if engine.role != role and "teacher" in (engine.role, role):
                engine.module.eval()
                if role != "teacher":
                    self._restore_modes(engine)
            engine.role = role

    def next_change(self, step: int) -> int | None:
        return self._steps.next_change(step)

    def knots(self, until: int) -> Iterable[int]:
        return starts_until(self._steps, until)

    def row(self, step: int) -> dict[str, float | str]:
        roles = self._steps.at(step)
        others = [f"{name} ({role})" for name, role in roles.items() if role != "train"]
        return {"training": ", ".join([n for n, role in roles.items() if role == "train"] + others)}

    def attach(self, hooks: Hooks) -> None:
        super().attach(hooks)
        for event in (RunEnd, RunFailed):
            hooks.on(event, lambda _: self._leave())

    def _leave(self) -> None:
        """What is saved goes by the roles the engines were made with, in a second run as in the first."""
        for name, role in self._own.items():
            self._engines[name].role = role

    def _restore_modes(self, engine: Engine) -> None:
        mine = set(engine.module.modules())
        for module, training in self._modes:
            if module in mine:
                module.training = training

    def _check(self, who: str, roles: Mapping[str, Role]) -> None:
        for name, role in roles.items():
            if name not in self._engines:
                raise ValueError(f"{who}: there is no engine {name!r}; there are {', '.join(self._engines)}")
            if role not in ("train", "frozen", "teacher"):
                raise ValueError(f"{who}: the role of {name!r} must be train, frozen or teacher, found {role!r}")
            if role == "train" and self._engines[name].optimizer is None:
                raise ValueError(f"{who}: engine {name!r} has no optimizer and cannot train; give it one")
            if self._engines[name].role == "teacher":
                raise ValueError(
                    f"{who}: engine {name!r} is made as a teacher, which is not saved; "
                    "make it with role train or frozen"
                )
        others = [e for e in self._engines.trained if e.name not in self._ruled]
        if "train" not in roles.values() and not others:
            raise ValueError(f"{who}: no engine would train; name one")


class EMACopy:
    """A bundle that keeps an engine's running average in another engine: copy = d copy + (1 - d) source.

    The copy is an engine with role `frozen`, so it is saved with the run and resumed with it; the feeder finds it in
    `ctx.engines`. It starts as the source is at the first step. Buffers are copied as they are.

    Args:
        source: averaged after each of its optimizer steps.
        copy: an engine over a module of the same form.
        decay: d, from 0 to 1: a number, or a curve or function of the run's step.
        every: average after every so many of the run's steps.

    Raises:
        ValueError: the copy is not frozen, or the modules differ in their names or shapes; `decay` out of range.
    """

    def __init__(
        self, source: Engine, copy: Engine, decay: float | Curve | Callable[[int], float] = 0.999, every: int = 1
    ) -> None:
        self.name = f"{copy.name}.ema"
        if copy.role != "frozen":
            raise ValueError(f"{self.name}: engine {copy.name!r} must have role frozen, found {copy.role!r}")
        if every < 1 or not (callable(decay) or 0.0 <= decay <= 1.0):
            raise ValueError(f"{self.name}: decay must be in 0 to 1 and every from 1, found {decay} and {every}")
        shapes = [{k: v.shape for k, v in e.bare_module.state_dict().items()} for e in (source, copy)]
        if shapes[0] != shapes[1]:
            wrong = sorted({k for k, _ in shapes[0].items() ^ shapes[1].items()})[0]
            raise ValueError(f"{self.name}: {source.name!r} and {copy.name!r} differ, first in {wrong}")
        self._source, self._copy, self._decay, self._every = source, copy, as_curve(decay), every

    def attach(self, hooks: Hooks) -> None:
        hooks.on(RunStart, self._begin)
        hooks.on(AfterOptimizerStep, self._average)

    def _begin(self, event: RunStart) -> None:
        if event.step == 0:
            self._copy.bare_module.load_state_dict(self._source.bare_module.state_dict())

    @torch.no_grad()
    def _average(self, event: AfterOptimizerStep) -> None:
        if event.engine is not self._source or event.step % self._every:
            return
        weight = 1.0 - self._decay(event.step)
        ours: list[torch.Tensor] = list(self._copy.bare_module.parameters())
        theirs: list[torch.Tensor] = list(self._source.bare_module.parameters())
        torch._foreach_lerp_(ours, theirs, weight)
        for mine, buffer in zip(self._copy.bare_module.buffers(), self._source.bare_module.buffers(), strict=True):
            mine.copy_(buffer)


def _roles(value: Sequence[str] | Mapping[str, Role]) -> dict[str, Role]:
    if isinstance(value, str):
        raise ValueError(f"models: expected a list of names, found {value!r}; write [{value!r}]")
    return dict(value) if isinstance(value, Mapping) else dict.fromkeys(value, "train")
