"""From an utterance to a training request: what each task puts into the prompt, and what it has the model say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vall_e.data.store import Dataset, Entry, Utterance
from vall_e.model.sequence import Request, Sample

NOISE_TASKS = ("ns", "sr", "nse")
MIXING_TASKS = (*NOISE_TASKS, "tse")
"""Tasks that mix recordings, and so need the codec."""


class Mixer(Protocol):
    """The part of a codec that mixing needs."""

    def mix(self, codes: np.ndarray, other: np.ndarray, scale: float) -> np.ndarray: ...


@dataclass(frozen=True)
class PromptRules:
    """How a prompt is drawn.

    Attributes:
        seconds: at least and at most.
        dropout: how often there is none.
        max_samples: utterances that are joined, at most.
        similar_p: how often it comes from one of the `similar_top_k` utterances that sound most alike.
        continuous_p: how often it is the utterance's own beginning, which the response then goes on from.
        append_p: how often another utterance of the speaker is joined to what is spoken, `append_most` at most.
    """

    seconds: tuple[float, float]
    dropout: float
    max_samples: int = 1
    similar_p: float = 0.0
    similar_top_k: int = 1
    continuous_p: float = 0.0
    append_p: float = 0.0
    append_most: int = 1


class Prompts:
    """Draws prompts: stretches of other utterances of the same speaker."""

    def __init__(self, file: Dataset, entries: Sequence[Entry], rules: PromptRules, frame_rate: float) -> None:
        self._file, self.rules, self._rate = file, rules, frame_rate
        self._of_speaker: dict[str, list[Entry]] = {}
        for entry in entries:
            self._of_speaker.setdefault(entry.speaker, []).append(entry)

    def draw(self, entry: Entry, rng: np.random.Generator, *, always: bool = False) -> np.ndarray | None:
        """Codes [T, levels]; None where the speaker has no other utterance, or (not `always`) it is dropped."""
        dropped = rng.random() < self.rules.dropout and not always
        if dropped or self._alone(entry):
            return None
        length = round(rng.uniform(*self.rules.seconds) * self._rate)
        parts: list[np.ndarray] = []
        while len(parts) < self.rules.max_samples and sum(map(len, parts)) < length:
            codes = self._file.read(self.other(entry, rng).key).codes
            missing = length - sum(map(len, parts))
            start = int(rng.integers(max(1, len(codes) - missing + 1)))
            parts.append(codes[start : start + missing])
        return np.concatenate(parts)

    def other(self, entry: Entry, rng: np.random.Generator) -> Entry:
        """Another utterance of the speaker, or this one where there is no other."""
        others = self._of_speaker.get(entry.speaker, [entry])
        if entry.similar and rng.random() < self.rules.similar_p:
            near = set(entry.similar[: self.rules.similar_top_k])
            others = [e for e in others if e.key.rpartition("/")[2] in near] or others
        if others[0].key == others[-1].key == entry.key:
            return entry
        while True:
            chosen = others[rng.integers(len(others))]
            if chosen.key != entry.key:
                return chosen

    def _alone(self, entry: Entry) -> bool:
        """Whether the speaker has no other utterance."""
        others = self._of_speaker.get(entry.speaker, [])
        return not others or others[0].key == others[-1].key == entry.key

    def stranger(self, entry: Entry, rng: np.random.Generator) -> Entry:
        """An utterance of another speaker.

        Raises:
            ValueError: there is no other speaker.
        """
        speakers = [s for s in self._of_speaker if s != entry.speaker]
        if not speakers:
            raise ValueError("task tse needs a second speaker in dataset.training, found one")
        others = self._of_speaker[speakers[rng.integers(len(speakers))]]
        return others[rng.integers(len(others))]


def sample_of(utterance: Utterance, prompt: np.ndarray | None) -> Sample:
    return Sample(utterance.phone_ids, prompt, utterance.codes, utterance.language)


class Tasks:
    """Makes requests.

    Args:
        file: the dataset.
        prompts: draws from its training split.
        noise: the entries of background noise, for `ns`, `sr` and `nse`.
        codec: mixes.
        noise_scale: of the noise's amplitude.

    The tasks are those of VALL-E (`tts`) and SpeechX (Wang et al., 2023, arXiv 2308.06873): continuation (`tts-c`),
    noise suppression (`ns`), speech removal (`sr`), target speaker extraction (`tse`), clean and noisy editing
    (`cse`, `nse`); and transcription (`stt`), the length (`len`) and demasking (`nar-len`).
    """

    def __init__(
        self,
        file: Dataset,
        prompts: Prompts,
        noise: Sequence[Entry] = (),
        codec: Mixer | None = None,
        noise_scale: float = 0.25,
    ) -> None:
        self._file, self._prompts, self._noise, self._codec = file, prompts, noise, codec
        self._noise_scale = noise_scale

    def request(self, task: str, entry: Entry, level: int, rng: np.random.Generator) -> Request:
        """The pass that trains `level` (0 for `stt`, `len` and `nar-len`) of a task on an utterance."""
        utterance = self._joined(entry, rng)
        if task in ("stt", "len", "nar-len"):
            sample = sample_of(utterance, self._prompts.draw(entry, rng))
            masked = _masked(len(utterance.codes), rng) if task == "nar-len" else None
            return Request(sample, task, masked=masked)
        sample = getattr(self, f"_{task.replace('-', '_')}")(entry, utterance, rng)
        return Request(sample, "nar" if level else "ar", level)

    def _joined(self, entry: Entry, rng: np.random.Generator) -> Utterance:
        """The utterance, now and then with others of the speaker behind it."""
        utterance, rules = self._file.read(entry.key), self._prompts.rules
        joined = 1
        while joined < rules.append_most and rng.random() < rules.append_p:
            more = self._file.read(self._prompts.other(entry, rng).key)
            utterance = replace(
                utterance,
                codes=np.concatenate([utterance.codes, more.codes]),
                phone_ids=np.concatenate([utterance.phone_ids[:-1], more.phone_ids[1:]]),
            )
            joined += 1
        return utterance

    def _tts(self, entry: Entry, utterance: Utterance, rng: np.random.Generator) -> Sample:
        if self._prompts.rules.continuous_p and rng.random() < self._prompts.rules.continuous_p:
            return self._continued(utterance, rng)
        return sample_of(utterance, self._prompts.draw(entry, rng))

    def _tts_c(self, entry: Entry, utterance: Utterance, rng: np.random.Generator) -> Sample:
        sample = self._continued(utterance, rng)
        return replace(sample, prompt=["tts-c", *sample.prompt_parts()])

    def _continued(self, utterance: Utterance, rng: np.random.Generator) -> Sample:
        """The utterance's beginning as the prompt of the rest of it."""
        codes = utterance.codes
        cut = int(rng.integers(1, max(2, len(codes) // 2)))
        return Sample(utterance.phone_ids, codes[:cut], codes[cut:], utterance.language)

    def _ns(self, entry: Entry, utterance: Utterance, rng: np.random.Generator) -> Sample:
        noisy = self._mixed(utterance.codes, self._noise_like(utterance.codes, rng), self._noise_scale)
        return Sample(utterance.phone_ids, ["ns", noisy], utterance.codes, utterance.language)

    def _sr(self, entry: Entry, utterance: Utterance, rng: np.random.Generator) -> Sample:
        noise = self._noise_like(utterance.codes, rng)
        return Sample(
            utterance.phone_ids,
            ["sr", self._mixed(utterance.codes, noise, self._noise_scale)],
            noise,
            utterance.language,
        )

    def _tse(self, entry: Entry, utterance: Utterance, rng: np.random.Generator) -> Sample:
        other = _fitted(self._file.read(self._prompts.stranger(entry, rng).key).codes, len(utterance.codes))
        prompt = self._prompts.draw(entry, rng, always=True)
        mixed = self._mixed(utterance.codes, other, 1.0)
        parts = [*([] if prompt is None else [prompt]), "tse", mixed]
        return Sample(utterance.phone_ids, parts, utterance.codes, utterance.language)

    def _cse(self, entry: Entry, utterance: Utterance, rng: np.random.Generator) -> Sample:
        """The utterance stands between two others; what is spoken instead of a third is the utterance."""
        before, replaced, after = (self._file.read(self._prompts.other(entry, rng).key) for _ in range(3))
        phones = [before.phone_ids[:-1], utterance.phone_ids[1:-1], after.phone_ids[1:]]
        prompt = [before.codes, "soe", replaced.codes, "eoe", after.codes]
        response = np.concatenate([before.codes, utterance.codes, after.codes])
        return Sample(np.concatenate(phones), prompt, response, utterance.language)

    def _nse(self, entry: Entry, utterance: Utterance, rng: np.random.Generator) -> Sample:
        """As `cse`, with noise behind all that is heard and all that is to be spoken."""
        clean = self._cse(entry, utterance, rng)
        assert clean.response is not None
        prompt = [p if isinstance(p, str) else self._noisy(p, rng) for p in clean.prompt_parts()]
        return Sample(clean.phones, prompt, self._noisy(clean.response, rng), clean.language)

    def _noisy(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._mixed(codes, self._noise_like(codes, rng), self._noise_scale)

    def _noise_like(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = self._file.read(self._noise[rng.integers(len(self._noise))].key).codes
        if len(noise) > len(codes):
            noise = noise[rng.integers(len(noise) - len(codes) + 1) :]
        return _fitted(noise, len(codes))

    def _mixed(self, codes: np.ndarray, other: np.ndarray, scale: float) -> np.ndarray:
        assert self._codec is not None, "a task that mixes was asked for without a codec"
        return self._codec.mix(codes, other, scale)


def _fitted(codes: np.ndarray, frames: int) -> np.ndarray:
    """Codes repeated or cut to a number of frames."""
    return np.resize(codes, (frames, codes.shape[1])) if len(codes) else np.zeros((frames, codes.shape[1]), int)


def _masked(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Which frames demasking has to find: a share from the cosine schedule, at least one [frames]."""
    count = max(1, round(math.cos(rng.random() * math.pi / 2) * frames))
    masked = np.zeros(frames, bool)
    masked[rng.permutation(frames)[:count]] = True
    return masked
