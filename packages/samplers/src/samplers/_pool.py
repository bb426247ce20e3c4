"""A bag of marbles: draw without replacement, refill when it is empty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Generic, TypeVar

from samplers._epochs import SamplerIterator
from samplers._index import RandomSampler
from samplers._state import OnMismatch, State, digest

T = TypeVar("T")
_STABLE = (str, bytes, int, float, type(None), PurePath)


class PoolSampler(Generic[T]):
    """Draws from `pool` without replacement in O(1); an empty bag is refilled as the next epoch.

    Iterating yields what is left of the present bag and ends. The pool itself is read, never copied or
    changed: it may be a `range` of a billion.

    Args:
        pool: a sequence of anything. The state holds a hash of its items where they are text, bytes, numbers,
            paths or tuples of these; of other objects, their number alone is checked.
        seed: keys the orders of all bags.

    >>> pool = PoolSampler(["red", "green", "blue"], seed=1)
    >>> sorted(pool.sample() for _ in range(3))
    ['blue', 'green', 'red']
    >>> pool.remaining(), pool.epoch
    (0, 0)
    """

    def __init__(self, pool: Sequence[T], seed: int = 0) -> None:
        self._pool = pool
        self._sampler = _PoolIndices(pool, seed)
        self._draws: SamplerIterator[int] = iter(self._sampler)

    def sample(self) -> T:
        """One item; the first of the next bag where this one is empty."""
        for index in self._draws:
            return self._pool[index]
        self._draws = iter(self._sampler)
        return self._pool[next(self._draws)]

    def __call__(self) -> T:
        """`sample()`."""
        return self.sample()

    def remaining(self) -> int:
        """How many items are left in the present bag."""
        return len(self._pool) - self._sampler.consumed

    def __len__(self) -> int:
        return len(self._pool)

    def __iter__(self) -> Iterator[T]:
        """What is left of the present bag (a whole new one if nothing is), then the end."""
        if not self.remaining():
            self._draws = iter(self._sampler)
        return map(self._pool.__getitem__, self._draws)

    @property
    def epoch(self) -> int:
        """The number of the present bag."""
        return self._sampler.epoch

    @property
    def fingerprint(self) -> str:
        """The hash of the pool that its state carries."""
        return self._sampler.fingerprint

    def set_epoch(self, epoch: int) -> None:
        """Take bag number `epoch`, full, unless it is the present one or, that one being empty, the next."""
        self._sampler.set_epoch(epoch)
        self._draws = iter(self._sampler)

    def state_dict(self) -> State:
        """The state after the items drawn so far."""
        return self._sampler.state_dict()

    def state_at(self, consumed: int) -> State:
        """The state after `consumed` items of the present bag."""
        return self._sampler.state_at(consumed)

    def load_state_dict(self, state: Mapping[str, Any], *, on_mismatch: OnMismatch = "raise") -> None:
        """Go on from `state`; errors as for `RandomSampler.load_state_dict`."""
        self._sampler.load_state_dict(state, on_mismatch=on_mismatch)
        self._draws = iter(self._sampler)

    get_state = state_dict
    set_state = load_state_dict

    def __getstate__(self) -> dict[str, Any]:
        return {"pool": self._pool, "seed": self._sampler.seed, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["pool"], state["seed"])  # type: ignore[misc]
        self.load_state_dict(state["state"])


class _PoolIndices(RandomSampler):
    """Positions in a pool, with a fingerprint of what the pool holds, made on first use."""

    _algo = "pool/1"

    def __init__(self, pool: Sequence[Any], seed: int) -> None:
        super().__init__(len(pool), seed)
        self._pool = pool
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            items = [self._pool] if isinstance(self._pool, range) else self._pool
            self._fingerprint = digest(f"{_text(item)}\0".encode() for item in items)
        return self._fingerprint


def _text(item: object) -> str:
    """The same text in every process, or the type's name where an item has none."""
    if isinstance(item, tuple):
        return "(" + ",".join(map(_text, item)) + ")"
    return repr(item) if isinstance(item, (*_STABLE, range)) else type(item).__name__
