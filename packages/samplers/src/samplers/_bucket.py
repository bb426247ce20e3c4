"""Batches of similar cost: little padding, and other batches in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samplers._costs import Cost, Overlong, cut
from samplers._epochs import Tail
from samplers._permute import permute
from samplers._planned import BatchHook, Plan, PlannedSampler

_ITEMS, _BATCHES = 0, 1  # streams of the keyed orders
_WINDOWS, _BATCHES_PER_WINDOW = 12, 16  # of a window left to itself


class BucketSampler(PlannedSampler):
    """Shuffled batches of items of similar cost, each within a budget.

    An epoch is made in four steps: a keyed order of the items; windows of `window` of them, each sorted by
    cost (every other one downwards, so that neighbouring windows join); cuts wherever a limit is reached; a
    keyed order of the batches. Wider windows pad less; narrower ones mix more from epoch to epoch. With
    `bounds`, items are kept to fixed buckets of cost instead, in random order within each.

    Iterating yields lists of indices. With several ranks, global batches are formed first and rank r of W
    takes batch k * W + r. Their number is made a multiple of W by splitting some of the last batches, so that
    nothing repeats and no rank waits.

    Args:
        costs: one finite number >= 0 per item: seconds, tokens, frames.
        max_cost: budget of a batch, in the unit of `cost`: `max(costs in batch) * len(batch) <= max_cost`.
        max_size: most items in a batch. At least one of the two is needed.
        window: items per sorted window; by default a twelfth of the items, but at least 16 batches.
        bounds: upper bounds of fixed buckets, increasing (see `quantile_bounds`, `equal_cost_bounds`,
            `optimal_bounds`); items above the last share one more bucket.
        seed: keys all epochs.
        rank, world_size: this process of how many; rank None yields every rank's batches in turn, for a
            consumer that deals them out itself (`accelerate.prepare`).
        cost: "padded" (longest * size), "linear" (sum), "quadratic" (longest**2 * size), or a function of
            (longest, sum, size) that does not fall when an item is added.
        drop_last: leave out the last batch cut where the items end before a limit is reached.
        overlong: an item over max_cost by itself is an "error", left out ("skip") or a batch of one
            ("singleton").
        tail: where even batches of one do not fill the last round of ranks: "pad" repeats some of
            them, "drop" leaves that round out, "uneven" lets some ranks yield one batch less.
        bucket_scale: costs count as the next multiple of this, as when lengths are padded to multiples of 8.
        on_batch: called with each list before it is yielded; its return value is yielded.

    Raises:
        ValueError: bad costs, limits or options, each with what was found and what to do.

    >>> sampler = BucketSampler([1, 9, 2, 9, 1], max_cost=18, window=5)
    >>> sorted(sorted(batch) for batch in sampler)
    [[0, 2, 4], [1, 3]]
    """

    _algo: ClassVar[str] = "bucket/1"

    def __init__(
        self,
        costs: ArrayLike,
        *,
        max_cost: float | None = None,
        max_size: int | None = None,
        window: int | None = None,
        bounds: Sequence[float] | NDArray[np.floating] | None = None,
        seed: int = 0,
        rank: int | None = 0,
        world_size: int = 1,
        cost: Cost = "padded",
        drop_last: bool = False,
        overlong: Overlong = "error",
        tail: Tail = "pad",
        bucket_scale: float | None = None,
        on_batch: BatchHook | None = None,
    ) -> None:
        super().__init__(
            costs,
            max_cost,
            max_size,
            seed,
            rank,
            world_size,
            cost,
            drop_last,
            overlong,
            tail,
            bucket_scale,
            on_batch,
        )
        if window is not None and bounds is not None:
            raise ValueError("give window or bounds, not both: they are two ways to form buckets")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self._bounds = None if bounds is None else np.asarray(bounds, dtype=np.float64)
        if self._bounds is not None and (self._bounds.ndim != 1 or not (np.diff(self._bounds) > 0).all()):
            raise ValueError(f"bounds must be increasing numbers, got {bounds!r}")
        self._window = window
        self._settings += ("window", window) if self._bounds is None else ("bounds", *self._bounds.tolist())

    @cached_property
    def window(self) -> int:
        """Items per sorted window: the one given, or a twelfth of the items.

        Few items would then pad too much, so a window is at least 16 batches wide, but at most half of all.
        """
        if self._window is not None:
            return self._window
        count = self._indices.size
        ordered = np.sort(self._costs[self._indices]).tolist()
        batches = len(cut(ordered, self._cost, self.max_cost, self.max_size)) - 1
        return max(1, min(-(-count // 2), max(-(-count // _WINDOWS), _BATCHES_PER_WINDOW * count // batches)))

    def _make_plan(self, epoch: int) -> Plan:
        count = self._indices.size
        shuffled = self._indices[permute(np.arange(count), count, self.seed, epoch, _ITEMS)]
        runs = [self._sort_windows(shuffled)] if self._bounds is None else self._buckets(shuffled)
        parts = [self._cut(run) for run in runs]
        order = np.concatenate([part.order for part in parts])
        sizes = np.concatenate([np.diff(part.ends) for part in parts])
        if not sizes.size:
            return Plan(order, np.zeros(1, dtype=np.int64))
        return _reorder(order, sizes, permute(np.arange(sizes.size), sizes.size, self.seed, epoch, _BATCHES))

    def _sort_windows(self, shuffled: NDArray[np.int64]) -> NDArray[np.int64]:
        costs = self._costs[shuffled]
        window = np.arange(shuffled.size) // self.window
        return shuffled[np.lexsort((np.where(window % 2, -costs, costs), window))]

    def _buckets(self, shuffled: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        bucket = np.searchsorted(self._bounds, self._costs[shuffled], side="left")
        grouped = np.argsort(bucket, kind="stable")
        return np.split(shuffled[grouped], np.flatnonzero(np.diff(bucket[grouped])) + 1)


def _reorder(order: NDArray[np.int64], sizes: NDArray[np.int64], turn: NDArray[np.int64]) -> Plan:
    """Put batches (of these sizes, one after the other in `order`) into the order `turn`."""
    old_starts = (np.cumsum(sizes) - sizes)[turn]
    ends = np.concatenate([[0], np.cumsum(sizes[turn])])
    # Item j of the new order is item j - (new start of its batch) + (old start of its batch) of the old one.
    return Plan(order[np.arange(ends[-1]) + np.repeat(old_starts - ends[:-1], sizes[turn])], ends)
