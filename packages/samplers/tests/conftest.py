"""What several tests need: durations like those of speech, one sampler of each kind, and ways to run them."""

import itertools

import hypothesis
import numpy as np
import pytest
import samplers

hypothesis.settings.register_profile("samplers", deadline=None, print_blob=True)  # machines may be busy
hypothesis.settings.load_profile("samplers")


@pytest.fixture
def durations():
    """1,000 lognormal durations, 1 to 40 seconds."""
    return np.clip(np.random.default_rng(0).lognormal(1.9, 0.65, 1000), 1, 40)


KINDS = {
    "ordered": lambda **kw: samplers.OrderedSampler(23, **kw),
    "random": lambda **kw: samplers.RandomSampler(23, seed=5, **kw),
    "groups": lambda **kw: samplers.GroupBalancedSampler(list("aaaaaaaaabbbbbccc"), seed=5, **kw),
    "ordered-batches": lambda **kw: samplers.BatchedOrderedSampler([1, 2, 3, 4, 2] * 7, max_cost=6, **kw),
    "windows": lambda **kw: samplers.BucketSampler([1, 2, 3, 4, 2] * 7, max_cost=8, window=12, seed=5, **kw),
    "bounds": lambda **kw: samplers.BucketSampler(
        [1, 2, 3, 4, 2] * 7, max_size=3, bounds=[1, 3], seed=5, **kw
    ),
}


@pytest.fixture(params=KINDS)
def make(request):
    """Builds a sampler of one kind; called with rank and so on."""
    return KINDS[request.param]


@pytest.fixture
def take():
    """The next `count` values over as many epochs as it takes, by plain iteration."""

    def run(sampler, count):
        endless = itertools.chain.from_iterable(iter(sampler) for _ in itertools.repeat(None))
        return list(itertools.islice(endless, count))

    return run


@pytest.fixture
def flat():
    """All indices of a list of indices or of batches."""

    def run(values):
        return [i for value in values for i in (value if isinstance(value, list) else [value])]

    return run
