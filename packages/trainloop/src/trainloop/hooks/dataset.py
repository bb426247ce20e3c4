"""Batches from Hugging Face `datasets`: local or from a hub, in memory-mapped tables or streamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from trainloop.hooks.events import RunEnd, RunFailed
from trainloop.hooks.extras import require
from trainloop.hooks.hub import Hub
from trainloop.hooks.registry import Hooks

if TYPE_CHECKING:
    import datasets

OnRow = Callable[[Any], Any]
OnBatch = Callable[[Any], Any]


class DatasetError(RuntimeError):
    """A dataset could not be opened; says what was looked for and what is there."""


def open_dataset(
    where: str | Path,
    *,
    split: str = "train",
    streaming: bool = False,
    files: str | Sequence[str] | None = None,
    revision: str = "main",
    hub: Hub | None = None,
    on_file: Callable[[str], bool | None] | None = None,
    **options: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """One split, through `datasets.load_dataset`.

    A repository is downloaded whole before it is read (resumed and verified, see `Hub`); with `streaming` its files
    are read over the network as they are needed, from the hub of `HF_ENDPOINT`.

    Args:
        where: a folder, a file, or a hub repository (`organisation/name`).
        split: `train`, `test`, …, or a part of one, such as `train[:1000]`.
        streaming: rows in their order as they are read, in place of a table with random access.
        files: which files of the folder or repository, by name or pattern; None for what `datasets` finds.
        revision: branch, tag or commit of a repository.
        hub: where the repository comes from; the public hub when None.
        on_file: called with each file of the split before any is read; False leaves the file out.
        options: for `datasets.load_dataset`: `name`, `cache_dir`, `features`, …

    Raises:
        ImportError: datasets is not installed (`pip install trainloop[datasets]`).
        DownloadError: the repository cannot be had.
        DatasetError: no file, of no kind that is known, no such split, or none left by `on_file`.
    """
    datasets = require("datasets", "open_dataset")
    path = Path(where).expanduser()
    if path.is_file():
        path, files = path.parent, path.name
    if path.is_dir():
        options["path"] = str(path)
    elif isinstance(where, Path) or path.is_absolute() or str(where).startswith((".", "~")):
        raise DatasetError(f"{where} is not there")
    elif not streaming:
        options["path"] = str((hub or Hub()).snapshot(str(where), revision, kind="dataset"))
    else:
        if hub is not None and hub.endpoint not in (None, datasets.config.HF_ENDPOINT):
            raise DatasetError(
                f"a stream comes from the hub of HF_ENDPOINT, {datasets.config.HF_ENDPOINT}, not from {hub.endpoint}: "
                "set the variable, or do not stream"
            )
        options |= {"path": str(where), "revision": revision, "token": None if hub is None else hub.token}
    chosen: Any = files
    whole = re.split(r"\W", split)[0]
    if files is not None:
        chosen = {whole: files}
    try:
        if on_file is not None:
            found = datasets.load_dataset_builder(**options, data_files=chosen).config.data_files or {}
            if whole not in found:
                raise DatasetError(f"{where} has no split {whole!r}; there are {', '.join(map(str, found)) or 'none'}")
            kept = [file for file in found[whole] if on_file(file) is not False]
            if not kept:
                raise DatasetError(f"on_file left none of the {len(found[whole])} files of {where}")
            chosen = {whole: kept}
        return datasets.load_dataset(**options, data_files=chosen, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError, ValueError) as e:  # no files of a known kind, no hub, no such split
        raise DatasetError(f"{where}, split {split!r}: {e}") from e


class _OneEpoch:
    """What a loader with one open epoch is as a bundle: it closes that when the run ends, however it ends."""

    _epoch: _Epoch | None = None

    def attach(self, hooks: Hooks) -> None:
        for event in (RunEnd, RunFailed):
            hooks.on(event, lambda _: self.close())

    def close(self) -> None:
        """Let go of the epoch that is open, and of its workers or the stream's files."""
        if self._epoch is not None:
            self._epoch.close()
            self._epoch = None


