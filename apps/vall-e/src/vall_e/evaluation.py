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
_RENAMED = {
    "ar_temperature": "temperature",
    "min_ar_temperature": "min_temperature",
    "max_steps": "steps",
    "max_nar_steps": "steps",
    "max_ar_steps": "max_frames",
    "top_no": "top_n_sigma",
}
"""Options of synthesis as existing files call them."""


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
        measures: what the loss is made of: `level0`, … of speech, or tasks (`stt`, `len`, `nar-len`).
        autocast: makes the context that the model runs under.
        sampling: options of `generate`, which one frame is generated with to prove them.

    Raises:
        ValueError: an option is unknown or out of range.
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
        measures: Sequence[str],
        autocast: Callable[[], Any],
        sampling: dict[str, Any],
    ) -> None:
        self.model, self.codec, self.file, self.splits = model, codec, file, splits
        self.loader, self.prompts = loader, prompts
        self.batch_size, self.measures, self.autocast = batch_size, list(measures), autocast
        self.sampling = sampling
        self._val = PoolSampler(range(len(splits["val"])), seed=_SEED)
        try:
            self.codes([Sample([1, 2], None, np.zeros((0, model.spec.levels), int), 0)], max_frames=1)
        except (ValueError, TypeError) as e:
            renamed = ", ".join(f"{old} is called {_RENAMED[old]} here" for old in sampling if old in _RENAMED)
            raise ValueError(f"evaluation.kwargs: {renamed or e}") from e

    def state_dict(self) -> dict[str, Any]:
        """Where the validation split is."""
        return dict(self._val.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there; in another validation split from the beginning."""
        self._val.load_state_dict(state, on_mismatch="restart")

    def losses(self, split: str, size: int, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """The teacher-forced loss in nats of all that is measured, over the same `size` utterances each time.

        Returns:
            `{split}.level0`, …, and `{split}.loss`: the mean of the levels, or of the tasks where no level is measured.
        """
        chosen = self.fixed(split, size)
        chosen.sort(key=lambda e: e.frames + e.phones)
        samples = self._samples(chosen)
        sums = dict.fromkeys(self.measures, 0.0)
        levels = {name: int(name.removeprefix("level")) for name in self.measures if name.startswith("level")}
        with self._quietly():
            for start in range(0, len(samples), self.batch_size):
                if should_stop():
                    break
                part = samples[start : start + self.batch_size]
                delayed = self.model(self.model.batch_of(part, "delay")) if self.model.spec.delay and levels else None
                for name in self.measures:
                    if name not in levels:
                        loss = self.model.loss(part, name)
                    elif delayed is not None:
                        loss = delayed.nll[delayed.head == levels[name]].mean()
                    else:
                        loss = self.model.loss(part, level=levels[name])
                    sums[name] += float(loss) * len(part)
        means = {name: total / max(1, len(samples)) for name, total in sums.items()}
        mean_of_all = float(np.mean([means[name] for name in levels or means]))
        return {f"{split}.loss": mean_of_all} | {f"{split}.{name}": mean for name, mean in means.items()}

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
        limits = [2 * len(s.response) + 8 for s in samples]
        with self._quietly():
            return self.model.generate(
                [s.with_response(None) for s in samples],
                **{"max_frames": limits, "seed": seed, **self.sampling, **options},
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
