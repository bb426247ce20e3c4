"""From utterances to one padded batch of table rows, positions and targets.

A sequence is `phonemes | language | level | prompt | [tone] | response`, or, when speech is transcribed,
`response | language | level | phonemes`, with a separator between segments and none at the end. Everything here is
index arithmetic in numpy, so a loader's worker can do it; the model only gathers rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from vall_e.model.spec import LANGUAGES, LENGTH_DIGITS, TASKS, ModelSpec

Kind = Literal["ar", "nar", "nar-len", "stt", "len"]


@dataclass(frozen=True)
class Sample:
    """One utterance to train on, score or continue.

    Attributes:
        phones: phoneme ids [N] with `<s>` and `</s>`, or a string of IPA phonemes for the naive tokenizer.
        prompt: codes [T, Q] of the voice to speak with; several, or task names, in a list; None for none.
        response: codes [T, Q] of the utterance itself; None to generate.
        language: a name in `LANGUAGES`, or its row.
        tone: a row of the tone table, or None.
    """

    phones: np.ndarray | Sequence[int] | str
    prompt: np.ndarray | list[np.ndarray | str] | None = None
    response: np.ndarray | None = None
    language: str | int = "en"
    tone: int | None = None

    def phone_ids(self) -> np.ndarray:
        if isinstance(self.phones, str):
            from vall_e.tokenizer import NaiveTokenizer

            return np.asarray(NaiveTokenizer().encode(self.phones), np.int64)
        return np.asarray(self.phones, np.int64)

    def language_id(self) -> int:
        if isinstance(self.language, str):
            if self.language not in LANGUAGES:
                raise ValueError(f"language: expected one of {', '.join(LANGUAGES)}, found {self.language!r}")
            return LANGUAGES[self.language]
        return int(self.language)

    def prompt_parts(self) -> list[np.ndarray | str]:
        if self.prompt is None:
            return []
        parts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        return [p for p in parts if isinstance(p, str) or len(p)]

    def with_response(self, response: np.ndarray | None) -> Sample:
        return replace(self, response=response)


@dataclass(frozen=True)
class Request:
    """A pass over one sample: what is predicted.

    Attributes:
        kind: `ar` predicts level 0 from the past; `nar` predicts `level` from the levels below; `nar-len`
            predicts the masked codes of level 0; `stt` predicts the phonemes of the response; `len` predicts the
            number of frames, digit by digit.
        level: the level that `nar` predicts, 1 or more.
        masked: [T] booleans, the positions that `nar-len` hides and predicts.
        digits: for `len` in the making, the tokens so far, the start token first.
        stop: the output is complete (training); not when it is to be continued (decoding).
    """

    sample: Sample
    kind: Kind = "ar"
    level: int = 0
    masked: np.ndarray | None = None
    stop: bool = True
    digits: tuple[int, ...] = ()

    @property
    def causal(self) -> bool:
        return self.kind in ("ar", "stt", "len")


@dataclass
class Batch:
    """Requests of one attention kind, laid out for the model.

    Attributes:
        rows: [B, T], rows of the model's table of embeddings (0 is padding).
        positions: [B, T].
        valid: [B, T] booleans, False at padding; None when nothing is padded or padding cannot be seen.
        causal: the attention's direction.
        codes: [K], rows of the model's table of codes (see `CodeTable`), frame after frame.
        frames: [F], where each frame of prompts, then of responses, begins in `codes`: its rows are summed.
        output: [M], flat indices into B * T of the states that predict.
        head: [M], the classifier of each.
        target: [M], what each should predict; -1 where nothing is known.
        owner: [M], the request of each.
    """

    rows: Tensor
    positions: Tensor
    valid: Tensor | None
    causal: bool
    codes: Tensor
    frames: Tensor
    output: Tensor
    head: Tensor
    target: Tensor
    owner: Tensor
    size: int

    def to(self, device: torch.device | str) -> Batch:
        moved = {k: v.to(device, non_blocking=True) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class Tables:
    """Where each static table starts in the model's concatenated table of embeddings."""

    def __init__(self, spec: ModelSpec) -> None:
        self.padding, self.separator = 0, 1
        self.phonemes = 2
        self.languages = self.phonemes + spec.phoneme_tokens
        self.levels = self.languages + spec.langs
        self.tones = self.levels + spec.levels
        self.tasks = self.tones + spec.tones
        self.lengths = self.tasks + spec.tasks
        self.audio = self.lengths + LENGTH_DIGITS


