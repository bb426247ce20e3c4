"""The marble bag."""

import copy
import json
import pickle
import time
from pathlib import Path

import pytest
from samplers import PoolSampler, StateMismatch

MARBLES = ["red", "green", "blue", "black", "white"]


def test_each_bag_holds_every_item_once():
    pool = PoolSampler(MARBLES, seed=3)
    bags = [tuple(pool.sample() for _ in range(5)) for _ in range(20)]
    assert all(sorted(bag) == sorted(MARBLES) for bag in bags)
    assert len(set(bags)) > 15
    assert pool.epoch == 19


def test_remaining_and_epoch():
    pool = PoolSampler(MARBLES)
    found = []
    for _ in range(11):
        pool()
        found.append((pool.epoch, pool.remaining()))
    assert found == [(0, 4), (0, 3), (0, 2), (0, 1), (0, 0), (1, 4), (1, 3), (1, 2), (1, 1), (1, 0), (2, 4)]


def test_iteration_ends_after_one_bag():
    pool = PoolSampler(MARBLES, seed=1)
    first = pool.sample()
    assert sorted([first, *pool]) == sorted(MARBLES)
    assert sorted(pool) == sorted(MARBLES)
    assert len(pool) == 5


def test_resume_at_every_position():
    def draw(pool, count):
        return [pool.sample() for _ in range(count)]

    expected = draw(PoolSampler(MARBLES, seed=2), 15)
    for position in range(12):
        pool = PoolSampler(MARBLES, seed=2)
        draw(pool, position)
        state = json.loads(json.dumps(pool.state_dict()))
        other = PoolSampler(MARBLES, seed=2)
        draw(other, 3)
        other.set_state(state)
        assert draw(other, 15 - position) == expected[position:]
        assert other.remaining() == PoolSampler(MARBLES).remaining() - (15 - 1) % 5 - 1
        for twin in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
            assert draw(twin, 15 - position) == expected[position:]


def test_set_epoch():
    pool, other = PoolSampler(MARBLES, seed=2), PoolSampler(MARBLES, seed=2)
    list(other)
    expected = list(other)
    pool.sample()
    pool.set_epoch(1)
    assert list(pool) == expected


def test_a_state_of_another_pool():
    state = PoolSampler(MARBLES).state_dict()
    for other in (MARBLES[:-1], [*MARBLES[:-1], "grey"], MARBLES[::-1]):
        with pytest.raises(StateMismatch, match="fingerprint is"):
            PoolSampler(other).load_state_dict(state)
    PoolSampler(tuple(MARBLES)).load_state_dict(state)


def test_the_fingerprint_does_not_depend_on_addresses():
    class Marble:
        pass

    assert PoolSampler([Marble(), Marble()]).fingerprint == PoolSampler([Marble(), Marble()]).fingerprint
    assert PoolSampler([Path("a")]).fingerprint != PoolSampler([Path("b")]).fingerprint
    assert PoolSampler([("a", 1)]).fingerprint != PoolSampler([("a", 2)]).fingerprint


def test_a_billion_marbles_cost_nothing():
    began = time.process_time()
    pool = PoolSampler(range(10**9), seed=1)
    assert len({pool.sample() for _ in range(1000)}) == 1000
    PoolSampler(range(10**9), seed=1).load_state_dict(pool.state_dict())
    assert time.process_time() - began < 0.5


def test_empty():
    with pytest.raises(ValueError, match="nothing to sample"):
        PoolSampler([])
