"""Ranks share one order: nothing repeats, no rank waits, and a run goes on with another number of ranks."""

import itertools

import pytest
import samplers
from hypothesis import given, settings
from hypothesis import strategies as st


def ranks(make, world, **kw):
    return [make(rank=r, world_size=world, **kw) for r in range(world)]


def by_round(shares):
    """Values in the order of the global sequence: round by round, rank by rank."""
    return [v for row in itertools.zip_longest(*shares) for v in row if v is not None]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_cover_an_epoch_in_step(make, flat, world):
    shares = [list(s) for s in ranks(make, world)]
    alone = flat(make())
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(make(rank=0, world_size=world))
    together = flat(by_round(shares))
    assert set(together) == set(alone)
    if isinstance(shares[0][0], list):
        assert len(together) == len(alone)  # batches are split, nothing repeats
    else:
        assert together[: len(alone)] == alone
        assert len(together) - len(alone) < world


@pytest.mark.parametrize("tail", ["drop", "uneven"])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_other_tails(make, flat, world, tail):
    shares = [list(s) for s in ranks(make, world, tail=tail)]
    alone, lengths = flat(make()), [len(share) for share in shares]
    together = flat(by_round(shares))
    assert together == alone[: len(together)] or isinstance(shares[0][0], list)
    if tail == "drop":
        assert len(set(lengths)) == 1
        assert len(alone) - len(together) < world
    else:
        assert len(together) == len(alone)
        assert lengths == sorted(lengths, reverse=True)
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_resumes_from_one_state_at_every_step(make, world):
    shares = [[*s, *s] for s in ranks(make, world)]
    steps = len(make(rank=0, world_size=world))
    for consumed in range(steps + 1):
        state = make(rank=world - 1, world_size=world).state_at(consumed)
        for rank, sampler in enumerate(ranks(make, world)):
            sampler.load_state_dict(state)
            found = list(sampler)
            if consumed < steps:
                found += list(sampler)
            assert found == shares[rank][consumed : 2 * steps]


def go_elastic(make, flat, worlds_and_steps):
    """One epoch on changing numbers of ranks; returns the indices seen."""
    seen, state = [], make().state_dict()
    for world, steps in worlds_and_steps:
        group = ranks(make, world)
        shares = []
        for sampler in group:
            sampler.load_state_dict(state)
            assert sampler.epoch == 0
            shares.append(list(itertools.islice(iter(sampler), steps)))
        assert len({len(share) for share in shares}) == 1
        seen += flat(by_round(shares))
        states = [s.state_dict() for s in group]
        assert all(s == states[0] for s in states)
        state = states[0]
        if state["epoch"] == 1:
            break
    return seen


@pytest.mark.parametrize("path", [(1, 4), (4, 1), (2, 3), (4, 2, 3), (3, 5, 1, 2)])
def test_elastic_resume_repeats_and_loses_nothing(make, flat, path):
    alone = flat(make())
    for steps in (1, 2):
        plan = [(world, steps) for world in path[:-1]] + [(path[-1], None)]
        seen = go_elastic(make, flat, plan)
        extra = len(seen) - len(alone)
        assert set(seen) == set(alone)
        assert 0 <= extra < path[-1]  # padding where fewer items than ranks are left, only ever at the end


@settings(max_examples=300)
@given(data=st.data())
def test_any_epoch_on_any_ranks_interrupted_anywhere(data):
    """The law behind all of this, on random costs, limits and worlds."""
    costs = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=1, max_size=60))
    limits = data.draw(
        st.sampled_from([{"max_cost": 7.0}, {"max_cost": 20.0}, {"max_size": 1}, {"max_size": 4}])
    )
    seed = data.draw(st.integers(0, 10))

    def make(**kw):
        return samplers.BucketSampler(costs, seed=seed, window=16, **limits, **kw)

    state, seen = make().state_dict(), []
    while state["epoch"] == 0:
        world = data.draw(st.integers(1, 9))
        group = ranks(make, world)
        for sampler in group:
            sampler.load_state_dict(state)
        rest = [list(s) for s in group]
        assert len({len(r) for r in rest}) == 1
        stop = data.draw(st.integers(1, len(rest[0])))
        resumed = ranks(make, world)  # the same ranks from the same state go the same way
        base = []
        for sampler in resumed:
            sampler.load_state_dict(state)
            base.append(sampler.consumed)
        state = resumed[0].state_at(base[0] + stop)
        assert len({s.state_at(base[0] + stop)["position"] for s in resumed}) == 1
        seen += [i for r in rest for batch in r[:stop] for i in batch]
        if state["epoch"] == 0:
            again = make(rank=0, world_size=world)
            again.load_state_dict(state)
            assert list(again) == rest[0][stop:]
        elif len(seen) != len(costs):  # only where even batches of one left a round incomplete
            last = [r[-1] for r in rest]
            assert len(seen) - len(costs) < world
            assert any(len(b) == 1 for b in last)
    assert set(seen) == set(range(len(costs)))


def test_all_shares_in_turn_for_a_consumer_that_deals_them_out(make, flat):
    world = 3
    shares = [list(s) for s in ranks(make, world)]
    every = make(rank=None, world_size=world)
    values = list(every)
    assert values == by_round(shares)
    # A round handed out in part is handed out again.
    state = every.state_at(0)
    for handed_out in range(len(values)):
        fresh = make(rank=None, world_size=world)
        assert (
            fresh.state_at(handed_out)["position"] == fresh.state_at(handed_out // world * world)["position"]
        )
    assert state["position"] == 0


def test_more_ranks_than_batches():
    costs = [4.0, 4.0]
    shares = [list(samplers.BucketSampler(costs, max_cost=8, rank=r, world_size=3)) for r in range(3)]
    assert sorted(i for s in shares for b in s for i in b) in ([0, 0, 1], [0, 1, 1])
    for tail in ("drop", "uneven"):
        sampler = samplers.BucketSampler(costs, max_cost=8, rank=2, world_size=3, tail=tail)
        with pytest.raises(
            ValueError, match=r"epoch 0 is empty for rank 2 of 3: more ranks than there is to sample"
        ):
            len(sampler)
        with pytest.raises(ValueError, match='or tail="pad"'):
            iter(samplers.RandomSampler(2, rank=2, world_size=3, tail=tail))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 2, "world_size": 2}, r"rank must be in 0 to 1 \(or None"),
        ({"rank": -1}, "rank must be in 0 to 0"),
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"tail": "repeat"}, "tail must be one of pad, drop, uneven, got 'repeat'"),
    ],
)
def test_bad_arguments(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


@pytest.mark.parametrize("build", [samplers.OrderedSampler, samplers.RandomSampler])
def test_a_rest_that_fills_no_round_is_not_an_empty_epoch(build):
    """Saved one item before the end on one rank, resumed on four that drop what is left."""
    state = build(9).state_at(8)
    for rank in range(4):
        sampler = build(9, rank=rank, world_size=4, tail="drop")
        sampler.load_state_dict(state)
        fresh = build(9, rank=rank, world_size=4, tail="drop")
        fresh.set_epoch(1)
        assert list(sampler) == list(fresh) != []
        assert sampler.epoch == 1
