"""What all samplers share: exact resume at every position, epochs, state."""

import copy
import json
import pickle

import pytest
import samplers
from samplers import StateMismatch


def test_resume_at_every_position(make, take):
    length = len(make())
    expected = take(make(), 3 * length)
    assert expected[:length] != []
    assert len(expected) == 3 * length
    for position in range(2 * length + 1):
        first = make()
        seen = take(first, position)
        second = make()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert seen + take(second, 3 * length - position) == expected


def test_state_at_equals_the_state_after_as_many_values(make):
    length = len(make())
    for consumed in range(length + 1):
        sampler = make()
        iterator = iter(sampler)
        for _ in range(consumed):
            next(iterator)
        ahead = make()
        list(ahead)  # has yielded everything; nothing of it counts
        assert (
            ahead.state_at(consumed)
            == sampler.state_dict()
            == iterator.state_dict()
            == make().state_at(consumed)
        )
        assert sampler.consumed == consumed


def test_state_at_after_a_resume_counts_from_the_beginning_of_the_epoch(make):
    length = len(make())
    sampler = make()
    sampler.load_state_dict(make().state_at(2))
    assert sampler.consumed == 2
    for consumed in range(length + 1):
        assert sampler.state_at(consumed) == make().state_at(consumed)


def test_repeated_resumes(make, take):
    """Stopped after every single value."""
    expected = take(make(), 2 * len(make()) + 1)
    found, state = [], make().state_dict()
    while len(found) < len(expected):
        sampler = make()
        sampler.load_state_dict(state)
        found.append(next(iter(sampler)))
        state = sampler.state_dict()
    assert found == expected


def test_an_iterator_has_the_same_protocol(make):
    iterator = iter(make())
    seen = [next(iterator) for _ in range(3)]
    state = iterator.state_dict()
    rest = list(iterator)
    other = iter(make())
    next(other)
    other.load_state_dict(state)
    assert list(other) == rest
    assert list(iter(make())) == seen + rest
    with pytest.raises(RuntimeError, match="has ended"):
        other.load_state_dict(state)


def test_end_of_an_epoch_is_the_beginning_of_the_next(make):
    sampler = make()
    last = len(sampler)
    list(sampler)
    assert sampler.epoch == 0  # until the next iter()
    state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert state == make().state_at(last)
    resumed = make()
    resumed.load_state_dict(state)
    assert list(resumed) == list(sampler) != []
    assert sampler.epoch == 1


def test_an_iteration_left_early_is_continued(make):
    whole, sampler = list(make()), make()
    for value in sampler:
        first = value
        break
    assert [first, *sampler] == whole


class TestSetEpoch:
    def test_the_usual_loop(self, make, take):
        expected = take(make(), 3 * len(make()))
        sampler, found = make(), []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found += list(sampler)
        assert found == expected

    def test_it_keeps_a_resumed_position_of_that_epoch(self, make):
        whole, sampler = list(make()), make()
        sampler.load_state_dict(sampler.state_at(2))
        sampler.set_epoch(0)
        assert list(sampler) == whole[2:]

    def test_another_epoch_starts_at_its_beginning(self, make, take):
        length = len(make())
        expected = take(make(), 3 * length)
        sampler = make()
        take(sampler, 2)
        sampler.set_epoch(2)
        assert list(sampler) == expected[2 * length :]
        sampler.set_epoch(2)  # over, so again
        assert list(sampler) == expected[2 * length :]

    def test_negative(self, make):
        with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
            make().set_epoch(-1)


