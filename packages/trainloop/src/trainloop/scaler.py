"""Loss scaling for fp16, with a scale that is saved and can be set by hand."""

from __future__ import annotations

import math


class LossScaler:
    """Dynamic loss scale (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2).

    The scale doubles after `growth_interval` steps in a row without an overflow and halves at each one.

    Args:
        scale: the first scale.
        growth_interval: good steps between two doublings.
        smallest: the scale is never lowered below this.
    """

    def __init__(self, scale: float = 65536.0, growth_interval: int = 2000, smallest: float = 1.0) -> None:
        self.growth_interval = growth_interval
        self.smallest = smallest
        self._good = 0
        self.set(scale)

    def set(self, scale: float) -> None:
        """Set the scale.

        Raises:
            ValueError: it is not a positive finite number.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"the loss scale must be positive and finite, found {scale}")
        self.scale = float(scale)
        self._good = 0

    def update(self, *, overflow: bool) -> None:
        if overflow:
            self.scale = max(self.smallest, self.scale / 2)
            self._good = 0
            return
        self._good += 1
        if self._good >= self.growth_interval:
            self.scale *= 2
            self._good = 0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good": self._good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self._good = float(state["scale"]), int(state["good"])
