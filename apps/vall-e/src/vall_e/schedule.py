"""The learning rate over a run that ends by steps or by the clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

_FINAL = 0.02


class Schedule:
    """Linear warm-up, then constant, or a half cosine down to 2 % at the end of the run.

    The end is whichever comes first: the last step, or the last second. A run with a time limit thus decays to
    the end on a slow machine and on a fast one; its clock is part of the checkpoint.

    Args:
        optimizer: whose groups' rates are set; the rate it holds now is the peak.
        kind: `cosine` or `constant`.
        warmup: steps.
        steps: of the whole run.
        progress: the share of the time limit used up, 0 to 1; 0 without a limit.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kind: str,
        warmup: int,
        steps: int,
        progress: Callable[[], float],
    ) -> None:
        self.optimizer, self.kind, self.warmup, self.steps, self.progress = (
            optimizer,
            kind,
            warmup,
            steps,
            progress,
        )
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.done = 0
        self._apply()

    def factor(self) -> float:
        """What the peak rate is multiplied by at the next step."""
        warm = min(1.0, (self.done + 1) / (self.warmup + 1))
        if self.kind == "constant":
            return warm
        share = min(1.0, max(self.done / max(1, self.steps), self.progress()))
        return warm * (_FINAL + (1 - _FINAL) * (1 + math.cos(math.pi * share)) / 2)

    def step(self) -> None:
        self.done += 1
        self._apply()

    def _apply(self) -> None:
        factor = self.factor()
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self._apply()