class TestState:
    def test_small_plain_and_complete(self, make):
        state = make().state_at(3)
        assert json.loads(json.dumps(state)) == state
        assert len(json.dumps(state)) <= 128
        assert {"algo", "n", "seed", "epoch", "position"} <= state.keys()

    def test_it_is_a_copy(self, make):
        sampler = make()
        state = sampler.state_dict()
        kept = copy.deepcopy(state)
        list(sampler)
        assert state == kept
        loaded = make()
        loaded.load_state_dict(state)
        state["position"] = 99999
        assert loaded.state_dict() == kept

    def test_a_rejected_state_changes_nothing(self, make):
        sampler = make()
        next(iter(sampler))
        before = sampler.state_dict()
        with pytest.raises(StateMismatch):
            sampler.load_state_dict({**before, "n": 1})
        assert sampler.state_dict() == before

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"algo": "random/0"}, "algo is 'random/0'"),
            ({"n": 7}, "n is 7"),
            ({"seed": 6}, "seed is 6"),
            ({"position": -1}, "position is -1, not a count"),
            ({"position": 10**6}, "position is 1000000, past the end"),
            ({"position": None}, "position is None"),
            ({"epoch": "3"}, "epoch is '3', not a count"),
            ({"epoch": True}, "epoch is True, not a count"),
        ],
    )
    def test_a_state_of_something_else(self, make, change, words):
        with pytest.raises(StateMismatch, match=words):
            make().load_state_dict({**make().state_dict(), **change})

    def test_several_mistakes_are_named_together(self, make):
        with pytest.raises(
            StateMismatch, match=r"n is None.*seed is None.*epoch is None.*on_mismatch=\"restart\""
        ):
            make().load_state_dict({})
        with pytest.raises(StateMismatch, match="is a mapping, got list"):
            make().load_state_dict([])

    def test_restart_is_explicit(self, make):
        sampler = make()
        sampler.load_state_dict(
            {**make().state_dict(), "epoch": 1, "position": 3, "n": 7}, on_mismatch="restart"
        )
        state = sampler.state_dict()
        assert (state["epoch"], state["position"]) == (1, 0)
        sampler.load_state_dict({}, on_mismatch="restart")
        assert sampler.state_dict()["epoch"] == 0
        with pytest.raises(ValueError, match="raise or restart, got 'ignore'"):
            sampler.load_state_dict({}, on_mismatch="ignore")

    def test_other_names(self, make):
        sampler = make()
        sampler.set_state(sampler.state_at(2))
        assert sampler.get_state() == sampler.state_dict() == sampler.state_at(2)

    def test_consumed_out_of_range(self, make):
        sampler = make()
        for consumed in (-1, len(sampler) + 1):
            with pytest.raises(
                ValueError, match=rf"consumed must be in 0 to {len(sampler)} .*got {consumed}"
            ):
                sampler.state_at(consumed)

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
    def test_copies_go_on_by_themselves(self, make, duplicate, take):
        sampler = make()
        expected = take(make(), len(sampler))
        take(sampler, 2)
        twin = duplicate(sampler)
        assert take(sampler, 3) == expected[2:5]
        assert take(twin, 3) == expected[2:5]


def test_fingerprints_tell_data_and_limits_apart():
    def build(costs=(1, 2, 3), **kw):
        return samplers.BucketSampler(costs, **{"max_cost": 6, **kw})

    base, other_costs, other_limit = build(), build((1, 2, 4)), build(max_cost=7)
    costs, limits = base.fingerprint.split("-")
    assert other_costs.fingerprint.split("-") == [other_costs.fingerprint.split("-")[0], limits]
    assert other_limit.fingerprint.split("-")[0] == costs
    assert (
        len({s.fingerprint for s in (base, other_costs, other_limit, build(window=1), build(bounds=[2]))})
        == 5
    )
    with pytest.raises(StateMismatch, match="fingerprint is"):
        other_costs.load_state_dict(base.state_dict())
    groups = samplers.GroupBalancedSampler(list("aab"))
    with pytest.raises(StateMismatch, match="fingerprint is"):
        groups.load_state_dict(samplers.GroupBalancedSampler(list("abb")).state_dict())


@pytest.mark.parametrize("n", [0, -1, 2.5, True, None])
def test_nothing_to_sample(n):
    for build in (samplers.RandomSampler, samplers.OrderedSampler):
        with pytest.raises(ValueError, match="nothing to sample: n must be a positive integer"):
            build(n)


def test_one_item(take):
    assert take(samplers.RandomSampler(1), 3) == [0, 0, 0]
    assert take(samplers.BucketSampler([3], max_size=4), 2) == [[0], [0]]
