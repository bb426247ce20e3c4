"""The learning rate of an optimizer: what its schedules plan, and what a user pinned it to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

Factor = float | Mapping[str, float]  # of all parameter groups, or by their names


class Scheduler(Protocol):
    """Any learning-rate schedule: stepped once after every optimizer step."""

    def step(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Rates:
    """Learning rates of the parameter groups.

    In force is what the scheduler planned (without one, the rate the optimizer was made with) times the factors
    that schedules gave with `scale`; or, while a rate is pinned, that one for the first group and the others in
    their ratio to it. The plan goes on underneath: before each step of the scheduler the rates it planned are put
    back, so schedules that compute the next rate from the last one stay right. Unpinning returns to the plan as
    if nothing had been pinned.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Scheduler | None) -> None:
        self._optimizer = optimizer
        self.scheduler = scheduler
        self.pinned: float | None = None
        self._planned: list[float] = []  # kept while others are in force
        self._factors: dict[str, Factor] = {}

    @property
    def lr(self) -> float:
        """Rate of the first parameter group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def pin(self, lr: float | None) -> None:
        """Hold the first group's rate at `lr`; other groups keep their ratio to it. None lets go.

        Raises:
            ValueError: `lr` is negative or not finite.
        """
        if lr is not None and not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"a learning rate must be finite and not negative, found {lr}")
        self.pinned = lr
        self._override()

    def scale(self, by: str, factor: Factor | None) -> None:
        """Multiply the planned rates: by a number, or by one for each group that is named (`group["name"]`).

        Args:
            by: who does; a second call replaces what the first one gave. Factors of several multiply.
            factor: None takes it off again.
        """
        if factor is None:
            self._factors.pop(by, None)
        else:
            self._factors[by] = factor
        self._override()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Rule the rates of another optimizer from now on; this one gets its own rates back."""
        if self._planned:
            self._put(self._planned)
        self._optimizer, self._planned = optimizer, []
        self._override()

    def step(self) -> None:
        """Advance the scheduler by one optimizer step."""
        if self.scheduler is None:
            return
        if not self._planned:
            self.scheduler.step()
            return
        self._put(self._planned)
        self.scheduler.step()
        self._planned = self._read()
        self._override()

    def _override(self) -> None:
        self._planned = self._planned or self._read()
        rates = self._planned
        for factor in self._factors.values():
            if isinstance(factor, Mapping):
                names = [group.get("name", "") for group in self._optimizer.param_groups]
                rates = [rate * factor.get(name, 1.0) for rate, name in zip(rates, names, strict=True)]
            else:
                rates = [rate * factor for rate in rates]
        if self.pinned is not None:
            rates = rates if rates[0] > 0 else self._planned  # a warm-up from 0 says nothing of their ratio
            first = rates[0]
            rates = [self.pinned * rate / first if first > 0 else self.pinned for rate in rates]
        self._put(rates)
        if self.pinned is None and not self._factors:
            self._planned = []

    def _read(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def _put(self, rates: list[float]) -> None:
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        return {
            "pinned": self.pinned,
            "planned": list(self._planned),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load after the optimizer, whose groups hold the rates that were in force. Factors are not saved: who
        gave them gives them again."""
        self.pinned, self._planned = state["pinned"], list(state["planned"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._override()
