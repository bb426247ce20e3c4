"""The part every sampler shares: epochs, position, state, and iterators that know where they are.

A sampler describes one epoch as a `Layout`: what this rank yields from some position to the epoch's end.
Everything else (resuming, counting, moving to the next epoch) is done here, once.

The position is counted in items of the epoch over all ranks. It names neither a rank nor a world size, which
is why a run can go on with another number of ranks.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from samplers._state import OnMismatch, State, StateMismatch, read_state

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Tail = Literal["pad", "drop", "uneven"]
TAILS = ("pad", "drop", "uneven")


class Layout(Protocol[T_co]):
    """What one rank yields from a position to the end of the epoch."""

    rounds: int  # steps until the last rank is done
    steps: int  # steps of this rank

    def position(self, steps: int) -> int:
        """The position (items, all ranks) after this rank took `steps`."""

    def values(self, lo: int, hi: int) -> list[T_co]:
        """What this rank yields at steps lo to hi - 1."""


class SamplerIterator(itertools.chain[T]):
    """One pass over the rest of an epoch, with `state_dict()` and `load_state_dict()`.

    A chain of lists: `next()` then runs in C, at a third of the cost of a Python `__next__`, and the number
    of values taken is read off the list iterator in use (`__length_hint__` of a list iterator is exact).
    """

    _sampler: EpochSampler[T]
    _epoch: int
    _layout: Layout[T]
    _done: int  # steps up to the end of the list in use
    _chunk: Iterator[T]
    _exhausted: bool

    def _chunks(self) -> Iterator[Iterator[T]]:
        # A first small list makes the first value cheap; the size then doubles up to the limit.
        size = 64
        while self._done < self._layout.steps:
            hi = min(self._done + size, self._layout.steps)
            self._chunk = iter(self._layout.values(self._done, hi))
            self._done = hi
            size = min(2 * size, self._sampler._chunk_size)
            yield self._chunk
        self._exhausted = True

    def _start(self, epoch: int, layout: Layout[T]) -> None:
        self._epoch, self._layout, self._done, self._chunk = epoch, layout, 0, iter(())
        self._exhausted = False

    @property
    def _steps(self) -> int:
        return self._done - self._chunk.__length_hint__()  # type: ignore[attr-defined]

    def _where(self) -> tuple[int, int]:
        steps = self._steps
        return (
            (self._epoch + 1, 0)
            if steps == self._layout.steps
            else (self._epoch, self._layout.position(steps))
        )

    def state_dict(self) -> State:
        """The state after the values taken so far."""
        return self._sampler._state(*self._where())

    def load_state_dict(self, state: Mapping[str, Any], *, on_mismatch: OnMismatch = "raise") -> None:
        """Go on from `state`. The sampler goes along: this becomes its current iterator."""
        if self._exhausted:
            raise RuntimeError("this iterator has ended; load the state into the sampler and take a new one")
        self._sampler.load_state_dict(state, on_mismatch=on_mismatch)
        deque(self._chunk, maxlen=0)  # the chain drops a list once it is used up
        self._sampler._attach(self)


class EpochSampler(ABC, Generic[T]):
    """Base of the samplers; see the subclasses for what is sampled.

    Iterating yields the rest of the current epoch; the next `iter()` starts the next epoch. An iteration that
    was left early is continued by the next one.
    """

    _algo: ClassVar[str]
    _chunk_size: ClassVar[int] = 16384

    def __init__(self, n: int, seed: int, rank: int | None, world_size: int, tail: Tail) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"there is nothing to sample: n must be a positive integer, got {n!r}")
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {world_size}")
        if rank is not None and not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be in 0 to {world_size - 1} (or None for every rank's share), got {rank}"
            )
        if tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {tail!r}")
        self.n = n
        self.seed = int(seed)
        self.rank = rank
        self.world_size = world_size
        self.tail: Tail = tail
        self._epoch = 0
        self._start = 0
        self._current: Layout[T] | None = None
        self._iterator: SamplerIterator[T] | None = None

    # What a subclass says.

    def _length(self) -> int:
        """Items in an epoch, over all ranks: the end of `position`."""
        return self.n

    @abstractmethod
    def _layout(self, epoch: int, position: int) -> Layout[T]:
        """What this rank yields from `position` to the end of `epoch`."""

    @property
    def fingerprint(self) -> str | None:
        """A hash of what the order depends on besides n, seed and epoch; None where there is nothing else."""
        return None

    # Epochs.

    @property
    def epoch(self) -> int:
        """The epoch of the last iteration begun, loaded or set.

        It changes at `iter()`, not at the last value, so a loader that fetches ahead does not move it early.
        """
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Start `epoch` from its beginning, unless the next iteration is in it already (a resumed one)."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        if self._where()[0] != epoch:
            self._move(epoch, 0)

    def __len__(self) -> int:
        """What this rank yields in the whole of the current epoch."""
        return self._full_layout(self._epoch).steps

    def __iter__(self) -> SamplerIterator[T]:
        self._move(*self._where())
        iterator: SamplerIterator[T] = SamplerIterator.from_iterable(_deferred(lambda: iterator))
        self._attach(iterator)
        return iterator

    # State.

    def state_dict(self) -> State:
        """The state after the values yielded so far: a new dict, plain JSON.

        Behind a loader that fetches ahead, what was yielded is more than what was trained on: use `state_at`.
        """
        return self._state(*self._where())

    def state_at(self, consumed: int) -> State:
        """The state after this rank consumed `consumed` values of the current epoch, in constant time.

        Count from the epoch's beginning; after a resume, count on from `self.consumed`.
        """
        base, layout = self._base(), self._layout_now()
        if consumed < base:
            base, layout = 0, self._full_layout(self._epoch)
        if not 0 <= consumed <= base + layout.steps:
            raise ValueError(
                f"consumed must be in 0 to {base + layout.steps} (epoch {self._epoch}), got {consumed}"
            )
        if consumed == base + layout.steps:
            return self._state(self._epoch + 1, 0)
        return self._state(self._epoch, layout.position(consumed - base))

    @property
    def consumed(self) -> int:
        """How many values of the current epoch this rank has yielded, those before a resume included."""
        return self._base() + (self._iterator._steps if self._iterator is not None else 0)

    def load_state_dict(self, state: Mapping[str, Any], *, on_mismatch: OnMismatch = "raise") -> None:
        """Go on from `state`, whatever the number of ranks it was saved with.

        Args:
            state: from `state_dict` or `state_at`.
            on_mismatch: "raise", or "restart" to begin the stored epoch anew with this sampler's own items.

        Raises:
            StateMismatch: the state is of another dataset, algorithm, version, seed or set of limits.
        """
        if on_mismatch not in ("raise", "restart"):
            raise ValueError(f"on_mismatch must be raise or restart, got {on_mismatch!r}")
        try:
            epoch, position = read_state(state, self._constants(), self._length())
        except StateMismatch:
            if on_mismatch == "raise":
                raise
            found = state.get("epoch") if isinstance(state, Mapping) else None
            epoch, position = found if type(found) is int and found >= 0 else 0, 0
        if position and self._layout(epoch, position).rounds == 0:
            epoch, position = epoch + 1, 0  # nothing is left: the next thing to yield is the next epoch
        self._move(epoch, position)

    def get_state(self) -> State:
        """`state_dict()` under its other name."""
        return self.state_dict()

    def set_state(self, state: Mapping[str, Any], *, on_mismatch: OnMismatch = "raise") -> None:
        """`load_state_dict()` under its other name."""
        self.load_state_dict(state, on_mismatch=on_mismatch)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and copies hold the position, not the live iterator."""
        epoch, position = self._where()
        return self.__dict__ | {"_epoch": epoch, "_start": position, "_current": None, "_iterator": None}

    # Where we are.

    def _where(self) -> tuple[int, int]:
        return (self._epoch, self._start) if self._iterator is None else self._iterator._where()

    def _move(self, epoch: int, position: int) -> None:
        self._epoch, self._start, self._current, self._iterator = epoch, position, None, None

    def _attach(self, iterator: SamplerIterator[T]) -> None:
        iterator._sampler = self
        iterator._start(self._epoch, self._layout_now())
        self._iterator = iterator

    def _layout_now(self) -> Layout[T]:
        if self._current is None:
            self._current = (
                self._layout(self._epoch, self._start) if self._start else self._full_layout(self._epoch)
            )
        return self._current

    def _full_layout(self, epoch: int) -> Layout[T]:
        layout = self._layout(epoch, 0)
        if layout.steps == 0:
            raise ValueError(
                f"epoch {epoch} is empty for rank {self.rank} of {self.world_size}: more ranks than there is "
                f'to sample, and tail={self.tail!r}. Use fewer ranks, smaller limits or tail="pad"'
            )
        return layout

    def _base(self) -> int:
        """Steps of this rank before the position the current iteration began at."""
        if not self._start:
            return 0
        full = self._full_layout(self._epoch)
        low, high = 0, full.steps  # the first step count whose position reaches the start
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if full.position(middle) < self._start else (low, middle)
        return low

    def _constants(self) -> State:
        constants = State(algo=self._algo, n=self.n, seed=self.seed)
        if self.fingerprint is not None:
            constants["fingerprint"] = self.fingerprint
        return constants

    def _state(self, epoch: int, position: int) -> State:
        return self._constants() | State(epoch=epoch, position=position)


def _deferred(iterator: Any) -> Iterator[Any]:
    """The chunks of an iterator that does not exist yet: `chain` wants its source when it is made."""
    yield from iterator()._chunks()
