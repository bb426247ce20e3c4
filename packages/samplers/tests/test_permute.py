"""The keyed order: a bijection, uniform, frozen."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import permute, unpermute
from samplers._permute import LARGEST_N, SHUFFLE_LIMIT, _walk, round_keys

SIZES = [1, 2, 3, 5, 64, 1000, SHUFFLE_LIMIT, SHUFFLE_LIMIT + 1, 100_003]


@pytest.mark.parametrize("n", SIZES)
def test_every_index_comes_once(n):
    order = permute(np.arange(n), n, seed=3, epoch=2)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


@settings(max_examples=200)
@given(
    n=st.integers(1, LARGEST_N),
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 2**40),
    data=st.data(),
)
def test_inverse_undoes(n, seed, epoch, data):
    i = data.draw(st.integers(0, n - 1))
    x = permute(i, n, seed, epoch)
    assert 0 <= x < n
    assert unpermute(x, n, seed, epoch) == i
    assert permute(unpermute(i, n, seed, epoch), n, seed, epoch) == i


def test_arrays_of_any_shape_agree_with_single_positions():
    for n in (1000, 10**9):
        at = np.array([[0, 5, 17], [999, 1, 2]])
        expected = [[permute(int(i), n, 1) for i in row] for row in at]
        assert permute(at, n, 1).tolist() == expected
        assert permute(at.astype(np.uint32), n, 1).tolist() == expected
    assert permute(np.array([], dtype=int), 10).shape == (0,)


# Frozen: a run must be resumable by any later version.
GOLDEN = {
    (10, 0, 0, 0): [5, 0, 4, 3, 1, 9],
    (10, 7, 3, 0): [4, 3, 1, 0, 5, 9],
    (65536, 1, 0, 0): [4797, 11523, 47491, 25891, 28633, 16318],
    (65537, 1, 0, 0): [7720, 46070, 1569, 53206, 22564, 365],
    (10**9, 42, 5, 1): [101373982, 685688497, 781294577, 302768773, 965314741, 182222497],
    (10**12, -1, 0, 0): [539046477736, 985796228180, 348282160305, 606072716317, 323947792249, 213854873991],
    (2**62, 2**65, 1, 0): [1557655744520635217, 3924158041891388398, 929782806527891753],
}


@pytest.mark.parametrize(("key", "expected"), GOLDEN.items(), ids=str)
def test_golden_vectors(key, expected):
    n, seed, epoch, stream = key
    assert [permute(i, n, seed, epoch, stream) for i in range(len(expected))] == expected


@pytest.mark.parametrize("call", [permute, unpermute])
def test_bad_arguments(call):
    with pytest.raises(ValueError, match=r"n must be in 1 to 2\*\*62, got 0"):
        call(0, 0)
    with pytest.raises(ValueError, match="n must be in 1"):
        call(0, 2**62 + 1)
    with pytest.raises(ValueError, match="positions must be in 0 to 9, got 10 to 10"):
        call(10, 10)
    with pytest.raises(ValueError, match="got -1"):
        call(-1, 10)
    with pytest.raises(ValueError, match="integers, got dtype float64"):
        call(0.5, 10)


def z_score(counts, expected):
    """Standard deviations of the chi-square statistic from its mean, for equally likely cells."""
    chi = ((np.asarray(counts) - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return (chi - freedom) / math.sqrt(2 * freedom)


def order_counts(n, draws, order):
    counts = collections.Counter(tuple(order(seed)) for seed in range(draws))
    return [counts[p] for p in itertools.permutations(range(n))]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_permutations_of_few_are_equally_likely(n):
    draws = 40 * math.factorial(n)
    counts = order_counts(n, draws, lambda seed: permute(np.arange(n), n, seed))
    assert abs(z_score(counts, 40)) < 4


def feistel_counts(n, rounds, draws):
    positions = np.arange(n, dtype=np.uint64)
    return order_counts(n, draws, lambda s: _walk(positions, n, round_keys(s, 0, 0, rounds), False).tolist())


def test_twelve_feistel_rounds_are_uniform_over_permutations_and_six_are_not():
    assert abs(z_score(feistel_counts(4, 12, 4800), 200)) < 4
    assert z_score(feistel_counts(4, 4, 4800), 200) > 8  # the control: this test can fail


@pytest.mark.soak
def test_permutations_at_length():
    assert abs(z_score(order_counts(6, 72_000, lambda s: permute(np.arange(6), 6, s)), 100)) < 4
    assert abs(z_score(feistel_counts(5, 12, 1200), 10)) < 4
    assert z_score(feistel_counts(5, 6, 1200), 10) > 8


@pytest.mark.parametrize("n", [50, SHUFFLE_LIMIT + 1])
def test_position_by_value(n):
    """Coarse cells of position and value: each pair as often as any other, over many seeds."""
    cells, seeds = 10, 300
    at = np.arange(0, n, max(1, n // 1000))
    counts = np.zeros((cells, cells))
    for seed in range(seeds):
        np.add.at(counts, (at * cells // n, permute(at, n, seed) * cells // n), 1)
    expected = counts.sum(axis=1, keepdims=True) / cells
    chi = ((counts - expected) ** 2 / expected).sum()
    freedom = (cells - 1) ** 2
    assert abs(chi - freedom) / math.sqrt(2 * freedom) < 5


@pytest.mark.parametrize("n", [1000, 100_000])
def test_neighbours_are_independent(n):
    """Steps between neighbours: neither correlated nor more often adjacent than chance."""
    order = permute(np.arange(n), n, seed=11)
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 4 / math.sqrt(n)
    adjacent = np.sum(np.abs(np.diff(order)) == 1)  # Poisson of mean 2
    assert adjacent <= 10


@pytest.mark.parametrize("n", [1000, 100_000])
def test_orders_of_other_keys_are_independent(n):
    """Same position in another epoch, seed or stream; (s, epoch 1) against (s + 1, epoch 0) most of all."""
    keys = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1), (2, 0, 0), (-1, 0, 0), (2**64, 0, 0)]
    orders = [permute(np.arange(n), n, *key) for key in keys]
    for a, b in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(n)
        assert np.sum(a == b) <= 9  # fixed points: Poisson of mean 1
