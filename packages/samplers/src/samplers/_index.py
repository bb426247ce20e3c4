"""Single indices, in order or in a keyed random order, in constant memory."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from samplers._epochs import EpochSampler, Tail
from samplers._items import ItemLayout
from samplers._permute import permute


class OrderedSampler(EpochSampler[int]):
    """0 to n - 1 in order, in every epoch.

    Args:
        n: how many indices there are.
        rank, world_size: rank r yields indices r, r + world_size, …; rank None yields every rank's share.
        tail: where n is not a multiple of world_size: "pad" repeats the first indices, "drop" leaves the last
            ones out, "uneven" lets some ranks yield one index less.

    >>> list(OrderedSampler(5, rank=1, world_size=2))
    [1, 3, 0]
    """

    _algo: ClassVar[str] = "ordered/1"

    def __init__(self, n: int, *, rank: int | None = 0, world_size: int = 1, tail: Tail = "pad") -> None:
        super().__init__(n, 0, rank, world_size, tail)

    def _layout(self, epoch: int, position: int) -> ItemLayout:
        return ItemLayout(lambda at: at, position, self.n, self.rank, self.world_size, self.tail)


class RandomSampler(EpochSampler[int]):
    """Every index of 0 to n - 1 once per epoch, in a random order keyed by (seed, epoch).

    Nothing is stored: memory, construction and resuming cost the same for ten indices and for a trillion.

    Args:
        n: how many indices there are, up to 2**62.
        seed: keys the orders of all epochs.
        rank, world_size, tail: as for `OrderedSampler`; the ranks share one order.

    >>> sampler = RandomSampler(10**12, seed=7)
    >>> order = iter(sampler)
    >>> first = [next(order) for _ in range(3)]
    >>> state = sampler.state_dict()
    >>> again = RandomSampler(10**12, seed=7)
    >>> again.load_state_dict(state)
    >>> next(iter(again)) == next(order)
    True
    """

    _algo: ClassVar[str] = "random/1"

    def __init__(
        self, n: int, seed: int = 0, *, rank: int | None = 0, world_size: int = 1, tail: Tail = "pad"
    ) -> None:
        super().__init__(n, seed, rank, world_size, tail)

    def _layout(self, epoch: int, position: int) -> ItemLayout:
        def items(at: NDArray[np.int64]) -> NDArray[np.int64]:
            return permute(at, self.n, self.seed, epoch)

        return ItemLayout(items, position, self.n, self.rank, self.world_size, self.tail)
