"""Batches of neighbours: dataset order kept, cut where a limit is reached."""

from __future__ import annotations

from typing import ClassVar

from numpy.typing import ArrayLike

from samplers._costs import Cost, Overlong
from samplers._epochs import Tail
from samplers._planned import BatchHook, Plan, PlannedSampler


class BatchedOrderedSampler(PlannedSampler):
    """Indices in order, in lists that keep to a budget: the same lists in every epoch.

    With several ranks, rank r yields lists r, r + world_size, …

    Args: as for `BucketSampler`, without the seed and the buckets.

    >>> list(BatchedOrderedSampler([3, 1, 2, 2, 5, 1], max_cost=6))
    [[0, 1], [2, 3], [4], [5]]
    """

    _algo: ClassVar[str] = "ordered-batches/1"

    def __init__(
        self,
        costs: ArrayLike,
        *,
        max_cost: float | None = None,
        max_size: int | None = None,
        rank: int | None = 0,
        world_size: int = 1,
        cost: Cost = "padded",
        drop_last: bool = False,
        overlong: Overlong = "error",
        tail: Tail = "pad",
        bucket_scale: float | None = None,
        on_batch: BatchHook | None = None,
    ) -> None:
        super().__init__(
            costs,
            max_cost,
            max_size,
            0,
            rank,
            world_size,
            cost,
            drop_last,
            overlong,
            tail,
            bucket_scale,
            on_batch,
        )

    def _plan(self, epoch: int) -> Plan:
        return super()._plan(0)

    def _make_plan(self, epoch: int) -> Plan:
        return self._cut(self._indices)
