"""Upper bounds of fixed buckets, for `BucketSampler(bounds=…)`.

All three return at most `buckets - 1` increasing bounds; fewer where the costs have too few different values.
An item belongs to the first bucket whose bound is at least its cost, or to the one after the last bound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samplers._costs import read_costs

_GRID = 512


def quantile_bounds(costs: ArrayLike, buckets: int) -> NDArray[np.float64]:
    """Buckets of equally many items.

    >>> quantile_bounds([1, 2, 3, 4], 2)
    array([2.])
    """
    ordered = _sorted(costs, buckets)
    at = np.arange(1, buckets) * ordered.size // buckets
    return _distinct(ordered[np.maximum(at, 1) - 1], ordered)


def equal_cost_bounds(costs: ArrayLike, buckets: int) -> NDArray[np.float64]:
    """Buckets of equal summed cost.

    >>> equal_cost_bounds([1, 1, 1, 1, 4], 2)
    array([1.])
    """
    ordered = _sorted(costs, buckets)
    total = np.cumsum(ordered)
    at = np.searchsorted(total, total[-1] * np.arange(1, buckets) / buckets)
    return _distinct(ordered[at], ordered)


def optimal_bounds(costs: ArrayLike, buckets: int) -> NDArray[np.float64]:
    """Buckets with the least padding where every item is padded to its bucket's bound.

    Dynamic programming over the distinct costs, or over 512 quantiles of them where there are more: the best
    cut into k buckets up to a value extends the best cut into k - 1 buckets up to a smaller one.

    >>> optimal_bounds([1, 1, 1, 5, 5, 9], 3)
    array([1., 5.])
    """
    ordered = _sorted(costs, buckets)
    values = np.unique(ordered)
    if values.size > _GRID:
        values = np.unique(ordered[(np.arange(1, _GRID + 1) * ordered.size // _GRID) - 1])
    count = np.concatenate([[0], np.searchsorted(ordered, values, side="right")])
    # padded[i, j]: cost of one bucket that holds the items above values[i - 1] up to values[j - 1].
    items = count[None, :] - count[:, None]
    padded = np.where(items >= 0, items * np.concatenate([[0.0], values])[None, :], np.inf)
    best = padded[0]
    choices = []
    for _ in range(min(buckets, values.size) - 1):
        extended = best[:, None] + padded
        choices.append(np.argmin(extended, axis=0))
        best = np.min(extended, axis=0)
    ends = [values.size]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return _distinct(values[np.array([end for end in ends if end > 0], dtype=np.int64) - 1], ordered)


def _sorted(costs: ArrayLike, buckets: int) -> NDArray[np.float64]:
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    return np.sort(read_costs(costs, None))


def _distinct(bounds: NDArray[np.float64], ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Increasing bounds; one at the largest cost would leave the bucket after it empty."""
    bounds = np.unique(bounds)
    return bounds[bounds < ordered[-1]]