class DatasetLoader(_OneEpoch, DataLoader):
    """A `DataLoader` over a table (any dataset with a length and indices) that goes on in the middle of an epoch.

    ```python
    loader = DatasetLoader(open_dataset("data/"), batch_sampler=buckets, on_row=tokenize, num_workers=2)
    hooks.attach(loader)
    Trainer(engines, loader, feeder, hooks=hooks)
    ```

    Its position is the number of batches handed out: a resumed epoch draws the indices before it again and reads
    none of their rows. `accelerate.prepare(loader)` works as for any loader: row and batch callbacks go with it, the
    position does not (`Trainer` then runs the epoch's beginning again). With batches of unequal size, or to see no
    row twice in an epoch, give accelerate `even_batches=False`.

    As a bundle it ends its workers with the run.

    Args:
        dataset: the table.
        batch_size, shuffle, drop_last: as for `DataLoader`, in place of `batch_sampler`.
        batch_sampler: any iterable of lists of indices; `set_epoch(n)` is called when it has one, and its
            `state_dict` is saved.
        on_row: from row to row, in the worker, before collating.
        on_batch: from batch to batch, in the worker, after collating.
        collate: from a list of rows to a batch; `default_collate` when None.
        rank, world_size: hand out every `world_size`-th batch from `rank` on. Leave them under accelerate.
        options: for `DataLoader`: `num_workers`, `pin_memory`, …

    Raises:
        ValueError: neither or both of `batch_size` and `batch_sampler`.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        on_row: OnRow | None = None,
        on_batch: OnBatch | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> None:
        if (batch_size is None) == (batch_sampler is None):
            raise ValueError("give batch_size or batch_sampler, and not both")
        if batch_sampler is None:
            sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        elif shuffle or drop_last:
            raise ValueError("shuffle and drop_last are the batch_sampler's own matter")
        self._order = _Order(batch_sampler, rank, world_size)
        self._begun: dict[str, Any] = {}
        self._resume: dict[str, Any] | None = None
        self.epoch = 0
        self.batches = 0  # handed out in this epoch
        super().__init__(
            _Rows(dataset, on_row), batch_sampler=self._order, collate_fn=_Collate(collate, on_batch), **options
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        resume, self._resume = self._resume, None
        if resume is None:
            self._order.set_epoch(self.epoch)
            self._begun = {"rng": torch.get_rng_state(), "sampler": self._order.state_dict()}
            self.batches = 0
            inner = super().__iter__()
        else:
            # What shuffles from the global random state finds it as it was when the epoch began.
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(resume["rng"])
                self._order.set_epoch(self.epoch)
                self._begun = {"rng": resume["rng"], "sampler": resume["sampler"]}
                self._order.skip = self.batches
                inner = super().__iter__()  # makes a pass, and another one with workers
                self._order.settle()
        self._epoch = _Epoch(self, inner)
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch, batches handed out, and what the order was drawn from."""
        within = self._epoch is not None or self._resume is not None or self.batches > 0
        begun = self._begun if within else {"rng": None, "sampler": self._order.state_dict()}
        return {"epoch": self.epoch, "batches": self.batches, **begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.epoch, self.batches = int(state["epoch"]), int(state["batches"])
        self._order.load_state_dict(state["sampler"])
        self._begun = {"rng": state["rng"], "sampler": state["sampler"]}
        self._resume = None if state["rng"] is None else self._begun

    def _advance(self) -> None:
        self.batches += 1

    def _end(self) -> None:
        self._epoch = None
        self.epoch += 1
        self.batches = 0


class StreamLoader(_OneEpoch):
    """Batches of `batch_size` rows of a stream (`datasets.IterableDataset`), that goes on in the middle of an epoch.

    It reads the rows of the epoch again up to there, which is exact for any stream, or with `seek` asks the stream to
    go to its own position (`IterableDataset.state_dict`), which reads nothing twice. That is as exact as `datasets` is:
    the rows in a shuffle buffer are lost, and before version 5 rows around a `map` or `filter` may be.

    As a bundle it closes what the stream has open when the run ends, however it ends.

    Args:
        dataset: the stream; `set_epoch` is called for each epoch. From the second on `datasets` then reads the files
            in another order, and shuffles a shuffled stream anew.
        batch_size: rows in a batch; the last one of an epoch may have fewer.
        drop_last: leave out a last batch that is not full.
        on_row, on_batch, collate: as for `DatasetLoader`, in this process.
        seek: see above.
        rank, world_size: read this rank's share of the files, or of the rows where there are too few files.

    Raises:
        ValueError: `batch_size` below 1.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        batch_size: int,
        *,
        drop_last: bool = False,
        on_row: OnRow | None = None,
        on_batch: OnBatch | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        seek: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, found {batch_size}")
        if world_size > 1:
            distributed = require("datasets.distributed", "StreamLoader")
            dataset = distributed.split_dataset_by_node(dataset, rank, world_size)
        self._dataset, self._batch_size, self._drop_last = dataset, batch_size, drop_last
        self._on_row, self._collate = on_row, _Collate(collate, on_batch)
        self._seek = seek
        self._resume = False
        self.epoch = 0
        self.rows = 0  # handed out in this epoch
        self._position: Mapping[str, Any] | None = None  # of the stream, after those rows

    def __iter__(self) -> Iterator[Any]:
        self.close()
        self._dataset.set_epoch(self.epoch)
        if not self._resume:
            self.rows, self._position = 0, None
        self._resume = False
        self._epoch = _Epoch(self, self._read(again=self.rows if self._position is None else 0))
        return self._epoch

    def _read(self, again: int) -> Iterator[Any]:
        self._dataset.load_state_dict(dict(self._position or {}))  # an empty one is the start
        rows = iter(self._dataset)
        try:
            for _ in islice(rows, again):
                pass
            while taken := list(islice(rows, self._batch_size)):
                if len(taken) < self._batch_size and self._drop_last:
                    return
                self.rows += len(taken)
                self._position = self._dataset.state_dict() if self._seek else None
                yield self._collate([_mapped(self._on_row, row) for row in taken])
        finally:
            close = getattr(rows, "close", None)
            if close is not None:
                close()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "rows": self.rows, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.epoch, self.rows, self._position = int(state["epoch"]), int(state["rows"]), state["position"]
        self._resume = True

    def _advance(self) -> None:
        pass

    def _end(self) -> None:
        self._epoch = None
        self.epoch += 1
        self.rows, self._position = 0, None


class _Epoch:
    """An iterator that counts for its loader, and can be closed."""

    def __init__(self, loader: DatasetLoader | StreamLoader, batches: Iterator[Any]) -> None:
        self._loader, self._batches = loader, batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except StopIteration:
            if self._loader._epoch is self:
                self._loader._end()
            raise
        self._loader._advance()
        return batch

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
        self._batches = iter(())  # the workers of a DataLoader end with its iterator


class _Order:
    """A batch sampler that can begin in the middle. Has the attributes of the one inside, for accelerate."""

    def __init__(self, inner: Iterable[Sequence[int]], rank: int, world_size: int) -> None:
        self.inner, self.rank, self.world_size = inner, rank, world_size
        self.skip = 0  # batches that a pass leaves out
        self._pass: _Pass | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet, while it is being copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(range(self.rank, len(self.inner), self.world_size))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Sequence[int]]:
        self._pass = _Pass(islice(self.inner, self.rank, None, self.world_size), self.skip)
        return self._pass

    def settle(self) -> None:
        """Draw what the pass that just began leaves out; those to come leave out nothing."""
        assert self._pass is not None
        self._pass.settle()
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.inner, "set_epoch"):
            self.inner.set_epoch(epoch)

    def state_dict(self) -> Any:
        return self.inner.state_dict() if hasattr(self.inner, "state_dict") else None

    def load_state_dict(self, state: Any) -> None:
        if state is not None:
            self.inner.load_state_dict(state)  # type: ignore[attr-defined]


class _Pass:
    """One pass over the batches. What it leaves out is drawn when the first batch is asked for or at `settle`, and
    not when the pass is made: a sampler then draws from the random state after `DataLoader`, as in any epoch."""

    def __init__(self, batches: Iterator[Sequence[int]], skip: int) -> None:
        self._batches, self._skip = batches, skip

    def __iter__(self) -> Iterator[Sequence[int]]:
        return self

    def __next__(self) -> Sequence[int]:
        self.settle()
        return next(self._batches)

    def settle(self) -> None:
        skip, self._skip = self._skip, 0
        for n in range(skip):
            if next(self._batches, None) is None:
                raise RuntimeError(f"the batch sampler gives {n} batches, and {skip} were handed out before the save")


class _Rows(torch.utils.data.Dataset):
    def __init__(self, dataset: Any, on_row: OnRow | None) -> None:
        self.dataset, self.on_row = dataset, on_row

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return _mapped(self.on_row, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """All rows of a batch in one read."""
        if hasattr(self.dataset, "__getitems__"):
            return [_mapped(self.on_row, row) for row in self.dataset.__getitems__(list(indices))]
        return [self[i] for i in indices]


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any] | None, on_batch: OnBatch | None) -> None:
        self.collate, self.on_batch = collate or default_collate, on_batch

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate(rows)
        return batch if self.on_batch is None else self.on_batch(batch)


def _mapped(on_row: OnRow | None, row: Any) -> Any:
    if on_row is None:
        return row
    row = on_row(row)
    if row is None:
        raise ValueError("on_row returned None; it returns the row (leave rows out with dataset.filter)")
    return row
