"""Training batches: utterances with a prompt of the same speaker, each at a level, laid out for the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from samplers import StateMismatch
from torch.utils.data import DataLoader

from vall_e.data.order import BatchSampler
from vall_e.data.store import Entry
from vall_e.data.tasks import Tasks
from vall_e.model.sequence import Batch, lay_out
from vall_e.model.spec import ModelSpec

WITHOUT_LEVELS = ("stt", "len", "nar-len")
"""Tasks that are the same at all levels."""


class BatchKey(NamedTuple):
    """Which batch: all that is random in it follows from this, whatever process or rank makes it."""

    epoch: int
    indices: list[int]


class TrainingSet:
    """Makes batches by key.

    Args:
        entries: the training split.
        tasks: makes requests of them.
        names: the tasks drawn from.
        spec: the model's.
        seed: of everything random.
        levels: the levels that tasks with levels are trained at, as often as the spec says.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        tasks: Tasks,
        names: Sequence[str],
        spec: ModelSpec,
        seed: int,
        levels: Sequence[int],
    ) -> None:
        self.entries, self.tasks, self.names, self.spec, self.seed = entries, tasks, list(names), spec, seed
        chances = np.where(np.isin(np.arange(spec.levels), levels), spec.level_probabilities(), 0)
        self._cumulative = np.cumsum(chances / (chances.sum() or 1))

    def __getitems__(self, key: BatchKey) -> Batch:
        """One batch, packed: requests of all levels and of both directions of attention together."""
        rng = np.random.default_rng([self.seed, key.epoch, *key.indices])
        levels = np.zeros(len(key.indices), int) if self.spec.delay else self._levels(len(key.indices), rng)
        requests = []
        for index, level in zip(key.indices, levels.tolist(), strict=True):
            task = self.names[rng.integers(len(self.names))] if len(self.names) > 1 else self.names[0]
            if not level and task == "tts" and self.spec.masking_train_p and rng.random() < self.spec.masking_train_p:
                task = "nar-len"
            level = 0 if task in WITHOUT_LEVELS else level
            requests.append(self.tasks.request(task, self.entries[index], level, rng))
        if self.spec.delay:  # all levels in one pass
            requests = [replace(r, kind="delay") if r.kind == "ar" else r for r in requests]
        # Requests of one direction lie together, so that a kernel for many sequences takes them at once.
        return lay_out(sorted(requests, key=lambda r: r.causal), self.spec)

    def _levels(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """A level for each sample of a batch: spread evenly over the probabilities, in random order."""
        places = (np.arange(count) + rng.random()) / count
        levels = np.searchsorted(self._cumulative, places, side="right").clip(max=self.spec.levels - 1)
        return rng.permutation(levels)


class Loader:
    """Batches epoch after epoch; its state is the position trained, not the position prefetched.

    The state fits any number of workers and of ranks.

    Args:
        training_set: makes the batches.
        sampler: says which.
        workers: processes that make batches ahead.
        on_restart: told, in a sentence, when a state is of another order and the epoch begins anew.
    """

    elastic = True  # trainloop then restores the position on another number of ranks too

    def __init__(
        self,
        training_set: TrainingSet,
        sampler: BatchSampler,
        *,
        workers: int = 0,
        on_restart: Callable[[str], None] = print,
    ) -> None:
        self.training_set, self.sampler, self.workers = training_set, sampler, workers
        self._on_restart = on_restart
        self.consumed = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch."""
        self.sampler.load_state_dict(self.state_dict())
        self.consumed = self.sampler.consumed
        batches = DataLoader(
            self.training_set,  # type: ignore[arg-type]
            batch_sampler=_Keys(self.sampler),  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_as_is,
            worker_init_fn=_one_thread if self.workers else None,
            # Of its own: a loader that is begun in the middle of an epoch must not move torch's, which dropout uses.
            generator=torch.Generator(),
        )
        for batch in batches:
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_at(self.consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position; where it is of another order (other recordings or batches), the epoch begins anew."""
        try:
            self.sampler.load_state_dict(state)
        except StateMismatch:
            self.sampler.load_state_dict(state, on_mismatch="restart")
            self._on_restart("the recordings or the batches are others than before: their order begins anew")
        self.consumed = self.sampler.consumed

    def coming(self, count: int) -> list[Entry]:
        """The utterances that the loader comes to next."""
        import copy

        sampler = copy.copy(self.sampler)
        sampler.load_state_dict(self.state_dict())
        chosen: list[Entry] = []
        for indices in sampler:
            chosen += [self.training_set.entries[i] for i in indices]
            if len(chosen) >= count:
                break
        return chosen[:count]


class _Keys:
    """The keys of the rest of an epoch, for a DataLoader's `batch_sampler`."""

    def __init__(self, sampler: BatchSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[BatchKey]:
        batches = iter(self.sampler)
        epoch = self.sampler.epoch
        for indices in batches:
            yield BatchKey(epoch, indices)


def _as_is(batch: Batch) -> Batch:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
