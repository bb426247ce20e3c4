"""Stateful, constant-memory index sampling and bucketing.

* single indices: `OrderedSampler`, `RandomSampler`
* items of a list: `PoolSampler`
* batches: `BatchedOrderedSampler`, `BucketSampler`
* the keyed order itself: `permute`, `unpermute`
"""

from importlib.metadata import version

from samplers._bucket import BucketSampler
from samplers._index import OrderedSampler, RandomSampler
from samplers._ordered_batches import BatchedOrderedSampler
from samplers._permute import permute, unpermute
from samplers._pool import PoolSampler
from samplers._state import State, StateMismatch

__version__ = version("samplers")

__all__ = [
    "BatchedOrderedSampler",
    "BucketSampler",
    "OrderedSampler",
    "PoolSampler",
    "RandomSampler",
    "State",
    "StateMismatch",
    "permute",
    "unpermute",
]
