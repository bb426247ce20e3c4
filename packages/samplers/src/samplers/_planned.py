"""Base of the samplers that yield batches: limits, one cached plan per epoch, fingerprint, report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samplers._batches import BatchLayout
from samplers._costs import Cost, CostFunction, Overlong, admissible, cost_function, cut, read_costs
from samplers._epochs import EpochSampler, Tail
from samplers._report import Report, describe
from samplers._state import digest

BatchHook = Callable[[list[int]], list[int]]


class Plan(NamedTuple):
    """One epoch: the indices in the order they come, and where batches end in it (a 0 first)."""

    order: NDArray[np.int64]
    ends: NDArray[np.int64]


class PlannedSampler(EpochSampler[list[int]]):
    """What `BatchedOrderedSampler` and `BucketSampler` share; not for use by itself."""

    _chunk_size = 256

    def __init__(
        self,
        costs: ArrayLike,
        max_cost: float | None,
        max_size: int | None,
        seed: int,
        rank: int | None,
        world_size: int,
        cost: Cost,
        drop_last: bool,
        overlong: Overlong,
        tail: Tail,
        bucket_scale: float | None,
        on_batch: BatchHook | None,
    ) -> None:
        self._costs = read_costs(costs, bucket_scale)
        self._cost: CostFunction = cost_function(cost)
        self._indices = admissible(self._costs, self._cost, max_cost, max_size, overlong)
        super().__init__(self._costs.size, seed, rank, world_size, tail)
        self.max_cost, self.max_size, self.drop_last = max_cost, max_size, drop_last
        self._on_batch = on_batch
        name = cost if isinstance(cost, str) else getattr(cost, "__qualname__", type(cost).__name__)
        self._settings: tuple[Any, ...] = (max_cost, max_size, name, drop_last, overlong, bucket_scale)
        self._fingerprint: str | None = None
        self._plans: dict[int, Plan] = {}

    @abstractmethod
    def _make_plan(self, epoch: int) -> Plan:
        """The batches of an epoch, whatever the number of ranks."""

    @property
    def fingerprint(self) -> str:
        """`costs-limits`: one hash of the costs and one of everything else that shapes the batches."""
        if self._fingerprint is None:
            costs = digest([self._costs.astype("<f8").tobytes()])
            self._fingerprint = f"{costs}-{digest([repr(self._settings).encode()], 3)}"
        return self._fingerprint

    def report(self) -> Report:
        """Padding, use of the budget and variety of this epoch's batches, compared with the next one's."""
        now, following = self._plan(self.epoch), self._make_plan(self.epoch + 1)
        return describe(self._costs, self._cost, self.max_cost, now, following)

    def picture(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], float | None]:
        """What `plot_padding` draws: costs, the epoch's indices in order, ends of its batches, the budget."""
        return (self._costs, *self._plan(self.epoch), self.max_cost)

    def _plan(self, epoch: int) -> Plan:
        if epoch not in self._plans:
            plan = self._make_plan(epoch)
            if not plan.order.size:
                raise ValueError(f"drop_last leaves nothing of epoch {epoch}: no batch reaches a limit")
            self._plans = {epoch: plan}  # one epoch is kept
        return self._plans[epoch]

    def _length(self) -> int:
        return self._indices.size

    def _layout(self, epoch: int, position: int) -> BatchLayout:
        order, ends = self._plan(epoch)
        return BatchLayout(order, ends, position, self.rank, self.world_size, self.tail, self._on_batch)

    def _cut(self, items: NDArray[np.int64]) -> Plan:
        """Cut items into batches in the order given; under drop_last without an incomplete last one."""
        costs = self._costs[items].tolist()
        ends = cut(costs, self._cost, self.max_cost, self.max_size)
        if self.drop_last and not self._is_full(costs[ends[-2] :]):
            ends = ends[:-1]
        return Plan(items[: ends[-1]], ends)

    def _is_full(self, costs: list[float]) -> bool:
        """Whether a batch could not take its last item twice."""
        if self.max_size is not None and len(costs) >= self.max_size:
            return True
        grown = self._cost(max(costs), sum(costs) + costs[-1], len(costs) + 1)
        return self.max_cost is not None and grown > self.max_cost

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_plans": {}}
