"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import torch

from trainloop.engine import Engine
from trainloop.hooks.curve import Curve, Form, Piece, as_curve, hold, ramp
from trainloop.hooks.schedule import Schedule, optimizer_of
from trainloop.rates import Scheduler


class LRSchedule(Schedule):
    """Multiplies the learning rates of an engine by a factor for every step of the run.

    The rates of the optimizer's groups are the peaks and keep their ratio. The factor counts the trainer's steps, as
    `until` does. A rate pinned by `lr X` holds; the schedule goes on underneath, and `lr auto` returns to it. On an
    engine with a torch scheduler the factor multiplies what that plans.

    ```python
    hooks.attach(LRSchedule(engine, cosine(10_000, warmup=500, floor=0.1)))
    ```

    Args:
        engine: whose rates.
        factor: a curve (`constant`, `warmup_hold_decay`, `cosine`, `one_cycle`, `noam`, `wsd`, …), a number, or any
            function of the step.

    Raises:
        ValueError: the engine has no optimizer.
    """

    order = 150

    def __init__(self, engine: Engine, factor: Curve | float | Callable[[int], float]) -> None:
        self.name = f"{engine.name}.lr"
        optimizer_of(engine)
        self._engine, self._curve = engine, as_curve(factor)

    def apply(self, step: int) -> None:
        self._engine.scale_lr(self.name, self._curve(step))

    def next_change(self, step: int) -> int | None:
        return self._curve.next_change(step)

    def knots(self, until: int) -> Iterable[int]:
        return [*self._curve.knots, until]

    def row(self, step: int) -> dict[str, float | str]:
        return {f"{self.name} x": self._curve(step)}


class TorchLR(Schedule):
    """Any scheduler of torch. It counts the engine's optimizer steps, and is saved with the engine.

    Args:
        engine: one without a scheduler of its own.
        make: makes the scheduler from the engine's optimizer: `lambda o: OneCycleLR(o, 1e-3, total_steps=500)`.

    Raises:
        ValueError: the engine has a scheduler, or no optimizer.
    """

    def __init__(self, engine: Engine, make: Callable[[torch.optim.Optimizer], Scheduler]) -> None:
        self.name = f"{engine.name}.torch_lr"
        optimizer = optimizer_of(engine)
        # The same scheduler over an optimizer of one group, stepped on its own to tell what it will do.
        self._trial = torch.optim.SGD([torch.zeros(1)], lr=engine.lr, momentum=0.9)
        engine.set_scheduler(make(optimizer))
        self._trial_scheduler = make(self._trial)
        self._trial.step()
        self._planned = [float(self._trial.param_groups[0]["lr"])]

    def apply(self, step: int) -> None:
        """Nothing: the engine steps it."""

    def next_change(self, step: int) -> int | None:
        return None

    def knots(self, until: int) -> Iterable[int]:
        return range(0, until + 1, max(1, until // 10))

    def row(self, step: int) -> dict[str, float | str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a scheduler stepped beyond its end
            while len(self._planned) <= step:
                self._trial_scheduler.step()
                self._planned.append(float(self._trial.param_groups[0]["lr"]))
        return {self.name: self._planned[step]}


def constant(factor: float = 1.0) -> Curve:
    """The same factor at every step."""
    return hold(factor)


def warmup_hold_decay(
    warmup: int, steady: int, decay: int, floor: float = 0.0, start: float = 0.0, form: Form = "linear"
) -> Curve:
    """Up from `start` to 1 in `warmup` steps, `steady` steps at 1, down to `floor` in `decay` steps, and on there.

    Any of the three may be 0 steps long, but not all.
    """
    parts = [ramp(start, 1.0, warmup)] if warmup else []
    parts += [hold(1.0, steady)] if steady else []
    parts += [ramp(1.0, floor, decay, form)] if decay else []
    if not parts:
        raise ValueError("warmup_hold_decay(): warmup, steady and decay are all 0; give one of them steps")
    curve, *others = parts
    for other in others:
        curve = curve.then(other)
    return curve


def cosine(steps: int, warmup: int = 0, floor: float = 0.0, start: float = 0.0) -> Curve:
    """A linear warm-up, then half a cosine to `floor` at `steps` (Loshchilov and Hutter 2017, without restarts)."""
    return warmup_hold_decay(warmup, 0, _left("cosine", steps, warmup), floor, start, "cosine")


def one_cycle(steps: int, peak: int, div: float = 25.0, final_div: float = 1e4) -> Curve:
    """Up from 1 / `div` to 1 at step `peak` and down to 1 / (`div` `final_div`) at the last step, `steps` - 1, both as
    half cosines (Smith and Topin 2018).

    Momentum, which that paper moves the other way, is `OptimSchedule`'s.
    """
    low = 1.0 / div
    return ramp(low, 1.0, peak, "cosine").then(
        ramp(1.0, low / final_div, _left("one_cycle", steps, peak + 1), "cosine")
    )


def noam(width: int, warmup: int) -> Curve:
    """`width`^-0.5 min(s^-0.5, s `warmup`^-1.5) for s from 1 (Vaswani et al. 2017, section 5.3).

    With a learning rate of 1 it is the paper's.
    """
    if width < 1 or warmup < 1:
        raise ValueError(f"noam(): width and warmup must be 1 or more, found {width} and {warmup}")
    scale = width**-0.5
    rise = Piece(lambda t: scale * (t + 1) * warmup**-1.5, length=warmup)
    return Curve((rise,), Piece(lambda t: scale * (t + 1 + warmup) ** -0.5), endless=True)


def wsd(warmup: int, stable: int, decay: int, floor: float = 0.0, form: Form = "sqrt") -> Curve:
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM); the decay is 1 - sqrt as in Hägele et al. 2024."""
    return warmup_hold_decay(warmup, stable, decay, floor, form=form)


def _left(what: str, steps: int, before: int) -> int:
    if steps <= before or before < 0 or not math.isfinite(steps):
        raise ValueError(f"{what}(): {steps} steps leave nothing after the first {before}; give more steps")
    return steps - before
