"""Groups in turn, members without replacement, weights, and nothing else."""

import collections

import numpy as np
import pytest
from samplers import GroupBalancedSampler

SIZES = {"a": 1, "b": 4, "c": 25}
GROUPS = [g for g, size in SIZES.items() for _ in range(size)]


def turns(sampler):
    return [GROUPS[i] for i in sampler]


def test_each_round_holds_each_group_once_in_a_changing_order():
    found = turns(GroupBalancedSampler(GROUPS, seed=1))
    assert len(found) == 30
    rounds = [tuple(found[i : i + 3]) for i in range(0, 30, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 2


def test_members_come_without_replacement_through_epochs():
    sampler = GroupBalancedSampler(GROUPS, seed=1)
    drawn = collections.defaultdict(list)
    for _ in range(5):
        for i in sampler:
            drawn[GROUPS[i]].append(i)
    for group, size in SIZES.items():
        assert len(drawn[group]) == 50
        cycles = [drawn[group][k : k + size] for k in range(0, 50 // size * size, size)]
        assert all(sorted(cycle) == [i for i, g in enumerate(GROUPS) if g == group] for cycle in cycles)
    b = [tuple(drawn["b"][k : k + 4]) for k in range(0, 48, 4)]
    assert len(set(b)) > 5  # each cycle in another order


def test_weights_spread_evenly():
    found = turns(GroupBalancedSampler(GROUPS, weights={"a": 1, "b": 3, "c": 6}))
    assert collections.Counter(found) == {"a": 3, "b": 9, "c": 18}
    halves = [collections.Counter(found[:15])["c"], collections.Counter(found[15:])["c"]]
    assert halves == [9, 9]


def test_a_tiny_weight_still_has_a_turn():
    found = turns(GroupBalancedSampler(GROUPS, weights={"a": 1e-9, "b": 1, "c": 1}))
    assert found.count("a") == 1


def test_any_hashable_and_many_groups():
    rng = np.random.default_rng(0)
    groups = [("speaker", int(g)) for g in rng.integers(0, 2000, 10_000)]
    counts = collections.Counter(groups[i] for i in GroupBalancedSampler(groups))
    assert set(counts.values()) == {round(10_000 / len(set(groups)))}
    assert list(GroupBalancedSampler([3, "x", None, 3], seed=0))


@pytest.mark.parametrize(
    ("groups", "weights", "words"),
    [
        ([], None, "nothing to sample"),
        (["a", "b"], {"a": 1}, "1 groups have no weight, the first is 'b'"),
        (["a"], {"a": 1, "z": 1}, "groups that hold no index, the first is 'z'"),
        (["a"], {"a": 0}, "weights must be positive and finite"),
        (["a"], {"a": float("nan")}, "weights must be positive and finite"),
    ],
)
def test_bad_input(groups, weights, words):
    with pytest.raises(ValueError, match=words):
        GroupBalancedSampler(groups, weights=weights)
