"""Stateful, constant-memory index sampling and bucketing.

* single indices: `OrderedSampler`, `RandomSampler`, `GroupBalancedSampler`
* items of a list: `PoolSampler`
* batches: `BatchedOrderedSampler`, `BucketSampler`, and bounds for its buckets
* the keyed order itself: `permute`, `unpermute`
"""

from importlib.metadata import version

from samplers._bounds import equal_cost_bounds, optimal_bounds, quantile_bounds
from samplers._bucket import BucketSampler
from samplers._groups import GroupBalancedSampler
from samplers._index import OrderedSampler, RandomSampler
from samplers._ordered_batches import BatchedOrderedSampler
from samplers._permute import permute, unpermute
from samplers._pool import PoolSampler
from samplers._report import Report
from samplers._state import State, StateMismatch

__version__ = version("samplers")

__all__ = [
    "BatchedOrderedSampler",
    "BucketSampler",
    "GroupBalancedSampler",
    "OrderedSampler",
    "PoolSampler",
    "RandomSampler",
    "Report",
    "State",
    "StateMismatch",
    "equal_cost_bounds",
    "optimal_bounds",
    "permute",
    "quantile_bounds",
    "unpermute",
]
