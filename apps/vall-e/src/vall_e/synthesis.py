"""Speech from text: phonemes, a prompt from a recording, codes, samples; whole or in chunks."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vall_e import audio, espeak
from vall_e.codecs.codec import Codec
from vall_e.codecs.load import load_published, published
from vall_e.model.generate import autoregress, refine, sampling_of, transcribe
from vall_e.model.growth import lay_out_weights
from vall_e.model.sampling import Sampling
from vall_e.model.sequence import Sample
from vall_e.prompting import SPOKEN, prompt_of
from vall_e.text import Split, pieces
from vall_e.weights import Voice, WeightsError

_LIMIT = 2.0
"""Times the usual length of as many phonemes, after which a sentence that does not end is cut."""
_SHORTEST = 0.3
"""Seconds of sound that a reference needs."""
_GAP = 0.15
"""Seconds of silence between sentences."""
_LONGEST = 30.0
"""Seconds of the longest recordings of a training that does not tell."""
_HASTE = 0.4
"""Share of the usual length below which some of a sentence is likely to be missing."""
_CLAUSE = re.compile(r"(?<=[,;:.!?…]) ")


@dataclass(frozen=True)
class Request:
    """What to say, and how.

    Attributes:
        text: one sentence or many.
        reference: a recording to sound like; its first seconds are taken, as many as the model was trained with.
            None leaves the voice open. Other tasks than `tts` work on the whole of it.
        language: of the text.
        split: what is spoken at a time.
        rolling: sentences after the first are also prompted with the end of the one before, so that a voice and
            its pace go on.
        modality: `ar+nar`, `nar-len` or `delay`; None for what the model is made for.
        seed: the same one gives the same speech.
        options: of `generate`; by default those that the weights were evaluated with.
        task: what is done with text and recording, see `vall_e.prompting.SPOKEN`; all but `tts` take the text whole.
        mixture: the recording that `tse` takes the voice out of.
        edit: the seconds of the recording that `cse` and `nse` speak anew: from, to.
        unknown: what becomes of phonemes that the weights do not know: `error`, or `drop`.
    """

    text: str
    reference: Path | None = None
    language: str = "en"
    split: Split = "sentence"
    rolling: bool = True
    modality: str | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    task: str = "tts"
    mixture: Path | None = None
    edit: tuple[float, float] | None = None
    unknown: Literal["error", "drop"] = "error"


class Speaker:
    """Speaks with loaded weights.

    Args:
        voice: the weights.
        codec_path: where the weights of a published codec lie, which are not stored with a model's.
        codec: the name of the published codec that the codes belong to, for weights that name none.

    Raises:
        WeightsError: the weights neither hold a codec nor name one.
        CodecUnavailable: the codec that they name is not here.
    """

    def __init__(self, voice: Voice, codec_path: Path | None = None, codec: str | None = None) -> None:
        self.voice = voice
        lay_out_weights(voice.model)
        name = voice.settings.get("codec") or codec
        if voice.codec is not None:
            self.codec: Codec = voice.codec
        elif name is not None and published(name) is not None:
            self.codec = load_published(name, codec_path)
        else:
            raise WeightsError(
                "these weights hold no codec and name none, so their codes cannot become speech; name it with --codec"
            )

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    def speak(self, request: Request) -> np.ndarray:
        """Samples [T] of the whole text.

        Raises:
            AudioError, ValueError: the reference or the text cannot be used.
        """
        gap = np.zeros(round(_GAP * self.sample_rate), np.float32)
        spoken: list[np.ndarray] = []
        for sample, limit, seed in self._sentences(request):
            codes = self._codes(sample, limit, request, seed)
            self._last = codes
            spoken += [self.codec.decode(codes), gap]
        return np.concatenate(spoken[:-1])

    def stream(self, request: Request, chunk_seconds: float = 0.5) -> Iterator[np.ndarray]:
        """The same speech (`ar+nar`) in chunks [t], the first of them before its sentence is done.

        The levels above the first, and the samples, of a chunk are made without what comes after it, so they
        differ a little from those of `speak`.
        """
        modality = request.modality or self.voice.model.spec.modality
        if modality != "ar+nar":
            raise ValueError(f"streaming needs modality ar+nar, which makes one frame after another, not {modality}")
        options = {**self.voice.settings.get("sampling", {}), **request.options}
        nar = Sampling(options.pop("nar_temperature", 0.0))
        strength, rescale = options.pop("cfg_strength", 1.0), options.pop("cfg_rescale", 0.75)
        if options.pop("beam_width", 0) > 1:
            raise ValueError(
                "a stream draws one frame after another: beam_width needs the whole sentence; leave one out"
            )
        options = {k: v for k, v in options.items() if k not in ("steps", "seed")}
        if not chunk_seconds > 0:
            raise ValueError(f"chunk_seconds: expected more than 0, found {chunk_seconds}")
        sampling = sampling_of(options)
        chunk = max(1, round(chunk_seconds * self.codec.frame_rate))
        model = self.voice.model
        for i, (sample, limit, seed) in enumerate(self._sentences(request)):
            if i:
                yield np.zeros(round(_GAP * self.sample_rate), np.float32)
            generator = torch.Generator(model.device).manual_seed(seed)
            joint = _Joint(self.codec)
            results = [np.zeros((0, 1), np.int64)]

            def upper(codes: np.ndarray, sample: Sample = sample, generator: torch.Generator = generator) -> np.ndarray:
                return refine(model, [sample], [codes], nar, generator)[0]

            with torch.inference_mode():
                for drawn in autoregress(model, [sample], [limit], sampling, generator, results, strength, rescale):
                    if drawn.shape[1] % chunk == 0:
                        yield joint.more(upper(drawn[0].cpu().numpy()[:, None]))
                self._last = upper(self._checked(results[0], sample, limit))
            yield joint.more(self._last, last=True)

    def transcribe(self, recording: Path, language: str = "en") -> str:
        """The phonemes that a recording says, as far as a model trained for `stt` can tell.

        Raises:
            AudioError, ValueError: the recording cannot be used, or the model was not trained for it.
        """
        self._trained_for("stt")
        ids = self.voice.tokenizer.vocabulary
        sample = Sample([], None, self._codes_of(recording), language)
        most = math.ceil(_LIMIT * len(sample.response) / self._frames_per_phone) + 8
        (found,) = transcribe(self.voice.model, [sample], most, start=ids["<s>"], end=ids["</s>"])
        return self.voice.tokenizer.decode(found)

    def _sentences(self, request: Request) -> Iterator[tuple[Sample, int, int]]:
        """(what to generate, frames at most, seed) of each sentence; set `_last` to the codes before going on."""
        self._check(request)
        plain = request.task == "tts"
        # All of them before the first is spoken: what cannot be said should not be found at the end.
        texts = pieces(request.text, request.split if plain else "none", request.language)
        phonemes = [p for text in texts for p in self._phonemes(text, request.language, plain)]
        if not phonemes:
            raise ValueError(f"there is nothing to say in {request.text!r}")
        spoken = [np.array(self.voice.tokenizer.encode(p, unknown=request.unknown)) for p in phonemes]
        reference, frames = self._beginning(request)
        self._last = np.zeros((0, self.codec.levels), np.int64)
        for i, ids in enumerate(spoken):
            prompt = reference
            if plain and request.rolling and len(self._last):
                half = self._prompt_frames // 2
                before = reference[: self._prompt_frames - half] if reference is not None else self._last[:0]
                prompt = np.concatenate([before, self._last[-half:]])
            most = math.ceil(_LIMIT * self._usual(ids)) + 8 + frames
            yield Sample(ids, prompt, None, request.language), most, request.seed + i

    def _check(self, request: Request) -> None:
        """See that the model can do what is asked, as far as its weights tell."""
        if request.task not in SPOKEN:
            raise ValueError(f"task: expected one of {', '.join(SPOKEN)}, found {request.task!r}")
        self._trained_for(request.task)
        if request.modality == "nar-len" and not self.voice.model.spec.masking_train_p:
            self._trained_for("nar-len")
        self.voice.model.spec.language_row(request.language)

    def _phonemes(self, text: str, language: str, divisible: bool) -> list[str]:
        """The phonemes of a text; in parts, at its punctuation, where it is longer than any the model has seen."""
        phonemes = espeak.phonemize(text, language)
        most = self.voice.settings.get("most_phones")
        if most is None or not divisible:
            return [phonemes] if phonemes else []
        parts: list[str] = []
        for clause in _CLAUSE.split(phonemes) if phonemes else ():
            together = f"{parts[-1]} {clause}" if parts else clause
            if parts and len(self.voice.tokenizer.encode(together, unknown="drop")) <= most:
                parts[-1] = together
            else:
                parts.append(clause)
        return parts

    def _usual(self, ids: np.ndarray) -> float:
        """The frames that so many phonemes usually last."""
        return len(ids) * self._frames_per_phone

    def _beginning(self, request: Request) -> tuple[Any, int]:
        """(the prompt, the frames of the recording that the task says again)."""
        voice = request.reference
        if request.task in ("tts", "tse"):
            prompt = None if voice is None else self._voice_of(voice)
            if request.task == "tts":
                return prompt, 0
            heard = None if request.mixture is None else self._codes_of(request.mixture)
            return prompt_of(request.task, heard, prompt), 0 if heard is None else len(heard)
        heard = None if voice is None else self._codes_of(voice)
        edit = request.edit and tuple(round(t * self.codec.frame_rate) for t in request.edit)
        frames = 0 if heard is None or request.task == "tts-c" else len(heard)
        return prompt_of(request.task, heard, edit=edit), frames

    def _trained_for(self, task: str) -> None:
        tasks = self.voice.settings.get("tasks")  # existing weights do not tell
        if tasks is not None and task not in tasks:
            raise ValueError(f"task {task}: these weights were trained for {', '.join(tasks)} (dataset.tasks_list)")

    @property
    def _frames_per_phone(self) -> float:
        return self.voice.settings.get("frames_per_phone", self.codec.frame_rate / 12)

    @property
    def _prompt_frames(self) -> int:
        return round(self.voice.settings.get("prompt_seconds", 3.0) * self.codec.frame_rate)

    def _voice_of(self, reference: Path) -> np.ndarray:
        """The codes of a recording's first seconds, as many as a prompt of the training had."""
        samples = _without_silence(self._read(reference))
        enough = samples[: round((self._prompt_frames + 2) / self.codec.frame_rate * self.sample_rate)]
        return self.codec.encode(enough)[: self._prompt_frames]

    def _codes_of(self, recording: Path) -> np.ndarray:
        """The codes of a whole recording."""
        samples = self._read(recording)
        most = 2 * self.voice.settings.get("most_frames", _LONGEST * self.codec.frame_rate) / self.codec.frame_rate
        if len(samples) > most * self.sample_rate:
            raise ValueError(
                f"{recording}: {len(samples) / self.sample_rate:.0f} s are too long to be worked on at once: the "
                f"longest that the model was trained on were {most / 2:.0f} s; cut it"
            )
        return self.codec.encode(samples)

    def _read(self, recording: Path) -> np.ndarray:
        samples = audio.read_audio(recording, self.sample_rate)
        seconds = len(_without_silence(samples)) / self.sample_rate
        if seconds < _SHORTEST:
            raise ValueError(
                f"{recording}: {seconds:.2f} s of sound are too short to tell a voice; at least {_SHORTEST} s are "
                f"needed, {self.voice.settings.get('prompt_seconds', 3.0):g} s are best"
            )
        if float((np.abs(samples) > 0.999).mean()) > 0.001:
            warnings.warn(f"{recording}: the recording is clipped; the voice may sound harsh", stacklevel=4)
        return samples

    def _codes(self, sample: Sample, limit: int, request: Request, seed: int) -> np.ndarray:
        options = {**self.voice.settings.get("sampling", {}), **request.options}
        tasks = self.voice.settings.get("tasks", ("len",))
        if request.modality == "nar-len" and "len" not in tasks:  # it never learnt to tell the length
            options.setdefault("frames", max(1, round(self._usual(sample.phones))))
        options = {"seed": seed, "max_frames": limit, **options}
        (codes,) = self.voice.model.generate([sample], request.modality, **options)
        return self._checked(codes, sample, limit)

    def _checked(self, codes: np.ndarray, sample: Sample, limit: int) -> np.ndarray:
        if len(codes) >= limit:
            warnings.warn(
                f"a sentence did not end by itself and was cut at {limit / self.codec.frame_rate:.1f} s; "
                "try another seed or a lower temperature",
                stacklevel=3,
            )
        if not len(codes):
            raise ValueError("the model spoke nothing; try another seed or a longer text")
        if len(codes) < _HASTE * self._usual(sample.phones):
            warnings.warn(
                f"a sentence took {len(codes) / self.codec.frame_rate:.1f} s, where "
                f"{self._usual(sample.phones) / self.codec.frame_rate:.1f} s are usual: some of it may be missing; try "
                "another seed",
                stacklevel=3,
            )
        return codes


