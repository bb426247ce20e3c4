"""What a batch costs, which items fit at all, and where a sequence of items is cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

CostName = Literal["padded", "linear", "quadratic"]
CostFunction = Callable[[float, float, int], float]
Cost = CostName | CostFunction
Overlong = Literal["error", "skip", "singleton"]


def padded(longest: float, total: float, size: int) -> float:
    """Every item padded to the longest: memory of activations, work of most layers."""
    return longest * size


def linear(longest: float, total: float, size: int) -> float:
    """The sum, for batches that are packed instead of padded."""
    return total


def quadratic(longest: float, total: float, size: int) -> float:
    """Every item padded, and paid for squared: attention."""
    return longest * longest * size


COSTS: dict[str, CostFunction] = {"padded": padded, "linear": linear, "quadratic": quadratic}


def cost_function(cost: Cost) -> CostFunction:
    """The function of (longest item, sum of items, number of items) behind a name, or the function given."""
    if callable(cost):
        return cost
    if cost not in COSTS:
        raise ValueError(f"cost must be a function or one of {', '.join(COSTS)}, got {cost!r}")
    return COSTS[cost]


def read_costs(costs: ArrayLike, scale: float | None) -> NDArray[np.float64]:
    """A checked copy of the costs, rounded up to multiples of `scale` where one is given.

    Raises:
        ValueError: no items, not one-dimensional, or a cost that is NaN, infinite or negative.
    """
    array = np.array(costs, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"costs must be one number per item, got an array of shape {array.shape}")
    if array.size == 0:
        raise ValueError("there is nothing to sample: costs is empty")
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {array.size} costs are not finite numbers of at least 0; the first is "
            f"costs[{bad[0]}] = {array[bad[0]]}"
        )
    if scale is not None:
        if not scale > 0:
            raise ValueError(f"bucket_scale must be positive, got {scale}")
        array = np.ceil(array / scale) * scale
    return array


def admissible(
    costs: NDArray[np.float64],
    cost: CostFunction,
    max_cost: float | None,
    max_size: int | None,
    overlong: Overlong,
) -> NDArray[np.int64]:
    """The indices that are sampled: all of them, or under overlong="skip" those that fit the budget alone.

    Raises:
        ValueError: no limit given, a limit that is not positive, an item over the budget under
            overlong="error", or nothing left.
    """
    if max_cost is None and max_size is None:
        raise ValueError("give max_cost, max_size or both: without a limit an epoch would be one batch")
    if max_cost is not None and not max_cost > 0:
        raise ValueError(f"max_cost must be positive, got {max_cost}")
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size must be at least 1, got {max_size}")
    if overlong not in ("error", "skip", "singleton"):
        raise ValueError(f"overlong must be error, skip or singleton, got {overlong!r}")
    everything = np.arange(costs.size)
    if max_cost is None or overlong == "singleton":
        return everything
    alone = np.fromiter((cost(c, c, 1) for c in costs.tolist()), dtype=np.float64, count=costs.size)
    over = np.flatnonzero(alone > max_cost)
    if overlong == "error" and over.size:
        raise ValueError(
            f"{over.size} of {costs.size} items cost more than max_cost={max_cost} on their own, the first "
            f'item {over[0]} ({alone[over[0]]:g}). Raise max_cost, or choose overlong="skip" or "singleton"'
        )
    if over.size == costs.size:
        raise ValueError(
            f"nothing is left to sample: all {costs.size} items cost more than max_cost={max_cost}"
        )
    return np.delete(everything, over)


def cut(
    costs: Sequence[float], cost: CostFunction, max_cost: float | None, max_size: int | None
) -> NDArray[np.int64]:
    """Cut a sequence of items into the fewest batches that follow one another and keep to the limits.

    Returns:
        The batches' ends, with a 0 before them: batch b is items [ends[b], ends[b + 1]). An item over the
        budget on its own is a batch of one.
    """
    budget = np.inf if max_cost is None else max_cost
    limit = len(costs) if max_size is None else max_size
    ends = [0]
    longest = total = 0.0
    size = 0
    for i, c in enumerate(costs):
        longest, total, size = (c if c > longest else longest), total + c, size + 1
        if size > limit or (size > 1 and cost(longest, total, size) > budget):
            ends.append(i)
            longest, total, size = c, c, 1
    ends.append(len(costs))
    return np.array(ends, dtype=np.int64)