class CodeTable:
    """Where each table of codes starts in the model's concatenated one: prompts by level, responses by table."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        codes, levels = spec.audio_tokens, spec.levels
        self.prompt = np.arange(levels) * codes
        first = levels * codes
        self.ar = first
        self.nar = first + codes + 1 + np.arange(levels - 1) * codes
        self.masked = first + codes + 1 + (levels - 1) * codes

    def prompt_rows(self, codes: np.ndarray, level: int) -> np.ndarray:
        """Rows [T, n] of prompt codes [T, Q] when `level` is predicted: the levels below it, at least the first."""
        limit = max(1, level)
        chosen = slice(0, limit) if self.spec.sums("prom") else slice(limit - 1, limit)
        return codes[:, chosen] + self.prompt[chosen]

    def response_rows(self, codes: np.ndarray, request: Request) -> np.ndarray:
        """Rows [T, n] of response codes [T, Q]: AR and NAR-len have tables of their own, NAR those of the levels."""
        if request.kind == "nar-len":
            return codes[:, :1] + self.masked
        if request.level == 0:
            return codes[:, :1] + self.ar
        chosen = slice(0, request.level) if self.spec.sums("resp") else slice(request.level - 1, request.level)
        return codes[:, chosen] + self.nar[chosen]


def head_of(request: Request, spec: ModelSpec) -> int:
    """The classifier's number: the level, then NAR-len, speech-to-text and length."""
    q = spec.levels
    return {"ar": 0, "nar": request.level, "nar-len": q, "stt": q + 1, "len": q + 2}[request.kind]


def length_tokens(frames: int, spec: ModelSpec) -> np.ndarray:
    """A number of frames as tokens of the `len` task: start, digits, stop."""
    digits = [int(d) for d in str(frames + spec.length_offset)]
    return np.array([0, *digits, LENGTH_DIGITS - 1], np.int64)


def lay_out(requests: Sequence[Request], spec: ModelSpec, *, pad_left: bool = False) -> Batch:
    """Lay out requests of one attention kind as a batch.

    Args:
        requests: all causal, or all not (with `noncausal_masks` off every request is causal).
        pad_left: align the ends, for decoding; by default the starts are aligned.

    Raises:
        ValueError: a code or phoneme outside its table, named with its sample.
    """
    tables, code_table = Tables(spec), CodeTable(spec)
    sequences, positions, outputs, targets, heads = [], [], [], [], []
    prompt_rows: list[np.ndarray] = []
    response_rows: list[np.ndarray] = []
    n_prompt = n_response = 0
    prompted = [r.sample for r in requests if r.kind != "stt"]
    total_prompt = sum(len(p) for s in prompted for p in s.prompt_parts() if not isinstance(p, str))
    for at, request in enumerate(requests):
        sample = request.sample
        phones = tables.phonemes + _checked(sample.phone_ids(), spec.phoneme_tokens, "phoneme", at)
        language = [tables.languages + _bounded(sample.language_id(), spec.langs, "language", at)]
        quantiser = [tables.levels + _bounded(request.level, spec.levels, "level", at)]
        prompt = []
        for part in sample.prompt_parts() if request.kind != "stt" else ():
            if isinstance(part, str):
                prompt.append([tables.tasks + TASKS[part]])
                continue
            codes = _codes(part, spec, at)
            prompt.append(tables.audio + n_prompt + np.arange(len(codes)))
            n_prompt += len(codes)
            prompt_rows.append(code_table.prompt_rows(codes, request.level))
        response, target, codes = _response(request, spec, tables, at)
        if codes is not None:
            response = tables.audio + total_prompt + n_response + np.arange(len(codes))
            n_response += len(codes)
            response_rows.append(code_table.response_rows(codes, request))
        if request.kind == "stt":
            segments = [response, language, quantiser, phones]
            target = sample.phone_ids() if request.stop else target
        else:
            segments = [phones, language, quantiser]
            if prompt:
                segments.append(np.concatenate(prompt))
            if sample.tone is not None:
                segments.append([tables.tones + _bounded(sample.tone, spec.tones, "tone", at)])
            segments.append(response)

        pieces, places = [], []
        for i, segment in enumerate(segments):
            piece = segment if i == len(segments) - 1 else [*segment, tables.separator]
            pieces.append(np.asarray(piece, np.int64))
            places.append(np.arange(len(piece)))
        rows = np.concatenate(pieces)
        sequences.append(rows)
        positions.append(np.arange(len(rows)) if spec.unified_position_ids else np.concatenate(places))
        # An autoregressive state predicts the token behind it, the last separator the first token.
        first = len(rows) - len(segments[-1]) - (1 if request.causal else 0)
        count = max(1, len(target)) if request.causal and not request.stop else len(target)
        outputs.append(np.arange(first, first + count))
        targets.append(target if len(target) == count else np.full(count, -1))
        heads.append(np.full(count, head_of(request, spec)))

    lengths = np.array([len(s) for s in sequences])
    width = int(lengths.max())
    starts = width - lengths if pad_left else np.zeros_like(lengths)
    rows = np.zeros((len(sequences), width), np.int64)
    place = np.zeros_like(rows)
    valid = np.zeros(rows.shape, bool)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        rows[i, start : start + length] = sequences[i]
        place[i, start : start + length] = positions[i]
        valid[i, start : start + length] = True
    causal = requests[0].causal or not spec.noncausal_masks
    hidden = (lengths != width).any() and (pad_left or not causal)
    summed = [*prompt_rows, *response_rows]
    widths = np.concatenate([np.full(len(r), r.shape[1]) for r in summed] or [np.zeros(0, np.int64)])

    def joined(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays) if arrays else np.zeros(0, np.int64))

    return Batch(
        rows=torch.from_numpy(rows),
        positions=torch.from_numpy(place),
        valid=torch.from_numpy(valid) if hidden else None,
        causal=causal,
        codes=joined([r.reshape(-1) for r in summed]),
        frames=torch.from_numpy(np.cumsum(widths) - widths),
        output=joined([i * width + starts[i] + o for i, o in enumerate(outputs)]),
        head=joined(heads),
        target=joined([np.asarray(t, np.int64) for t in targets]),
        owner=joined([np.full(len(t), i) for i, t in enumerate(outputs)]),
        size=len(requests),
    )


