"""Defects of earlier samplers of this kind, one test each: none may come back."""

import itertools
import random

import numpy as np
import pytest
from samplers import (
    BatchedOrderedSampler,
    BucketSampler,
    GroupBalancedSampler,
    OrderedSampler,
    PoolSampler,
    RandomSampler,
    permute,
)


def test_interleaving_interleaves():
    """Grouping by a key that is unique per item kept the groups' runs together."""
    groups = ["a"] * 50 + ["b"] * 50
    found = [groups[i] for i in GroupBalancedSampler(groups)]
    longest_run = max(len(list(run)) for _, run in itertools.groupby(found))
    assert longest_run <= 2


def test_batches_index_the_list_they_were_made_for():
    """Batches were cut on a sorted list and indexed into the unsorted one: 78 % over the limit."""
    costs = np.random.default_rng(1).permutation(np.linspace(1, 40, 500))
    for sampler in (BucketSampler(costs, max_cost=100), BatchedOrderedSampler(costs, max_cost=100)):
        assert all(costs[batch].max() * len(batch) <= 100 for batch in sampler)


@pytest.mark.parametrize("limit", [{"max_cost": 10}, {"max_size": 3}])
def test_one_limit_is_enough(limit):
    assert list(BatchedOrderedSampler([1, 2, 3], **limit))


def test_the_position_is_counted_before_the_value_is_handed_out():
    """Counted after it, a checkpoint written while a batch trains repeats that batch."""
    sampler = RandomSampler(10)
    seen = []
    for index in sampler:
        seen.append(index)
        resumed = RandomSampler(10)
        resumed.load_state_dict(sampler.state_dict())
        if len(seen) < 10:
            assert index not in list(resumed)


def test_iterating_a_pool_ends():
    assert len(list(itertools.islice(PoolSampler([1, 2, 3]), 100))) == 3


def test_states_are_not_live():
    pool = PoolSampler([1, 2, 3, 4])
    state = pool.state_dict()
    pool.sample()
    assert state["position"] == 0


def test_no_global_generator_is_used_or_moved():
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = [PoolSampler(range(100)).sample(), list(BucketSampler([1] * 20, max_size=3))]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(1)
    assert [PoolSampler(range(100)).sample(), list(BucketSampler([1] * 20, max_size=3))] == first


def test_each_rank_has_its_own_share():
    """Every rank took shard 0."""
    for build in (OrderedSampler, RandomSampler):
        shares = [set(build(12, rank=r, world_size=3)) for r in range(3)]
        assert set.union(*shares) == set(range(12))
        assert sum(map(len, shares)) == 12


def test_no_state_yields_an_empty_epoch():
    """A state written at the end of an epoch yielded zero batches for ever."""
    for sampler in (RandomSampler(3), BucketSampler([1, 1, 1], max_size=2)):
        list(sampler)
        sampler.load_state_dict(sampler.state_dict())
        assert list(sampler)
        stale = {**sampler.state_dict(), "epoch": 0, "position": 3}
        sampler.load_state_dict(stale)
        assert list(sampler)


def test_the_first_batch_is_not_repeated_to_fill_ranks():
    """accelerate's even_batches=True does that."""
    costs = [1.0] * 14  # 7 batches for 4 ranks
    shares = [list(BucketSampler(costs, max_size=2, rank=r, world_size=4)) for r in range(4)]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(14))


def test_seed_and_epoch_do_not_add_up():
    """seed + epoch makes (s, epoch 1) the order of (s + 1, epoch 0)."""
    at = np.arange(1000)
    assert not np.array_equal(permute(at, 1000, 1, 1), permute(at, 1000, 2, 0))
