"""Evaluation of a model in training: losses per level, and synthesis beside its targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distkit
import numpy as np
import torch
from samplers import PoolSampler

from vall_e import audio, metrics
from vall_e.codecs.codec import Codec
from vall_e.data.batches import Loader
from vall_e.data.store import Dataset, Entry
from vall_e.data.tasks import Prompts, sample_of
from vall_e.model.model import VallE
from vall_e.model.sequence import Sample

_SEED = 17


@dataclass(frozen=True)
class Spoken:
    """One synthesised utterance: samples at the codec's rate, and the recording it should sound like."""

    entry: Entry
    text: str
    prompt: np.ndarray
    out: np.ndarray
    target: np.ndarray

    def write(self, folder: Path, sample_rate: int) -> None:
        """Write it as WAVs (what is not empty) and its text."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = self.entry.key.replace("/", "_")
        for name in ("prompt", "out", "target"):
            if len(samples := getattr(self, name)):
                audio.write_wav(folder / f"{stem}.{name}.wav", samples, sample_rate)
        (folder / f"{stem}.txt").write_text(self.text + "\n", encoding="utf-8")


class Evaluator:
    """Measures a model on both splits.

    Args:
        model, codec, file: what is measured, and on what; without a codec nothing can be synthesised.
        splits: the entries of `subtrain` (the training split) and `val`.
        loader: the training loader, whose position says where `subtrain` synthesises.
        prompts: draws prompts from the training split, for the utterances of both.
        batch_size: utterances in a pass.
        autocast: makes the context that the model runs under.
        sampling: options of `generate`.
    """

    def __init__(
        self,
        model: VallE,
        codec: Codec | None,
        file: Dataset,
        splits: dict[str, list[Entry]],
        loader: Loader,
        prompts: Prompts,
        *,
        batch_size: int,
        autocast: Callable[[], Any],
        sampling: dict[str, Any],
    ) -> None:
        self.model, self.codec, self.file, self.splits = model, codec, file, splits
        self.loader, self.prompts = loader, prompts
        self.batch_size, self.autocast, self.sampling = batch_size, autocast, sampling
        self._val = PoolSampler(range(len(splits["val"])), seed=_SEED)

    def state_dict(self) -> dict[str, Any]:
        """Where the validation split is."""
        return dict(self._val.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._val.load_state_dict(state)

    def losses(self, split: str, size: int, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """The teacher-forced loss in nats of each level over the same `size` utterances each time.

        Returns:
            `{split}.loss` (the mean of the levels), `{split}.level0`, …
        """
        chosen = self.fixed(split, size)
        chosen.sort(key=lambda e: e.frames + e.phones)
        samples = self._samples(chosen)
        sums = np.zeros(self.model.spec.levels)
        with self._quietly():
            for start in range(0, len(samples), self.batch_size):
                if should_stop():
                    break
                part = samples[start : start + self.batch_size]
                if self.model.spec.delay:
                    loss = self.model(self.model.batch_of(part, "delay"))
                    sums += [float(loss.nll[loss.head == level].sum()) for level in range(self.model.spec.levels)]
                else:
                    for level in range(self.model.spec.levels):
                        sums[level] += float(self.model.loss(part, level=level)) * len(part)
        means = sums / max(1, len(samples))
        return {f"{split}.loss": float(means.mean())} | {f"{split}.level{i}": float(m) for i, m in enumerate(means)}

    def speak(self, entries: Sequence[Entry], *, seed: int = 0, **options: Any) -> list[Spoken]:
        """Synthesise utterances of the dataset, each with a prompt of its speaker."""
        assert self.codec is not None, "synthesis was asked for without a codec"
        samples = self._samples(entries)
        codes = self.codes(samples, seed=seed, **options)
        spoken = []
        for entry, sample, out in zip(entries, samples, codes, strict=True):
            utterance = self.file.read(entry.key)
            spoken.append(
                Spoken(
                    entry,
                    utterance.text,
                    self.codec.decode(sample.prompt) if sample.prompt is not None else np.zeros(0, np.float32),
                    self.codec.decode(out),
                    self.codec.decode(utterance.codes),
                )
            )
        return spoken

    def codes(self, samples: Sequence[Sample], *, seed: int = 0, **options: Any) -> list[np.ndarray]:
        """Generated codes for samples, their responses set aside; twice their length at most."""
        with self._quietly():
            return self.model.generate(
                [s.with_response(None) for s in samples],
                max_frames=[2 * len(s.response) + 8 for s in samples],
                seed=seed,
                **{**self.sampling, **options},
            )

    def synthesise(self, split: str, size: int, folder: Path) -> dict[str, float]:
        """Synthesise `size` utterances and write prompt, output and target below `folder/{split}`.

        `subtrain` takes those that the loader comes to next, `val` goes on through the validation split.
        """
        if split == "subtrain":
            entries = self.loader.coming(size)
        else:
            entries = [self.splits["val"][self._val.sample()] for _ in range(size)]
        losses = []
        for s in self.speak(entries):
            if distkit.is_leader():
                s.write(folder / split, self.codec.sample_rate)
            losses.append(metrics.mel_stft(s.out, s.target))
        return {f"{split}.mel_stft": float(np.nanmean(losses))} if losses else {}

    def fixed(self, split: str, size: int) -> list[Entry]:
        """The same `size` utterances of a split each time."""
        entries = self.splits[split]
        order = np.random.default_rng(_SEED).permutation(len(entries))
        return [entries[i] for i in order[:size]]

    def _samples(self, entries: Sequence[Entry]) -> list[Sample]:
        """The utterances with prompts that are the same each time."""
        rng = np.random.default_rng(_SEED)
        return [sample_of(self.file.read(e.key), self.prompts.draw(e, rng, always=True)) for e in entries]

    def _quietly(self):
        from contextlib import ExitStack

        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(self.autocast())
        was = self.model.training
        self.model.eval()
        stack.callback(self.model.train, was)
        return stack
