"""Layers frozen, unfrozen and given rates of their own over the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from trainloop.engine import Engine
from trainloop.hooks.curve import Curve, as_curve
from trainloop.hooks.patterns import names_by_pattern
from trainloop.hooks.schedule import Entries, Schedule, Steps, optimizer_of, soonest, starts_until


class LayerSchedule(Schedule):
    """Says which parameters are trained from which step on, and scales the learning rates of groups.

    ```python
    LayerSchedule(engine, progressive(["head", "layers.1", "layers.0"], every=100))
    LayerSchedule(engine, rates={"layers.0": ramp(0.0, 1.0, 500), "layers.1": 0.5})
    ```

    A frozen parameter keeps its optimizer state. DDP is wrapped anew, on all ranks at once, when what is trained
    changes; FSDP2 needs nothing; DeepSpeed, and accelerate on several ranks, fix it when they are made and refuse.

    Args:
        engine: whose layers.
        trainable: step to the patterns of the parameters trained from there, all others being frozen: names of
            parameters or of modules above them, with `*`. None leaves all as they are.
        rates: name of a parameter group (see `param_groups`) to a factor of its learning rate: a number, a curve or a
            function of the step.

    Raises:
        ValueError: steps that do not go up; a pattern that covers nothing; a step from which nothing is trained; a
            parameter to be trained that the optimizer does not have; a group that is not there; a backend that cannot.
    """

    order = 140

    def __init__(
        self,
        engine: Engine,
        trainable: Entries[Sequence[str]] | None = None,
        *,
        rates: Mapping[str, float | Curve | Callable[[int], float]] | None = None,
    ) -> None:
        self.name = f"{engine.name}.layers"
        self._engine = engine
        self._trainable = None if trainable is None else Steps(self.name, trainable)
        self._rates = {group: as_curve(factor) for group, factor in (rates or {}).items()}
        self._allowed: list[dict[str, bool]] = []
        if self._trainable is not None:
            engine.set_trainable(self.name, {})  # a backend that cannot refuses here rather than at the step
            self._allowed = [
                self._check(start, patterns)
                for start, patterns in zip(self._trainable.starts, self._trainable.values, strict=True)
            ]
        groups = {group.get("name") for group in optimizer_of(engine).param_groups}
        for name in self._rates:
            if name not in groups:
                known = ", ".join(sorted(map(str, groups - {None}))) or "none with a name"
                raise ValueError(
                    f"{self.name}: there is no parameter group {name!r}; there are {known}. "
                    "Make named groups with param_groups(module, {pattern: {…}})"
                )

    def apply(self, step: int) -> None:
        if self._trainable is not None:
            self._engine.set_trainable(self.name, self._allowed[self._trainable.index(step)])
        if self._rates:
            self._engine.scale_lr(self.name, {group: curve(step) for group, curve in self._rates.items()})

    def next_change(self, step: int) -> int | None:
        return soonest(step, [*([] if self._trainable is None else [self._trainable]), *self._rates.values()])

    def knots(self, until: int) -> Iterable[int]:
        starts = [] if self._trainable is None else starts_until(self._trainable, until)
        moving = [k for curve in self._rates.values() for k in curve.knots]
        return [*starts, *moving, *([until] if self._rates else [])]

    def row(self, step: int) -> dict[str, float | str]:
        row: dict[str, float | str] = {}
        if self._trainable is not None:
            allowed = self._allowed[self._trainable.index(step)]
            patterns = " ".join(self._trainable.at(step))
            row[f"{self._engine.name} trains"] = f"{patterns} ({sum(allowed.values())} of {len(allowed)})"
        return row | {f"{self._engine.name}.lr[{group}] x": curve(step) for group, curve in self._rates.items()}

    def _check(self, start: int, patterns: Sequence[str]) -> dict[str, bool]:
        """Whether each parameter is trained from `start` on."""
        module, who = self._engine.bare_module, f"{self.name} at step {start}"
        if isinstance(patterns, str):
            raise ValueError(f"{who}: expected a list of patterns, found {patterns!r}; write [{patterns!r}]")
        chosen = set().union(*names_by_pattern(module, patterns, who).values())
        if not chosen:
            raise ValueError(f"{who}: every parameter would be frozen; name a pattern that is trained")
        stepped = {id(p) for group in optimizer_of(self._engine).param_groups for p in group["params"]}
        for name, parameter in module.named_parameters():
            if name in chosen and id(parameter) not in stepped:
                raise ValueError(
                    f"{who}: {name} is to be trained and the optimizer does not have it; "
                    "give the optimizer all parameters, those that are frozen at first too"
                )
        return {name: name in chosen for name, _ in module.named_parameters()}


def progressive(patterns: Sequence[str], every: int) -> dict[int, list[str]]:
    """Gradual unfreezing: the first pattern from the start, one more every `every` steps (Howard and Ruder 2018).

    Raises:
        ValueError: `every` below 1, or no pattern.
    """
    if every < 1 or not patterns:
        raise ValueError(f"progressive() needs patterns and every from 1, found {list(patterns)} and {every}")
    return {i * every: list(patterns[: i + 1]) for i in range(len(patterns))}
