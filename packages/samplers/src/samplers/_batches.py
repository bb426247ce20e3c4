"""Shares of a sequence of batches: global batches first, then rank r of W takes batch k * W + r.

The sequence rarely holds a multiple of W batches. Rather than repeat a batch or let ranks wait, the last few
are split, the largest first: a part of a batch that keeps to the limits keeps to them too.

Resuming asks more: after k rounds, what is still to come may depend on the position alone, not on how it was
reached. Otherwise a run resumed on W ranks would differ from the one that was never stopped, and a run that
moves from 4 ranks to 6 could repeat or lose items. So the split is decided round by round, each time from
nothing but the rest of the sequence.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from samplers._epochs import Tail

Ends = NDArray[np.int64]


def split_largest(ends: Ends, parts: int) -> Ends:
    """Split neighbouring batches (as ends, a start first) into `parts` pieces, each time the largest."""
    sizes = np.diff(ends).tolist()
    pieces = [1] * len(sizes)
    heap = [(-size, i) for i, size in enumerate(sizes)]
    heapq.heapify(heap)
    for _ in range(parts - len(sizes)):
        _, i = heapq.heappop(heap)
        pieces[i] += 1
        heapq.heappush(heap, (-sizes[i] / pieces[i], i))
    starts = ends[:-1].tolist()
    inner = [
        start + size * k // count
        for start, size, count in zip(starts, sizes, pieces, strict=True)
        for k in range(count)
    ]
    return np.array([*inner, ends[-1]], dtype=np.int64)


def spread(ends: Ends, world_size: int) -> Ends:
    """Make the number of batches a multiple of `world_size` by splitting some of the last ones.

    Where the items do not suffice (fewer than a batch of one for every rank of the last round), that round is
    left with fewer batches than ranks, as small as they get.
    """
    done: list[Ends] = []
    while extra := (len(ends) - 1) % world_size:
        block = _last_block(ends, extra, world_size)
        if block is None:  # not enough items: whole rounds, then an incomplete one
            first = len(ends) - 1 - extra
            items = int(ends[-1] - ends[first])
            done.append(ends[:first])
            ends = split_largest(ends[first:], items)
            break
        done.append(ends[:block])
        ends = ends[block:]
        rounds = -(-(len(ends) - 1) // world_size)
        planned = split_largest(ends, rounds * world_size)
        done.append(planned[:world_size])
        ends = np.concatenate([planned[world_size : world_size + 1], ends[ends > planned[world_size]]])
    return np.concatenate([*done, ends])


def _last_block(ends: Ends, extra: int, world_size: int) -> int | None:
    """The latest batch from which the rest fills whole rounds once it is split; None where nothing does."""
    first = np.arange(len(ends) - 1 - extra, -1, -world_size)
    rounds = np.arange(1, len(first) + 1)
    enough = np.flatnonzero(ends[-1] - ends[first] >= rounds * world_size)
    return int(first[enough[0]]) if enough.size else None


class BatchLayout:
    """One rank's batches from `start` (an item position) to the end of the epoch."""

    def __init__(
        self,
        order: NDArray[np.int64],
        ends: Ends,
        start: int,
        rank: int | None,
        world_size: int,
        tail: Tail,
        on_batch: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        rest = np.concatenate([[start], ends[ends > start]])
        self._ends = spread(rest, world_size)
        self._count = len(self._ends) - 1
        whole, extra = divmod(self._count, world_size)
        self.rounds = whole + (extra > 0 and tail != "drop")
        if rank is None:  # every rank's share, in turn
            self.steps = self._count if tail == "uneven" else self.rounds * world_size
        else:
            self.steps = whole + (rank < extra) if tail == "uneven" else self.rounds
        self._order, self._first, self._stride = order, rank or 0, 1 if rank is None else world_size
        self._world = world_size
        self._on_batch = on_batch

    def position(self, steps: int) -> int:
        """Whole rounds only: of a round handed out in part (rank=None), every batch is handed out again."""
        batches = steps * self._stride // self._world * self._world
        return int(self._ends[min(batches, self._count)])

    def values(self, lo: int, hi: int) -> list[list[int]]:
        return [self._batch(step * self._stride + self._first) for step in range(lo, hi)]

    def _batch(self, number: int) -> list[int]:
        if number >= self._count:  # padding repeats the last round's own batches, which are of one item each
            last = self._count % self._world
            number = self._count - last + (number - self._count) % last
        batch = self._order[self._ends[number] : self._ends[number + 1]].tolist()
        return batch if self._on_batch is None else self._on_batch(batch)
