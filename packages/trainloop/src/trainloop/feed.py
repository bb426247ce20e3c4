"""Batches for one step at a time, from a loader whose position can be restored."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from typing import Any

from trainloop.hooks.events import BatchFetched, EpochEnd, EpochStart
from trainloop.hooks.registry import Hooks
from trainloop.rng import rng_state, set_rng_state
from trainloop.signals import StopSignals, end_with_parent, ignore_stop_signals


class EmptyLoader(RuntimeError):
    """The loader gave no batch in a whole pass."""


class Feed:
    """Iterates a loader over and over, never fetching further than the step being trained.

    A loader with `state_dict` and `load_state_dict` restores its own position. Any other loader is
    restored by running it again: the random state at the start of the epoch is put back, the batches
    already trained on are drawn once more and dropped, and the random state of the save is put back. That
    is exact for loaders whose order follows the random state (a shuffling `DataLoader`, also with
    workers), at the price of loading those batches.

    Args:
        loader: what to iterate; `iter(loader)` is called once per epoch.
        hooks: told about epochs and batches.
        signals: lets a stopping run break off a wait for data.
    """

    def __init__(self, loader: Iterable[Any], hooks: Hooks, signals: StopSignals) -> None:
        self._loader = loader
        self._own_state = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._hooks, self._signals = hooks, signals
        self._iterator: Iterator[Any] | None = None
        self._epoch_rng: dict[str, Any] | None = None
        self.epoch = 0
        self.batches = 0  # handed out in this epoch
        shield_workers(loader)

    @property
    def elastic(self) -> bool:
        """Whether the loader's state fits any number of ranks."""
        return self._own_state and bool(getattr(self._loader, "elastic", False))

    def window(self, length: int) -> list[Any]:
        """The next `length` batches; fewer at the end of an epoch, never none.

        Raises:
            EmptyLoader: two passes in a row gave nothing.
            DataWaitInterrupted: a stop was asked for and the loader does not deliver.
        """
        taken: list[Any] = []
        barren = 0
        while len(taken) < length:
            with self._signals.data_wait():
                if self._iterator is None:
                    self._open()
                    barren += 1
                assert self._iterator is not None
                try:
                    batch = next(self._iterator)
                except StopIteration:
                    self.end_epoch()
                    if taken:
                        break
                    if barren > 1:
                        raise EmptyLoader(
                            "the loader gave no batch in a whole pass; it must be iterable again and again "
                            "(a generator is not: pass an object whose __iter__ makes a new one)"
                        ) from None
                    continue
            self.batches += 1
            if BatchFetched in self._hooks.active:
                self._hooks.emit(BatchFetched(batch, self.epoch))
            taken.append(batch)
        return taken

    def _open(self) -> None:
        if not self._own_state:
            self._epoch_rng = rng_state()
        self._iterator = iter(self._loader)
        if EpochStart in self._hooks.active:
            self._hooks.emit(EpochStart(self.epoch))

    def end_epoch(self) -> None:
        """Let go of the iterator, used up or not; the next batch is the first of another epoch."""
        if self._iterator is None:
            return
        if EpochEnd in self._hooks.active:
            self._hooks.emit(EpochEnd(self.epoch))
        self._iterator, self._epoch_rng = None, None
        self.epoch += 1
        self.batches = 0

    def close(self) -> None:
        """Let go of the iterator, which ends a DataLoader's workers."""
        self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batches": self.batches,
            "open": self._iterator is not None,
            "epoch_rng": self._epoch_rng,
            "loader": self._loader.state_dict() if self._own_state else None,  # type: ignore[attr-defined]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position. Moves the random state: put that of the save back afterwards.

        Raises:
            RuntimeError: a loader without its own state has fewer batches than were handed out.
        """
        self.epoch, self.batches = state["epoch"], state["batches"]
        self._iterator, self._epoch_rng = None, None
        if self._own_state:
            if state["loader"] is not None:
                self._loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
            if state["open"]:
                self._iterator = iter(self._loader)
            return
        if not state["open"]:
            return
        self._epoch_rng = state["epoch_rng"]
        if self._epoch_rng is not None:
            set_rng_state(self._epoch_rng)
        self._iterator = iter(self._loader)
        for n in range(self.batches):
            try:
                next(self._iterator)
            except StopIteration:
                raise RuntimeError(
                    f"the loader has {n} batches, but {self.batches} of this epoch were trained on before "
                    "the save; resume with the same data, or give the loader state_dict/load_state_dict"
                ) from None


def shield_workers(loader: Any) -> None:
    """Make a DataLoader's workers outlive signals sent to the process group, after the user's own init."""
    from torch.utils.data import DataLoader

    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return
    context = loader.multiprocessing_context or multiprocessing.get_context()
    forked = context.get_start_method() == "fork"
    loader.worker_init_fn = _ShieldedInit(loader.worker_init_fn, os.getpid() if forked else None)


class _ShieldedInit:
    """Picklable, for workers that are spawned."""

    def __init__(self, inner: Any, parent: int | None) -> None:
        self.inner = inner.inner if isinstance(inner, _ShieldedInit) else inner
        self.parent = parent

    def __call__(self, worker_id: int) -> None:
        if self.parent is not None:
            end_with_parent(self.parent)
        ignore_stop_signals()
        if self.inner is not None:
            self.inner(worker_id)
