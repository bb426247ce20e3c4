"""Groups in turn: a small group is seen as often as a large one, or as often as its weight says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from samplers._epochs import EpochSampler, Tail
from samplers._items import ItemLayout
from samplers._permute import hashed, round_keys
from samplers._state import digest

_TURNS, _MEMBERS = 0, 1  # streams of hashes


class GroupBalancedSampler(EpochSampler[int]):
    """Indices whose groups alternate: in every round each group has one turn, in a keyed order.

    Within a group, indices come in a keyed random order, without replacement: a small group begins anew (in
    another order) while a large one goes on where it was, also from one epoch to the next. With weights, a
    group of twice the weight has twice the turns, spread evenly: its k-th of c turns falls at a random time
    in the k-th of c equal parts of the epoch.

    An epoch has as many turns as there are indices, rounded so that each group has its whole share, at least
    one. Costs 8 bytes of memory per turn beside the groups themselves.

    Args:
        groups: the group of each index (any hashable: speaker, language, class).
        weights: relative number of turns per group; by default all alike.
        seed, rank, world_size, tail: as for `RandomSampler`.

    Raises:
        ValueError: no groups, or weights that are missing, not positive or of unknown groups.

    >>> sampler = GroupBalancedSampler(["a"] * 6 + ["b"] * 2, seed=5)
    >>> turns = ["a" if index < 6 else "b" for index in sampler]
    >>> [sorted(turns[i : i + 2]) for i in range(0, 8, 2)]
    [['a', 'b'], ['a', 'b'], ['a', 'b'], ['a', 'b']]
    """

    _algo: ClassVar[str] = "groups/1"

    def __init__(
        self,
        groups: Sequence[Hashable],
        *,
        weights: Mapping[Hashable, float] | None = None,
        seed: int = 0,
        rank: int | None = 0,
        world_size: int = 1,
        tail: Tail = "pad",
    ) -> None:
        codes: dict[Hashable, int] = {}
        coded = np.array([codes.setdefault(group, len(codes)) for group in groups], dtype=np.int64)
        super().__init__(coded.size, seed, rank, world_size, tail)
        self._sizes = np.bincount(coded)
        self._members = np.argsort(coded, kind="stable")  # group after group
        self._first = np.cumsum(self._sizes) - self._sizes
        share = _weights(codes, weights)
        self._turns = np.maximum(1, np.rint(self.n * share / share.sum()).astype(np.int64))
        self._fingerprint = digest([coded.astype("<i8").tobytes(), self._turns.astype("<i8").tobytes()])
        self._orders: dict[int, NDArray[np.int64]] = {}

    @property
    def fingerprint(self) -> str:
        """A hash of the groups and of their turns."""
        return self._fingerprint

    def _length(self) -> int:
        return int(self._turns.sum())

    def _layout(self, epoch: int, position: int) -> ItemLayout:
        if epoch not in self._orders:
            self._orders = {epoch: self._order(epoch)}  # one epoch is kept
        order = self._orders[epoch]
        return ItemLayout(
            lambda at: order[at], position, self._length(), self.rank, self.world_size, self.tail
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        number = _count_within(self._turns)
        jitter = hashed(np.arange(number.size), round_keys(self.seed, epoch, _TURNS, 1)[0])
        time = (number + (jitter >> np.uint64(11)) * 2.0**-53) / np.repeat(self._turns, self._turns)
        return self._draws(epoch)[np.argsort(time, kind="stable")]

    def _draws(self, epoch: int) -> NDArray[np.int64]:
        """The index drawn at each turn of each group: group after group, turns in order.

        A group's draws are numbered through all epochs; draw m is number m % size of its cycle m // size. A
        cycle's order is that of a hash of (index, cycle), for all groups and cycles of the epoch at once.
        """
        begin = epoch * self._turns
        first_cycle = begin // self._sizes
        cycles = (begin + self._turns - 1) // self._sizes - first_cycle + 1
        group = np.repeat(np.arange(self._sizes.size), cycles)  # one entry per (group, cycle)
        cycle = first_cycle[group] + _count_within(cycles)
        entry = np.repeat(np.arange(group.size), self._sizes[group])  # one entry per (group, cycle, member)
        within = _count_within(self._sizes[group])
        index = self._members[self._first[group[entry]] + within]
        key = round_keys(self.seed, 0, _MEMBERS, 1)[0]
        shuffled = np.lexsort((hashed(index, hashed(cycle[entry], key)), entry))
        drawn = cycle[entry] * self._sizes[group[entry]] + within
        wanted = (drawn >= begin[group[entry]]) & (drawn < (begin + self._turns)[group[entry]])
        return index[shuffled][wanted]

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_orders": {}}


def _count_within(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 to size - 1 for each size, one after the other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _weights(codes: Mapping[Hashable, int], weights: Mapping[Hashable, float] | None) -> NDArray[np.float64]:
    if weights is None:
        return np.ones(len(codes))
    if missing := [group for group in codes if group not in weights]:
        raise ValueError(f"{len(missing)} groups have no weight, the first is {missing[0]!r}")
    if unknown := [group for group in weights if group not in codes]:
        raise ValueError(
            f"{len(unknown)} weights are of groups that hold no index, the first is {unknown[0]!r}"
        )
    share = np.array([weights[group] for group in codes], dtype=np.float64)
    if not (np.isfinite(share) & (share > 0)).all():
        raise ValueError(f"weights must be positive and finite, got {dict(weights)!r}")
    return share
