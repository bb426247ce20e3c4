"""Carries a run's state to its store: at once, or on a thread while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainloop.checkpoint import CheckpointStore
from trainloop.comm import Comm
from trainloop.failpoints import failpoint
from trainloop.manifest import CheckpointError
from trainloop.persist import Position, RunState, detached_copy

SaveOutcome = tuple[int, Path | CheckpointError]


class Saver:
    """Saves one step at a time. The leader writes everything that is not sharded.

    Args:
        store: where to.
        comm: the control channel.
        asynchronous: copy the state to memory and write it on a thread. Engines that write shards are
            always saved at once.
    """

    def __init__(self, store: CheckpointStore, comm: Comm, asynchronous: bool = False) -> None:
        self._store, self._comm, self._asynchronous = store, comm, asynchronous
        self._thread: threading.Thread | None = None
        self._done: list[SaveOutcome] = []

    def save(
        self,
        step: int,
        state: RunState,
        info: Mapping[str, Any],
        position: Position | None = None,
    ) -> list[SaveOutcome]:
        """Save; returns the saves completed by now, on the leader. Collective.

        Raises:
            CheckpointError: on every rank, when it could not be written.
        """
        before = self.finish()
        modules, others = state.collect(position)
        info = {**state.info(), **info}
        if self._asynchronous and not state.sharded:
            if self._comm.is_leader:
                self._write_on_thread(step, detached_copy(modules), detached_copy(others), info)
            return before
        tmp = self._write_shards(step, state)
        path: Path | None = None
        error: str | None = None
        if self._comm.is_leader:
            try:
                path = self._store.write(step, modules, others, info, tmp)
            except CheckpointError as e:
                error = str(e)
        error = self._comm.broadcast(error)
        if error is not None:
            raise CheckpointError(error)
        return [*before, (step, path)] if path is not None else before

    def poll(self) -> list[SaveOutcome]:
        """Saves of the thread that ended since the last call."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._thread is not None:
            return []
        done, self._done = self._done, []
        return done

    def finish(self) -> list[SaveOutcome]:
        """Wait for the thread; what it did."""
        if self._thread is not None:
            self._thread.join()
        return self.poll()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _write_shards(self, step: int, state: RunState) -> Path | None:
        if not state.sharded:
            return None
        tmp = self._comm.broadcast(self._store.begin(step) if self._comm.is_leader else None)
        try:
            with self._comm.together(f"saving step {step}"):
                for engine in state.sharded:
                    engine.write_shards(tmp)
        except (OSError, RuntimeError) as e:
            raise CheckpointError(f"saving step {step} to {self._store.dir} failed: {e}") from e
        return tmp

    def _write_on_thread(
        self, step: int, modules: dict[str, Any], others: dict[str, Any], info: Mapping[str, Any]
    ) -> None:
        def write() -> None:
            failpoint("mid_async_save")
            try:
                self._done.append((step, self._store.write(step, modules, others, info)))
            except CheckpointError as e:
                self._done.append((step, e))

        self._thread = threading.Thread(target=write, name="trainloop-save")
        self._thread.start()
