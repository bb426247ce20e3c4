"""Shares of a sequence of single items: rank r of W takes items k * W + r."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from samplers._epochs import Tail


class ItemLayout:
    """One rank's items from `start` to `length`; `items` maps epoch positions to what is yielded."""

    def __init__(
        self,
        items: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        start: int,
        length: int,
        rank: int | None,
        world_size: int,
        tail: Tail,
    ) -> None:
        whole, rest = divmod(length - start, world_size)
        self.rounds = whole + (rest > 0 and tail != "drop")
        if rank is None:  # every rank's share, in turn
            self.steps = length - start if tail == "uneven" else self.rounds * world_size
        else:
            self.steps = whole + (rank < rest) if tail == "uneven" else self.rounds
        self._items, self._begin, self._length = items, start, length
        self._first, self._stride = rank or 0, 1 if rank is None else world_size
        self._world = world_size

    def position(self, steps: int) -> int:
        """Whole rounds only: of a round handed out in part (rank=None), every item is handed out again."""
        items = steps * self._stride // self._world * self._world
        return min(self._begin + items, self._length)

    def values(self, lo: int, hi: int) -> list[int]:
        positions = np.arange(lo, hi, dtype=np.int64) * self._stride + (self._begin + self._first)
        # Padding repeats the epoch's first items.
        return self._items(positions % self._length if positions[-1] >= self._length else positions).tolist()
