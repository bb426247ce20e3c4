"""Training batches: utterances with a prompt of the same speaker, each at a level, laid out for the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from samplers import BucketSampler
from torch.utils.data import DataLoader

from vall_e.data.store import DatasetFile, Entry, Utterance
from vall_e.model.sequence import Batch, Request, Sample, lay_out
from vall_e.model.spec import ModelSpec


class BatchKey(NamedTuple):
    """Which batch: all that is random in it follows from this."""

    epoch: int
    position: int
    indices: list[int]


@dataclass(frozen=True)
class PromptRules:
    """How a prompt is drawn: seconds at least and at most, and how often there is none."""

    seconds: tuple[float, float]
    dropout: float


class Prompts:
    """Draws prompts: a stretch of another utterance of the same speaker."""

    def __init__(self, file: DatasetFile, entries: Sequence[Entry], rules: PromptRules) -> None:
        self._file, self._rules = file, rules
        self._rate = frame_rate(file, entries)
        self._of_speaker: dict[str, list[Entry]] = {}
        for entry in entries:
            self._of_speaker.setdefault(entry.speaker, []).append(entry)

    def draw(self, entry: Entry, rng: np.random.Generator, *, always: bool = False) -> np.ndarray | None:
        """Codes [T, levels]; None where the speaker has no other utterance, or (not `always`) it is dropped."""
        dropped = rng.random() < self._rules.dropout and not always
        others = self._of_speaker.get(entry.speaker, [])
        if dropped or len(others) - (entry in others) < 1:
            return None
        other = entry
        while other.key == entry.key:
            other = others[rng.integers(len(others))]
        codes = self._file.read(other.key).codes
        length = round(rng.uniform(*self._rules.seconds) * self._rate)
        start = int(rng.integers(max(1, len(codes) - length + 1)))
        return codes[start : start + length]


def frame_rate(file: DatasetFile, entries: Sequence[Entry]) -> float:
    """Codes a second of a dataset."""
    if file.codec is not None:
        return file.codec.frame_rate
    return sum(e.frames for e in entries) / sum(e.duration for e in entries)


def sample_of(utterance: Utterance, prompt: np.ndarray | None) -> Sample:
    return Sample(utterance.phone_ids, prompt, utterance.codes, utterance.language)


class TrainingSet:
    """Makes batches by key; any process makes the same batch of the same key.

    Args:
        file: the dataset.
        entries: its training split.
        prompts: draws prompts from the same split.
        spec: the model's.
        seed: of everything random.
    """

    def __init__(
        self, file: DatasetFile, entries: Sequence[Entry], prompts: Prompts, spec: ModelSpec, seed: int
    ) -> None:
        self.file, self.entries, self.prompts, self.spec, self.seed = file, entries, prompts, spec, seed
        self._cumulative = np.cumsum(spec.level_probabilities())

    def __getitems__(self, key: BatchKey) -> list[Batch]:
        """The passes of one batch: a causal one and a bidirectional one, where there are samples for both."""
        rng = np.random.default_rng([self.seed, key.epoch, key.position])
        requests = []
        for index, level in zip(key.indices, self._levels(len(key.indices), rng), strict=True):
            entry = self.entries[index]
            sample = sample_of(self.file.read(entry.key), self.prompts.draw(entry, rng))
            requests.append(Request(sample, "nar" if level else "ar", int(level)))
        kinds = ([r for r in requests if r.causal], [r for r in requests if not r.causal])
        return [lay_out(part, self.spec) for part in kinds if part]

    def _levels(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """A level for each sample of a batch: spread evenly over the probabilities, in random order."""
        places = (np.arange(count) + rng.random()) / count
        levels = np.searchsorted(self._cumulative, places, side="right").clip(max=self.spec.levels - 1)
        return rng.permutation(levels)


class Loader:
    """Batches epoch after epoch; its state is the position trained, not the position prefetched.

    Args:
        training_set: makes the batches.
        batch_size: utterances at most.
        workers: processes that make batches ahead.
    """

    def __init__(self, training_set: TrainingSet, *, batch_size: int, workers: int = 0) -> None:
        self.training_set, self.workers = training_set, workers
        # What is padded is the whole sequence, not the response alone.
        costs = [e.frames + e.phones for e in training_set.entries]
        self.sampler = BucketSampler(costs, max_size=batch_size, seed=training_set.seed)
        self.consumed = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Batch]]:
        """The rest of the epoch."""
        batches = DataLoader(
            self.training_set,  # type: ignore[arg-type]
            batch_sampler=_Keys(self.sampler, self.consumed),  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_as_is,
            worker_init_fn=_one_thread if self.workers else None,
        )
        for batch in batches:
            self.consumed += 1
            yield batch
        self.consumed = 0

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_at(self.consumed), "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.consumed = state["consumed"]


class _Keys:
    """The keys of the rest of an epoch, for a DataLoader's `batch_sampler`."""

    def __init__(self, sampler: BucketSampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[BatchKey]:
        epoch = self.sampler.epoch
        for position, indices in enumerate(self.sampler, self.start):
            yield BatchKey(epoch, position, indices)


def _as_is(batch: list[Batch]) -> list[Batch]:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
