"""An optimizer's settings over the steps, by group; and another optimizer from some step on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainloop.engine import Engine
from trainloop.hooks.curve import Curve, as_curve
from trainloop.hooks.patterns import covers, names_by_pattern
from trainloop.hooks.schedule import Entries, Schedule, Steps, optimizer_of, pairs, soonest, starts_until

Number = float | Curve | Callable[[int], float]
Setting = Number | tuple[Number, ...]  # betas are a tuple


@dataclass(frozen=True, slots=True)
class Switch:
    """Another optimizer.

    Attributes:
        make: makes it from the engine's bare module, with groups of the same names where those have names.
        carry: which of the state of the one before each parameter takes along, old name to new name:
            `{"exp_avg": "momentum_buffer"}`. The rest starts anew; what the one before held is dropped.
    """

    make: Callable[[nn.Module], torch.optim.Optimizer]
    carry: Mapping[str, str] = field(default_factory=dict)


class OptimSchedule(Schedule):
    """Sets what an optimizer's groups hold beside the learning rate, and switches the optimizer at a step.

    ```python
    OptimSchedule(
        engine,
        {"betas": (ramp(0.95, 0.85, 500), 0.999), "weight_decay": {"norms": 0.0, "*": ramp(0.1, 0.0, 1000)}},
        switch={2000: Switch(lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9))},
    )
    ```

    Args:
        engine: whose optimizer.
        settings: key of a group to a number, a curve, a function of the step, or a tuple of those; or to a mapping
            from patterns of group names (see `param_groups`) to these, of which the first that fits counts. A group
            whose optimizer has no such key is passed over.
        switch: step to the optimizer from there; before, it is the engine's own.

    Raises:
        ValueError: `lr` among the settings, a key or a pattern that no optimizer has, steps that do not go up, an
            engine whose optimizer cannot be replaced, or another one without the groups that the first has.
    """

    order = 120

    def __init__(
        self,
        engine: Engine,
        settings: Mapping[str, Setting | Mapping[str, Setting]] | None = None,
        *,
        switch: Entries[Switch] | None = None,
    ) -> None:
        self.name = f"{engine.name}.optim"
        own = optimizer_of(engine)
        later = pairs(switch or ())
        if later:
            engine.set_optimizer(own)  # refused here rather than at the step
        self._engine = engine
        self._switches = Steps(self.name, [(0, Switch(lambda _: own)), *later])
        self._optimizers = [own, *(s.make(engine.bare_module) for _, s in later)]
        self._settings = {key: _by_group(setting) for key, setting in (settings or {}).items()}
        self._check()

    def apply(self, step: int) -> None:
        index = self._switches.index(step)
        optimizer = self._optimizers[index]
        if self._engine.optimizer is not optimizer:
            self._switch(optimizer_of(self._engine), optimizer, self._switches.values[index].carry)
        for key, by_pattern in self._settings.items():
            for group in optimizer.param_groups:
                setting = _first(by_pattern, group)
                if setting is not None and key in group:
                    values = [curve(step) for curve in setting]
                    group[key] = tuple(values) if isinstance(group[key], tuple) else values[0]

    def next_change(self, step: int) -> int | None:
        return soonest(step, [self._switches, *self._curves()])

    def knots(self, until: int) -> Iterable[int]:
        return [*starts_until(self._switches, until), *(k for c in self._curves() for k in c.knots), until]

    def row(self, step: int) -> dict[str, float | str]:
        row: dict[str, float | str] = {}
        if len(self._optimizers) > 1:
            row[f"{self._engine.name}.optimizer"] = type(self._optimizers[self._switches.index(step)]).__name__
        for key, by_pattern in self._settings.items():
            for pattern, setting in by_pattern.items():
                column = f"{self._engine.name}.{key}" + ("" if pattern == "*" else f"[{pattern}]")
                values = [curve(step) for curve in setting]
                row[column] = values[0] if len(values) == 1 else ", ".join(f"{v:.4g}" for v in values)
        return row

    def _curves(self) -> list[Curve]:
        return [c for by_pattern in self._settings.values() for setting in by_pattern.values() for c in setting]

    def _switch(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer, carry: Mapping[str, str]) -> None:
        new.state.clear()
        for group in new.param_groups:
            for p in group["params"]:
                held = old.state.get(p, {})
                taken = {theirs: held[ours] for ours, theirs in carry.items() if ours in held}
                if taken:
                    new.state[p] = taken
        old.state.clear()
        self._engine.set_optimizer(new)

    def _check(self) -> None:
        named, *others = [{g["name"] for g in o.param_groups if "name" in g} for o in self._optimizers]
        for start, names in zip(self._switches.starts[1:], others, strict=True):
            if missing := sorted(named - names):
                raise ValueError(
                    f"{self.name} at step {start}: the optimizer has no group named {missing[0]!r}, as the one before "
                    "has; make it with the same param_groups, so that what is set by group goes on"
                )
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        for key, by_pattern in self._settings.items():
            if key == "lr":
                raise ValueError(f"{self.name}: the learning rate is LRSchedule's; leave lr out here")
            having = [group for group in groups if key in group]
            if not having:
                known = sorted({k for group in groups for k in group} - {"params", "lr", "name", "initial_lr"})
                raise ValueError(f"{self.name}: no optimizer has a setting {key!r}; there are {', '.join(known)}")
            for pattern, setting in by_pattern.items():
                fitting = [g for g in having if covers(pattern, g.get("name", ""))]
                if not fitting:
                    there = ", ".join(g.get("name", "(without a name)") for g in having)
                    raise ValueError(
                        f"{self.name}: no group with {key!r} fits the pattern {pattern!r}; there are {there}. "
                        "Make named groups with param_groups(module, {pattern: {…}})"
                    )
                for group in fitting:
                    length = len(group[key]) if isinstance(group[key], tuple) else 1
                    if length != len(setting):
                        raise ValueError(f"{self.name}: {key!r} takes {length} values, found {len(setting)}")


def param_groups(module: nn.Module, policies: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, each named by its pattern: `AdamW(param_groups(net, {...}), lr=1e-3)`.

    Args:
        module: whose parameters.
        policies: pattern of parameter names (`"*.bias"`, `"layers.3"`) to options of the group. A parameter belongs to
            the first pattern that covers it; what none covers makes a last group named `rest`, with no options.

    Raises:
        ValueError: a pattern that covers no parameter that is still free.
    """
    names_by_pattern(module, policies, "param_groups()")
    free = dict(module.named_parameters())
    groups: list[dict[str, Any]] = []
    for pattern, options in policies.items():
        taken = [n for n in free if covers(pattern, n)]
        if not taken:
            raise ValueError(
                f"param_groups(): the patterns before {pattern!r} cover all that it covers; write it before them"
            )
        groups.append({"params": [free.pop(n) for n in taken], "name": pattern, **options})
    if free:
        groups.append({"params": list(free.values()), "name": "rest"})
    return groups


def _by_group(setting: Setting | Mapping[str, Setting]) -> dict[str, tuple[Curve, ...]]:
    by_pattern = setting if isinstance(setting, Mapping) else {"*": setting}
    return {
        pattern: tuple(map(as_curve, value)) if isinstance(value, tuple) else (as_curve(value),)
        for pattern, value in by_pattern.items()
    }


def _first(by_pattern: Mapping[str, tuple[Curve, ...]], group: Mapping[str, Any]) -> tuple[Curve, ...] | None:
    return next((s for pattern, s in by_pattern.items() if covers(pattern, group.get("name", ""))), None)
