"""More models than fit on the device, each there while it is used."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from trainloop.hooks.events import ModelLoaded, ModelOffloaded
from trainloop.hooks.model_loader import ModelLoader
from trainloop.hooks.model_memory import ModelMemory
from trainloop.hooks.registry import Hooks

_log = logging.getLogger(__name__)
Level = Literal["device", "cpu", "disk", "source"]
_POLL = 0.1  # seconds between two looks at what a thread that waits for another one holds itself
_LEVELS: tuple[Level, ...] = ("device", "cpu", "disk", "source")


class CacheFull(RuntimeError):
    """A model does not fit; names the sizes and who holds the room."""


@dataclass(frozen=True)
class CacheStats:
    """Counts since the cache was made, and the bytes at each level now.

    Attributes:
        hits: times a model was on the device when it was asked for.
        misses: times it was not.
        loads: times a model was loaded from its source.
        offloads: times a model left the device, to wherever.
        drops: models that were given up, to be loaded from their source again.
        device_bytes, cpu_bytes, disk_bytes: what is held there.
    """

    hits: int
    misses: int
    loads: int
    offloads: int
    drops: int
    device_bytes: int
    cpu_bytes: int
    disk_bytes: int


@dataclass(eq=False)
class _Entry:
    name: str
    level: Level = "source"
    model: Any = None
    memory: ModelMemory | None = None
    users: Counter[int] = field(default_factory=Counter)  # leases by thread
    last_used: int = 0
    need: int = 0  # bytes on the device, once they are known
    arriving: Future[None] | None = None  # whoever set it is bringing the model to the device
    leaving: bool = False  # being moved to a lower level

    @property
    def nbytes(self) -> int:
        return 0 if self.memory is None else self.memory.nbytes


class ModelCache:
    """Keeps models within a budget of bytes on the device, and moves the least recently used one away for the next:
    to the CPU while `cpu_bytes` lasts, then to disk, and else back to where it came from.

    ```python
    cache = ModelCache(ModelLoader(models, device="cuda"), max_bytes=8 << 30, cpu_bytes=32 << 30)
    with cache.use("teacher") as teacher:  # stays on the device until the block ends
        cache.prefetch("other")  # comes in the background, if there is room beside it
        targets = teacher(batch)
    ```

    Any number of threads may use it. A model is loaded by one of them; the others wait, and get its error if it
    fails. What comes back from the CPU or disk is the same object with the same bytes, tied tensors still tied. A
    model that trains belongs to an engine: dropped to its source, it would lose what it learnt.

    It is a bundle: `hooks.attach(cache)` has the run's listeners told of `ModelLoaded`, `ModelOffloaded` and the
    loader's stages, on the thread that moves the model.

    Args:
        loader: makes the models by name, and says on which device they are used.
        max_bytes: budget on the device.
        cpu_bytes: budget of offloaded models in the memory of the host. A model on its way to the device is in the
            host's memory beside it.
        disk: a folder for offloaded models, in a subfolder that goes with the cache; None for no such level.
        disk_bytes: budget there; None for no limit.
        timeout: seconds to wait for room that other leases take.

    Raises:
        ValueError: a budget is negative, or `disk_bytes` without `disk`.
    """

    def __init__(
        self,
        loader: ModelLoader,
        max_bytes: int,
        *,
        cpu_bytes: int = 0,
        disk: Path | str | None = None,
        disk_bytes: int | None = None,
        timeout: float = 600.0,
    ) -> None:
        for name, value in (("max_bytes", max_bytes), ("cpu_bytes", cpu_bytes), ("disk_bytes", disk_bytes or 0)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, found {value}")
        if disk is None and disk_bytes is not None:
            raise ValueError("disk_bytes is given and disk= is not")
        self._loader, self._timeout = loader, timeout
        self._budget: dict[Level, float] = {"device": max_bytes, "cpu": cpu_bytes, "disk": 0}
        self._folder: Path | None = None
        if disk is not None:
            Path(disk).mkdir(parents=True, exist_ok=True)
            own = tempfile.TemporaryDirectory(prefix="models-", dir=disk)
            self._folder = Path(own.name)
            self._remove_folder = weakref.finalize(self, own.cleanup)
            self._budget["disk"] = float("inf") if disk_bytes is None else disk_bytes
        self._entries = {name: _Entry(name) for name in loader.models}
        self._table = threading.Condition()  # guards all the entries' fields, never held during slow work
        self._moving = threading.RLock()  # held by the one thread that moves models between levels
        self._background = ThreadPoolExecutor(1, thread_name_prefix="model-cache")
        self._counts: Counter[str] = Counter()
        self._tick = self._releases = 0
        self._closed = False

    def attach(self, hooks: Hooks) -> None:
        self._loader.attach(hooks)

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The model `name` on the device, for as long as the block runs.

        Raises:
            KeyError: no such model.
            CacheFull: it is above the budget, or its room stays taken by models in use for `timeout` seconds.
            Exception: what loading it raised.
        """
        entry = self._entry(name)
        me = threading.get_ident()
        self._bring(entry, lease_for=me)
        try:
            yield entry.model
        finally:
            with self._table:
                entry.users[me] -= 1
                entry.users += Counter()  # drops what is at 0
                self._releases += 1
                self._table.notify_all()

    def prefetch(self, name: str) -> Future[None]:
        """Bring a model to the device in the background, one after the other.

        A failure is logged and is in the future that this returns; the next `use` tries again.
        """
        entry = self._entry(name)

        def bring() -> None:
            try:
                self._bring(entry)
            except Exception as e:
                if self._closed:
                    raise
                _log.warning("model %r could not be prefetched: %s: %s", name, type(e).__name__, e)
                raise

        return self._background.submit(bring)

    @property
    def stats(self) -> CacheStats:
        with self._table:
            held = Counter[str]()
            for e in self._entries.values():
                held[f"{e.level}_bytes"] += e.nbytes
            return CacheStats(**{f.name: (self._counts + held)[f.name] for f in fields(CacheStats)})

    def close(self) -> None:
        """End the background and forget the models; those on disk are deleted."""
        with self._table:
            self._closed = True
            self._table.notify_all()
        self._background.shutdown(cancel_futures=True)
        with self._moving, self._table:
            self._entries = {name: _Entry(name) for name in self._entries}
        if self._folder is not None:
            self._remove_folder()

    def __enter__(self) -> ModelCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise KeyError(f"no model {name!r}; there are {', '.join(self._entries) or 'none'}")
        return self._entries[name]

    # Bringing a model in.

    def _bring(self, entry: _Entry, lease_for: int | None = None) -> None:
        """Have the model on the device, and lease it before anyone can move it away again."""
        asked = lease_for is None
        while True:
            with self._table:
                if self._closed:
                    raise RuntimeError("the cache is closed")
                here = entry.level == "device" and not entry.leaving
                if not asked:
                    self._counts["hits" if here else "misses"] += 1
                    asked = True
                if here:
                    self._tick += 1
                    entry.last_used = self._tick
                    if lease_for is not None:
                        entry.users[lease_for] += 1
                    return
                theirs = entry.arriving
                mine: Future[None] = Future()
                if theirs is None:
                    entry.arriving = mine
            if theirs is not None:
                while not wait([theirs], timeout=_POLL).done:
                    self._refuse_own(entry)
                theirs.result()  # raises what the thread that brings it meets
                continue
            try:
                self._arrive(entry)
            except BaseException as e:
                self._arrived(entry)
                if isinstance(e, Exception):
                    mine.set_exception(e)
                else:
                    mine.set_result(None)  # an interrupt is this thread's own; another may try
                raise
            self._arrived(entry)
            mine.set_result(None)

    def _arrived(self, entry: _Entry) -> None:
        with self._table:
            entry.arriving = None

    def _arrive(self, entry: _Entry) -> None:
        """Load or fetch the model back. `_moving` is not held while loading, nor while waiting for room."""
        loaded: tuple[Any, ModelMemory] | None = None
        deadline = time.monotonic() + self._timeout
        while True:
            with self._moving:
                if entry.level == "device":
                    return  # it was about to leave, and could not
                known = loaded or (entry.model, entry.memory)
                if known[1] is not None:
                    entry.need = known[1].nbytes
                    self._check_size(entry)
                    seen = self._releases
                    if self._make_room("device", entry.need, entry):
                        self._place(entry, *known, new=loaded is not None)
                        return
            if known[1] is not None:
                self._wait_for_release(entry, seen, deadline)
                continue
            model = self._loader.fetch(entry.name)
            loaded = model, ModelMemory(model)

    def _check_size(self, entry: _Entry) -> None:
        if entry.need > self._budget["device"]:
            raise CacheFull(
                f"model {entry.name!r} has {_size(entry.need)}, and the budget of the device is "
                f"{_size(self._budget['device'])}: raise max_bytes, or load the model in a smaller type"
            )

    def _refuse_own(self, entry: _Entry) -> None:
        """Raise when what this thread itself uses leaves no room, since it would wait for itself."""
        me = threading.get_ident()
        with self._table:
            own = [e for e in self._entries.values() if e.users[me]]
            if own and entry.need + sum(e.nbytes for e in own) > self._budget["device"]:
                raise CacheFull(
                    f"{self._no_room(entry, own)} in use by this thread itself; end that use first, or raise max_bytes"
                )

    def _wait_for_release(self, entry: _Entry, seen: int, deadline: float) -> None:
        self._refuse_own(entry)
        with self._table:
            in_use = [e for e in self._entries.values() if e.users]
            full = f"{self._no_room(entry, in_use)} in use for {self._timeout:g} s; raise max_bytes or timeout"
            done = self._table.wait_for(
                lambda: self._releases != seen or self._closed, timeout=max(0.0, deadline - time.monotonic())
            )
            if not done:
                raise CacheFull(full)
            if self._closed:
                raise RuntimeError("the cache is closed")

    def _no_room(self, entry: _Entry, holders: list[_Entry]) -> str:
        held = ", ".join(f"{e.name} ({_size(e.nbytes)})" for e in holders)
        return f"no room for model {entry.name!r} ({_size(entry.need)}) in {_size(self._budget['device'])}: {held}"

    def _place(self, entry: _Entry, model: Any, memory: ModelMemory, new: bool) -> None:
        if new:
            self._loader.place(entry.name, model, memory)
        elif entry.level == "cpu":
            memory.to(self._loader.device)
        else:
            memory.load(self._file(entry), self._loader.device)
            self._file(entry).unlink()
        with self._table:
            self._counts["loads"] += new
            entry.model, entry.memory, entry.level = model, memory, "device"
            self._tick += 1
            entry.last_used = self._tick
        if not new and ModelLoaded in self._loader.hooks:
            self._loader.hooks.emit(ModelLoaded(entry.name, model))

    # Making room. `_moving` is held.

    def _make_room(self, level: Level, need: int, incoming: _Entry) -> bool:
        """Move models away from `level` until `need` bytes fit; False, and nothing moved, when they cannot.

        `incoming` is about to leave the lower level it is at, and takes no room there.
        """
        while True:
            with self._table:
                at_level = [e for e in self._entries.values() if e.level == level and e is not incoming]
                if sum(e.nbytes for e in at_level) + need <= self._budget[level]:
                    return True
                if sum(e.nbytes for e in at_level if e.users) + need > self._budget[level]:
                    return False
                oldest = min((e for e in at_level if not e.users), key=lambda e: e.last_used)
                oldest.leaving = True
            try:
                self._move_down(oldest, incoming)
            finally:
                with self._table:
                    oldest.leaving = False

    def _move_down(self, entry: _Entry, incoming: _Entry) -> None:
        model, memory, was = entry.model, entry.memory, entry.level
        assert memory is not None
        lower = _LEVELS[_LEVELS.index(was) + 1 :]
        to = next(level for level in lower if level == "source" or self._make_room(level, memory.nbytes, incoming))
        if to == "cpu":
            memory.to("cpu")
        elif to == "disk":
            memory.save(self._file(entry))
        elif was == "disk":
            self._file(entry).unlink()
        with self._table:
            entry.level = to
            self._counts["offloads"] += was == "device"
            if to == "source":
                entry.model = entry.memory = None
                self._counts["drops"] += 1
        if was == "device" and ModelOffloaded in self._loader.hooks:
            self._loader.hooks.emit(ModelOffloaded(entry.name, model))

    def _file(self, entry: _Entry) -> Path:
        assert self._folder is not None
        return self._folder / f"{list(self._entries).index(entry.name)}.pt"  # a name may hold a slash


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.1f} MiB ({nbytes:,.0f} bytes)"
