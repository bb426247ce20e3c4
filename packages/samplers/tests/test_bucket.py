"""Batches within limits: always, for any costs; and with little padding."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import samplers
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import BatchedOrderedSampler, BucketSampler, equal_cost_bounds, optimal_bounds, quantile_bounds

COST = {
    "padded": lambda c: max(c) * len(c),
    "linear": sum,
    "quadratic": lambda c: max(c) ** 2 * len(c),
}


@settings(max_examples=300)
@given(
    costs=st.lists(st.floats(0, 100) | st.sampled_from([1.0, 5.0]), min_size=1, max_size=80),
    cost=st.sampled_from(sorted(COST)),
    max_size=st.none() | st.integers(1, 9),
    world=st.integers(1, 4),
    shape=st.sampled_from([{"window": 1}, {"window": 7}, {}, {"bounds": [5.0, 50.0]}]),
)
def test_no_limit_is_ever_exceeded_and_nothing_is_lost(costs, cost, max_size, world, shape):
    budget = 10_000.0 if cost == "quadratic" else 150.0
    seen = []
    for rank in range(world):
        sampler = BucketSampler(
            costs, max_cost=budget, max_size=max_size, cost=cost, rank=rank, world_size=world, **shape
        )
        for batch in sampler:
            assert batch
            assert COST[cost]([costs[i] for i in batch]) <= budget
            assert max_size is None or len(batch) <= max_size
            seen += batch
    assert set(seen) == set(range(len(costs)))
    assert len(seen) - len(costs) < world


@given(costs=st.lists(st.floats(0, 10), min_size=1, max_size=60), max_cost=st.floats(10, 50))
def test_ordered_batches_keep_the_order_and_are_as_long_as_they_can_be(costs, max_cost):
    batches = list(BatchedOrderedSampler(costs, max_cost=max_cost))
    assert [i for batch in batches for i in batch] == list(range(len(costs)))
    for batch, following in itertools.pairwise(batches):
        assert COST["padded"]([costs[i] for i in batch]) <= max_cost
        assert COST["padded"]([costs[i] for i in [*batch, following[0]]]) > max_cost


class TestLimits:
    def test_either_limit_alone(self):
        assert [len(b) for b in BatchedOrderedSampler([1] * 5, max_size=2)] == [2, 2, 1]
        assert [len(b) for b in BatchedOrderedSampler([1] * 5, max_cost=3)] == [3, 2]

    @pytest.mark.parametrize("build", [BucketSampler, BatchedOrderedSampler])
    @pytest.mark.parametrize(
        ("costs", "options", "words"),
        [
            ([], {"max_size": 1}, "nothing to sample: costs is empty"),
            ([[1, 2]], {"max_size": 1}, r"one number per item, got an array of shape \(1, 2\)"),
            (
                [1, float("nan"), -1],
                {"max_size": 1},
                r"2 of 3 costs are not finite .* first is costs\[1\] = nan",
            ),
            ([1, -2], {"max_size": 1}, r"costs\[1\] = -2.0"),
            ([float("inf")], {"max_size": 1}, r"costs\[0\] = inf"),
            ([1], {}, "give max_cost, max_size or both"),
            ([1], {"max_cost": 0}, "max_cost must be positive, got 0"),
            ([1], {"max_cost": float("nan")}, "max_cost must be positive, got nan"),
            ([1], {"max_size": 0}, "max_size must be at least 1, got 0"),
            ([1], {"max_size": 1, "cost": "cubic"}, "one of padded, linear, quadratic, got 'cubic'"),
            ([1], {"max_size": 1, "overlong": "cut"}, "overlong must be error, skip or singleton, got 'cut'"),
            ([1], {"max_size": 1, "bucket_scale": 0}, "bucket_scale must be positive, got 0"),
            (
                [3, 1, 5],
                {"max_cost": 4},
                r"1 of 3 items cost more than max_cost=4 on their own, the first item 2",
            ),
            ([5], {"max_cost": 4, "overlong": "skip"}, "nothing is left to sample: all 1 items"),
            ([1], {"max_cost": 9, "drop_last": True}, "drop_last leaves nothing of epoch 0"),
        ],
    )
    def test_bad_input(self, build, costs, options, words):
        with pytest.raises(ValueError, match=words):
            iter(build(costs, **options))

    def test_over_long_items(self):
        costs = [1, 9, 1, 1]
        assert list(BatchedOrderedSampler(costs, max_cost=3, overlong="skip")) == [[0, 2, 3]]
        assert list(BatchedOrderedSampler(costs, max_cost=3, overlong="singleton")) == [[0], [1], [2, 3]]
        assert sorted(map(sorted, BucketSampler(costs, max_cost=3, window=4, overlong="singleton"))) == [
            [0, 2, 3],
            [1],
        ]
        sampler = BucketSampler(costs, max_cost=3, overlong="skip")
        assert sorted(i for _ in range(2) for b in sampler for i in b) == [0, 0, 2, 2, 3, 3]

    def test_drop_last(self):
        assert list(BatchedOrderedSampler([1] * 5, max_size=2, drop_last=True)) == [[0, 1], [2, 3]]
        assert list(BatchedOrderedSampler([1] * 6, max_cost=3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
        assert sum(map(len, BucketSampler([1] * 7 + [5] * 7, max_size=3, bounds=[2], drop_last=True))) == 12
        sampler = BucketSampler([1] * 7, max_size=3, drop_last=True)
        assert [sorted(map(len, sampler)) for _ in range(3)] == [[3, 3]] * 3

    def test_costs_by_a_function(self):
        def with_overhead(longest, total, size):
            return longest * size + 2 * size

        assert list(BatchedOrderedSampler([1] * 4, max_cost=6, cost=with_overhead)) == [[0, 1], [2, 3]]

    def test_bucket_scale_counts_padded_lengths(self):
        costs = [7, 8, 9, 1]
        assert list(BatchedOrderedSampler(costs, max_cost=16, bucket_scale=8)) == [[0, 1], [2], [3]]
        assert list(BatchedOrderedSampler(costs, max_cost=18)) == [[0, 1], [2, 3]]

    def test_the_caller_keeps_the_costs(self):
        costs = np.array([1.0, 2.0, 3.0, 4.0])
        sampler = BucketSampler(costs, max_cost=8, window=4)
        before = [*sampler]
        costs[:] = 100
        sampler.set_epoch(0)
        assert [*sampler] == before

    def test_a_hook_sees_each_batch(self):
        seen = []

        def widen(batch):
            seen.append(batch)
            return [*batch, -1]

        sampler = BucketSampler([1] * 6, max_size=2, on_batch=widen)
        batches = list(sampler)
        assert all(batch[-1] == -1 and len(batch) == 3 for batch in batches)
        assert [batch[:-1] for batch in batches] == seen
        assert sampler.state_dict()["epoch"] == 1


class TestBuckets:
    def test_epochs_and_seeds_differ(self, durations):
        def batches(seed, epoch):
            sampler = BucketSampler(durations, max_cost=200, seed=seed)
            sampler.set_epoch(epoch)
            return {frozenset(b) for b in sampler}

        first = batches(0, 0)
        assert first == batches(0, 0)
        for other in (batches(0, 1), batches(1, 0), batches(1, 1)):
            assert len(first & other) < 0.1 * len(first)

    def test_window_or_bounds(self):
        with pytest.raises(ValueError, match="window or bounds, not both"):
            BucketSampler([1], max_size=1, window=1, bounds=[1])
        with pytest.raises(ValueError, match="window must be at least 1"):
            BucketSampler([1], max_size=1, window=0)
        with pytest.raises(ValueError, match="bounds must be increasing"):
            BucketSampler([1], max_size=1, bounds=[2, 1])

    def test_fixed_buckets_are_not_mixed(self, durations):
        bounds = [4.0, 8.0, 16.0]
        for batch in BucketSampler(durations, max_size=9, bounds=bounds):
            assert len(set(np.searchsorted(bounds, durations[batch]).tolist())) == 1

    def test_the_default_window_is_a_twelfth_of_many_and_16_batches_of_few(self):
        many = BucketSampler(np.ones(12_000), max_size=10)
        few = BucketSampler(np.ones(1000), max_size=10)
        fewest = BucketSampler(np.ones(30), max_size=10)
        assert (many.window, few.window, fewest.window) == (1000, 160, 15)


class TestBounds:
    def test_shares(self, durations):
        assert (
            np.diff(np.searchsorted(np.sort(durations), quantile_bounds(durations, 10))).tolist() == [100] * 8
        )
        ordered = np.sort(durations)
        sums = [
            part.sum()
            for part in np.split(ordered, np.searchsorted(ordered, equal_cost_bounds(durations, 5), "right"))
        ]
        assert np.allclose(sums, durations.sum() / 5, rtol=0.02)

    @staticmethod
    def padding(costs, bounds):
        edges = np.append(bounds, np.max(costs))
        return sum(edges[np.searchsorted(edges, c)] - c for c in costs)

    @given(costs=st.lists(st.integers(1, 12), min_size=1, max_size=25), buckets=st.integers(1, 4))
    def test_optimal_is_the_best_of_all(self, costs, buckets):
        best = min(
            self.padding(costs, np.array(chosen))
            for k in range(buckets)
            for chosen in itertools.combinations(sorted(set(costs)), k)
        )
        assert self.padding(costs, optimal_bounds(costs, buckets)) == best

    def test_optimal_on_many_values_is_no_worse_than_the_others(self, durations):
        padding = {
            f: self.padding(durations, f(durations, 8))
            for f in (optimal_bounds, quantile_bounds, equal_cost_bounds)
        }
        assert padding[optimal_bounds] == min(padding.values())

    @pytest.mark.parametrize("bounds", [quantile_bounds, equal_cost_bounds, optimal_bounds])
    def test_degenerate(self, bounds):
        assert bounds([3, 3, 3], 4).tolist() == []
        assert bounds([1, 2], 1).tolist() == []
        assert bounds([0, 0], 3).tolist() == []
        with pytest.raises(ValueError, match="buckets must be at least 1, got 0"):
            bounds([1], 0)


def test_targets_on_lognormal_durations():
    """The figures of the README: 100,000 durations, padded budget 400."""
    costs = np.clip(np.random.default_rng(0).lognormal(1.9, 0.65, 100_000), 1, 40)
    report = BucketSampler(costs, max_cost=400).report()
    assert report.waste <= 0.01
    assert report.co_pair <= 0.06
    assert report.over_budget == 0
    assert report.budget_used >= 0.98
    lags = []
    for seed in range(8):
        sampler = BucketSampler(costs, max_cost=400, seed=seed)
        sampler.set_epoch(seed)
        lags.append(sampler.report().lag1)
    assert abs(np.mean(lags)) < 0.03
    shuffled = BucketSampler(costs, max_cost=400, window=1).report()
    assert shuffled.waste > 0.6  # the control: what random batches waste


def test_report_of_hand_made_batches():
    report = BatchedOrderedSampler([1, 3, 2, 2, 4], max_cost=6).report()
    # [1, 3], [2, 2], [4]: padded 6 + 4 + 4 of which 2 are padding
    assert (report.items, report.batches, report.smallest, report.largest) == (5, 3, 1, 2)
    assert report.waste == pytest.approx(2 / 14)
    assert report.budget_used == pytest.approx(14 / 3 / 6)
    assert report.co_pair == 1.0
    assert report.over_budget == 0
    assert "waste 14.29%, budget used 77.8%" in str(report)
    over = BatchedOrderedSampler([9, 1, 1], max_cost=6, overlong="singleton").report()
    assert over.over_budget == 0.5
    assert BatchedOrderedSampler([1, 1], max_size=1).report().budget_used is None
    assert samplers.Report.__doc__


@pytest.mark.parametrize(
    ("name", "budget", "waste", "random"),
    [("demo", 30, 0.03, 0.2), ("recordings", 30, 0.1, 0.4)],  # few items: wider windows would mix too little
)
def test_real_durations(name, budget, waste, random):
    """Those of the demo corpus and of recordings of a human speaker; see data/README.md."""
    costs = np.loadtxt(Path(__file__).parent / "data" / f"{name}.txt")
    sampler = BucketSampler(costs, max_cost=budget, overlong="singleton")
    for _ in range(2):
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(costs)))
        assert all(len(b) == 1 or costs[b].max() * len(b) <= budget for b in batches)
    report = sampler.report()
    assert report.waste <= waste
    assert report.budget_used >= 0.85  # singletons above the budget and short last batches included
    assert BucketSampler(costs, max_cost=budget, window=1, overlong="singleton").report().waste >= random  # the control
