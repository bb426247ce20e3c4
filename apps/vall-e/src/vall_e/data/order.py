"""In which order the training split is read: which sampler makes the batches that a configuration asks for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from samplers import BatchedOrderedSampler, BucketSampler, GroupBalancedSampler, OrderedSampler, RandomSampler

from vall_e import config
from vall_e.data.store import Entry


class BatchSampler(Protocol):
    """What the loader needs of a sampler of batches; those of `samplers` are some."""

    @property
    def epoch(self) -> int: ...
    @property
    def consumed(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[int]]: ...
    def state_at(self, consumed: int) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], *, on_mismatch: Literal["raise", "restart"] = "raise") -> None: ...


def batch_sampler(
    cfg: config.Dataset,
    entries: Sequence[Entry],
    batch_size: int,
    frame_rate: float,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> BatchSampler:
    """The sampler of `dataset.sample_type`, `sample_order` and `sample_max_duration_batch`."""
    # What is computed is the whole sequence, not the response alone.
    costs = [e.frames + e.phones for e in entries]
    limits: dict[str, Any] = {"max_size": batch_size}
    if cfg.sample_max_duration_batch:
        limits |= {"max_cost": cfg.sample_max_duration_batch * frame_rate}
    ranks = {"rank": rank, "world_size": world_size}
    if cfg.sample_type == "path" and cfg.sample_order == "duration":
        if not cfg.sample_shuffle:
            return BatchedOrderedSampler(costs, overlong="singleton", **limits, **ranks)
        return BucketSampler(costs, seed=cfg.seed, overlong="singleton", **limits, **ranks)
    items: RandomSampler | GroupBalancedSampler | OrderedSampler
    if cfg.sample_type != "path" or cfg.sample_order == "interleaved":
        groups = [e.group if cfg.sample_type == "group" else e.speaker for e in entries]
        # Speakers in turn, as often as they have utterances; or speakers or groups equally often.
        weights = {g: groups.count(g) for g in set(groups)} if cfg.sample_type == "path" else None
        items = GroupBalancedSampler(groups, weights=weights, seed=cfg.seed)
    else:
        items = RandomSampler(len(entries), cfg.seed) if cfg.sample_shuffle else OrderedSampler(len(entries))
    return CutBatches(items, costs, **limits, **ranks)


class CutBatches:
    """Batches cut from the order of a sampler of items, each ended by the first item that does not fit.

    Batches are cut first and dealt to the ranks then: rank r of W takes every W-th from r on. What does not fill
    the last round waits for the next epoch's order. The state is that of the items, and so fits any number of
    ranks.

    Args:
        items: a sampler of single items, of one rank.
        costs: of each item.
        max_size: items in a batch.
        max_cost: the largest cost in a batch times its size; None for no limit. An item above it is alone.
    """

    def __init__(
        self,
        items: RandomSampler | GroupBalancedSampler | OrderedSampler,
        costs: Sequence[float],
        *,
        max_size: int,
        max_cost: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._items, self._costs = items, costs
        self._max_size, self._max_cost = max_size, max_cost
        self._rank, self._world = rank, world_size
        self._state = items.state_dict()
        self._planned: tuple[dict[str, Any], list[list[int]]] | None = None
        self._taken = 0

    @property
    def epoch(self) -> int:
        return self._state["epoch"]

    @property
    def consumed(self) -> int:
        """Batches that this rank has taken since the last resume or the epoch's beginning."""
        return self._taken

    def __len__(self) -> int:
        """What is left of the epoch for each rank."""
        return len(self._plan()) // self._world

    def __iter__(self) -> Iterator[list[int]]:
        if self._taken:
            self.load_state_dict(self.state_at(self._taken))
        plan = self._plan()
        for batch in plan[self._rank :: self._world]:
            self._taken += 1
            yield batch

    def state_at(self, consumed: int) -> dict[str, Any]:
        """The state after each rank took `consumed` batches since the last resume or the epoch's beginning."""
        plan = self._plan()
        if consumed * self._world >= len(plan):
            return {**self._state, "epoch": self.epoch + 1, "position": 0}
        done = sum(map(len, plan[: consumed * self._world]))
        return {**self._state, "position": self._state["position"] + done}

    def load_state_dict(self, state: dict[str, Any], *, on_mismatch: Literal["raise", "restart"] = "raise") -> None:
        """See the samplers of items: the state of another dataset is refused, or begins its epoch anew."""
        items = copy.copy(self._items)
        items.load_state_dict(state, on_mismatch=on_mismatch)
        self._state, self._taken, self._planned = items.state_dict(), 0, None

    def _plan(self) -> list[list[int]]:
        """The batches of the rest of the epoch, over all ranks."""
        if self._planned is None or self._planned[0] != self._state:
            items = copy.copy(self._items)
            items.load_state_dict(self._state)
            batches: list[list[int]] = [[]]
            largest = 0.0
            for item in items:
                largest = max(largest, self._costs[item])
                size = len(batches[-1]) + 1
                too_much = self._max_cost is not None and largest * size > self._max_cost
                if batches[-1] and (size > self._max_size or too_much):
                    batches.append([])
                    largest = self._costs[item]
                batches[-1].append(item)
            whole = len(batches) - len(batches) % self._world
            if not whole:
                raise ValueError(f"{len(batches)} batches for {self._world} ranks: use fewer ranks or smaller batches")
            self._planned = dict(self._state), batches[:whole]
        return self._planned[1]
