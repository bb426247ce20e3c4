"""The learning rate of an optimizer: what its scheduler plans, and what a user pinned it to."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch


class Scheduler(Protocol):
    """Any learning-rate schedule: stepped once after every optimizer step."""

    def step(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Rates:
    """Learning rates of the parameter groups.

    A pinned rate survives the scheduler. The scheduler goes on underneath: before each of its steps the
    rates it planned are put back, so schedules that compute the next rate from the last one stay right, and
    afterwards the pinned rate is written over the result. Unpinning returns to the plan as if nothing had
    been pinned.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Scheduler | None) -> None:
        self._optimizer = optimizer
        self.scheduler = scheduler
        self.pinned: float | None = None
        self._planned: list[float] = []

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
        if self.pinned is not None:
            self._put(self._planned)
        self.pinned = lr
        if lr is not None:
            self._override()

    def step(self) -> None:
        """Advance the scheduler by one optimizer step."""
        if self.scheduler is None:
            return
        if self.pinned is None:
            self.scheduler.step()
            return
        self._put(self._planned)
        self.scheduler.step()
        self._override()

    def _override(self) -> None:
        self._planned = [float(g["lr"]) for g in self._optimizer.param_groups]
        first, lr = self._planned[0], self.pinned
        assert lr is not None
        self._put([lr * p / first if first > 0 else lr for p in self._planned])

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
        """Load after the optimizer, whose groups hold the rates in force."""
        self.pinned, self._planned = state["pinned"], list(state["planned"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