def _response(
    request: Request, spec: ModelSpec, tables: Tables, at: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The response segment: (static rows or empty, targets, codes or None)."""
    sample = request.sample
    none = np.zeros(0, np.int64)
    if request.kind == "len":
        if not request.stop:
            return tables.lengths + np.array(request.digits, np.int64), none, None
        tokens = none if sample.response is None else length_tokens(len(sample.response), spec)
        return tables.lengths + tokens, tokens, None
    codes = np.zeros((0, spec.levels), np.int64)
    if sample.response is not None:
        codes = _codes(sample.response, spec, at)
    if request.kind == "stt":
        if not len(codes):
            raise ValueError(f"sample {at}: there is no response to transcribe")
        return none, none, codes
    if request.kind == "ar":
        if request.stop:
            end = np.full((1, spec.levels), 0)
            end[0, 0] = spec.stop
            codes = np.concatenate([codes, end])
        return none, codes[:, 0] if request.stop else none, codes
    if request.kind == "nar":
        if not 1 <= request.level < spec.levels:
            raise ValueError(f"sample {at}: NAR predicts levels 1 to {spec.levels - 1}, asked for {request.level}")
        return none, codes[:, request.level], codes
    masked = np.ones(len(codes), bool) if request.masked is None else np.asarray(request.masked, bool)
    target = np.where(masked, codes[:, 0], -1)
    codes = codes.copy()
    codes[masked, 0] = spec.stop
    return none, target, codes


def _codes(codes: np.ndarray, spec: ModelSpec, at: int) -> np.ndarray:
    """Codes as int64 [T, Q], checked; levels that a partial decode does not hold yet are zero."""
    codes = np.asarray(codes, np.int64)
    if codes.ndim != 2 or codes.shape[1] > spec.levels:
        raise ValueError(f"sample {at}: expected codes [frames, {spec.levels}], found shape {list(codes.shape)}")
    _checked(codes, spec.audio_tokens, "audio code", at)
    if codes.shape[1] < spec.levels:
        codes = np.pad(codes, ((0, 0), (0, spec.levels - codes.shape[1])))
    return codes


def _checked(ids: np.ndarray, count: int, what: str, at: int) -> np.ndarray:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        raise ValueError(
            f"sample {at}: {what} {ids.max() if ids.max() >= count else ids.min()} is outside 0..{count - 1}"
        )
    return ids


def _bounded(value: int, count: int, what: str, at: int) -> int:
    if not 0 <= value < count:
        raise ValueError(f"sample {at}: {what} {value} is outside 0..{count - 1}")
    return value