class _Joint:
    """Turns growing codes into samples: each chunk is decoded with some of what was before it, and faded in."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._hop = round(codec.sample_rate / codec.frame_rate)
        self._fade = self._hop
        self._done = 0  # frames whose samples were given out, but for the last `_fade` ones
        self._tail = np.zeros(0, np.float32)

    def more(self, codes: np.ndarray, *, last: bool = False) -> np.ndarray:
        """The samples that are new in codes [T, levels]."""
        begin = max(0, self._done - round(0.3 * self._codec.frame_rate) - 1)
        samples = self._codec.decode(codes[begin:])[: (len(codes) - begin) * self._hop]
        samples = samples[max(0, (self._done - begin) * self._hop - len(self._tail)) :].copy()
        ramp = np.linspace(0, 1, len(self._tail), dtype=np.float32)
        samples[: len(ramp)] = samples[: len(ramp)] * ramp + self._tail[: len(samples)] * (1 - ramp)
        self._done = len(codes)
        if last:
            return samples
        self._tail = samples[-self._fade :]
        return samples[: -self._fade]


def _without_silence(samples: np.ndarray) -> np.ndarray:
    """Samples from where they first reach a twentieth of their peak: a prompt of silence tells no voice."""
    loud = np.abs(samples) > np.abs(samples).max(initial=0) / 20
    return samples[int(loud.argmax()) :] if loud.any() else samples[:0]
