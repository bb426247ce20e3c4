"""The resume matrix: every position x workers x ranks before x ranks after, behind real loaders.

By default every position without workers and some with two; `-m soak` runs all of it, with up to four of either.
"""

import itertools
import json

import pytest
import samplers

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, Dataset  # noqa: E402

COSTS = [1, 2, 3, 4, 2, 1] * 5


class Echo(Dataset):
    """Item i is i."""

    def __len__(self):
        return len(COSTS)

    def __getitem__(self, index):
        return index


def as_list(batch):
    return list(batch)


def bucket(rank, world):
    sampler = samplers.BucketSampler(COSTS, max_cost=8, window=9, seed=2, rank=rank, world_size=world)
    return sampler, {"batch_sampler": sampler}


def single(rank, world):
    sampler = samplers.RandomSampler(len(COSTS), seed=4, rank=rank, world_size=world)
    return sampler, {"sampler": sampler, "batch_size": None}


KINDS = {"batches": bucket, "indices": single}
RANKS = [1, 2, 3]


def loaders(kind, world, workers, state=None):
    """One sampler and loader for each rank."""
    ranks = []
    for rank in range(world):
        sampler, arguments = KINDS[kind](rank, world)
        if state is not None:
            sampler.load_state_dict(json.loads(json.dumps(state)))
        collate = {"collate_fn": as_list} if kind == "batches" else {}
        ranks.append((sampler, DataLoader(Echo(), num_workers=workers, **collate, **arguments)))
    return ranks


def flat(shares):
    """The items of several ranks' values, round by round."""
    values = [value for row in itertools.zip_longest(*shares) for value in row if value is not None]
    return [i for value in values for i in (value if isinstance(value, list) else [value])]


def check(kind, workers, before, after, positions):
    whole = [list(KINDS[kind](rank, before)[0]) for rank in range(before)]
    epoch = set(range(len(COSTS)))
    for consumed in range(0, len(whole[0]) + 1, positions):
        first = loaders(kind, before, workers)
        seen = [list(itertools.islice(iter(loader), consumed)) for _, loader in first]
        assert seen == [share[:consumed] for share in whole]
        states = [sampler.state_at(consumed) for sampler, _ in first]
        assert all(state == states[0] for state in states)
        rest = [list(loader) for _, loader in loaders(kind, after, workers, states[-1])]
        assert len({len(share) for share in rest}) == 1  # no rank waits
        if consumed == len(whole[0]):
            assert set(flat(rest)) == epoch  # the next one, whole
            continue
        if before == after:
            assert [[*a, *b] for a, b in zip(seen, rest, strict=True)] == whole
        items = flat(seen) + flat(rest)
        assert set(items) == epoch
        assert len(items) - len(epoch) < max(before, after)  # only a last round that nothing could fill


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), list(itertools.product(RANKS, RANKS)))
def test_a_part_of_the_matrix(kind, before, after):
    check(kind, 0, before, after, positions=1)
    check(kind, 2, before, after, positions=5 if kind == "batches" else 17)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), list(itertools.product([*RANKS, 4], [*RANKS, 4])))
def test_the_whole_matrix(kind, workers, before, after):
    check(kind, workers, before, after, positions=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2, pytest.param(4, marks=pytest.mark.soak)])
def test_stateful_loaders_of_two_ranks(kind, workers, request):
    module = pytest.importorskip("torchdata.stateful_dataloader")
    every = request.node.get_closest_marker("soak") is not None
    collate = {"collate_fn": as_list} if kind == "batches" else {}

    def loader(rank):
        return module.StatefulDataLoader(Echo(), num_workers=workers, **collate, **KINDS[kind](rank, 2)[1])

    whole = [list(KINDS[kind](rank, 2)[0]) for rank in range(2)]
    for consumed in range(1, len(whole[0]), 1 if every or not workers else 6):
        for rank in range(2):
            first = loader(rank)
            seen = list(itertools.islice(iter(first), consumed))
            second = loader(rank)
            second.load_state_dict(first.state_dict())
            assert seen + list(second) == whole[rank]
