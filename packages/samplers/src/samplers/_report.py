"""How good the batches of a sampler are: padding, budget, variety from epoch to epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samplers._costs import CostFunction


@dataclass(frozen=True)
class Report:
    """Figures of one epoch's global batches (before some are split for ranks).

    Attributes:
        items, batches: how many.
        smallest, mean_size, largest: items in a batch.
        waste: share of padding in all padded batches, 0 to 1.
        budget_used: mean cost of a batch over max_cost, None without one.
        over_budget: share of batches above max_cost (only batches of one over-long item can be).
        co_pair: of the pairs of items that share a batch, the share that does so again in the next epoch.
        lag1: correlation of the mean costs of neighbouring batches; near 0 if short and long ones alternate
            at random, towards 1 if an epoch runs from short to long.
    """

    items: int
    batches: int
    smallest: int
    mean_size: float
    largest: int
    waste: float
    budget_used: float | None
    over_budget: float
    co_pair: float
    lag1: float

    def __str__(self) -> str:
        used = "-" if self.budget_used is None else f"{self.budget_used:.1%}"
        return (
            f"{self.items} items in {self.batches} batches of {self.smallest} to {self.largest} "
            f"(mean {self.mean_size:.1f}): waste {self.waste:.2%}, budget used {used}, "
            f"over budget {self.over_budget:.2%}, co-pair {self.co_pair:.2%}, lag1 {self.lag1:+.3f}"
        )


Batches = tuple[NDArray[np.int64], NDArray[np.int64]]  # indices in order; ends, a 0 first


def describe(
    costs: NDArray[np.float64], cost: CostFunction, max_cost: float | None, now: Batches, following: Batches
) -> Report:
    """The figures of the batches `now`, compared with those of the `following` epoch."""
    order, ends = now
    sizes, starts = np.diff(ends), ends[:-1]
    ordered = costs[order]
    longest, total = np.maximum.reduceat(ordered, starts), np.add.reduceat(ordered, starts)
    padded = float((longest * sizes).sum())
    rows = zip(longest.tolist(), total.tolist(), sizes.tolist(), strict=True)
    spent = np.array([cost(*row) for row in rows])
    # Sums may differ in the last digit from those the cuts were made by.
    over = 0.0 if max_cost is None else float(np.mean(spent > max_cost * (1 + 1e-12)))
    return Report(
        items=int(sizes.sum()),
        batches=sizes.size,
        smallest=int(sizes.min()),
        mean_size=float(sizes.mean()),
        largest=int(sizes.max()),
        waste=1 - float(total.sum()) / padded if padded else 0.0,
        budget_used=None if max_cost is None else float(spent.mean()) / max_cost,
        over_budget=over,
        co_pair=co_pair(now, following),
        lag1=lag1(total / sizes),
    )


def co_pair(now: Batches, following: Batches) -> float:
    """Of the pairs of items in one batch now, the share that is in one batch in the following epoch too."""
    (order, ends), (later_order, later_ends) = now, following
    batch = np.repeat(np.arange(ends.size - 1), np.diff(ends))
    later = np.full(int(max(order.max(), later_order.max())) + 1, -1)
    later[later_order] = np.repeat(np.arange(later_ends.size - 1), np.diff(later_ends))
    seen = later[order] >= 0  # drop_last may leave items out of the other epoch
    together = batch[seen] * np.int64(later_ends.size) + later[order[seen]]
    return _pairs(np.unique(together, return_counts=True)[1]) / max(1, _pairs(np.diff(ends)))


def lag1(means: NDArray[np.float64]) -> float:
    """Correlation of each batch's mean cost with the next one's; 0 where it is undefined."""
    if means.size < 3 or np.ptp(means[:-1]) == 0 or np.ptp(means[1:]) == 0:
        return 0.0
    return float(np.corrcoef(means[:-1], means[1:])[0, 1])


def _pairs(sizes: NDArray[np.int64]) -> int:
    return int((sizes * (sizes - 1) // 2).sum())
