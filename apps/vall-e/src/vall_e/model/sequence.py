"""From utterances to one packed batch of table rows, positions and targets.

A sequence is `phonemes | language | level | prompt | [tone] | response`, or, when speech is transcribed,
`response | language | level | phonemes`, with a separator between segments and none at the end. Everything here is
index arithmetic in numpy, so a loader's worker can do it; the model only gathers rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from vall_e.model.patterns import delay
from vall_e.model.spec import LENGTH_DIGITS, TASKS, ModelSpec

_NONE = np.zeros(0, np.int64)

Kind = Literal["ar", "nar", "nar-len", "delay", "stt", "len"]


@dataclass(frozen=True)
class Sample:
    """One utterance to train on, score or continue.

    Attributes:
        phones: phoneme ids [N] with `<s>` and `</s>`, or a string of IPA phonemes for the naive tokenizer.
        prompt: codes [T, Q] of the voice to speak with; several, or task names, in a list; None for none.
        response: codes [T, Q] of the utterance itself; None to generate.
        language: a name that the model knows, or its row.
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
        ids = np.asarray(self.phones)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"phones: expected integer ids [N] or a string, found {ids.dtype} of shape {list(ids.shape)}"
            )
        return ids.astype(np.int64)

    def prompt_parts(self) -> list[np.ndarray | str]:
        if self.prompt is None:
            return []
        parts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        return [p for p in parts if isinstance(p, str) or np.size(p)]

    def with_response(self, response: np.ndarray | None) -> Sample:
        return replace(self, response=response)


@dataclass(frozen=True)
class Request:
    """A pass over one sample: what is predicted.

    Attributes:
        kind: `ar` predicts level 0 from the past; `nar` predicts `level` from the levels below; `nar-len`
            predicts the masked codes of level 0; `delay` predicts all levels from the past; `stt` predicts the
            phonemes of the response; `len` predicts the number of frames, digit by digit.
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
        return self.kind in ("ar", "delay", "stt", "len")


@dataclass
class Batch:
    """Requests laid out for the model one behind the other, without padding: N positions in all.

    Attributes:
        rows: [N], rows of the model's table of embeddings.
        positions: [N].
        lengths: positions of each request.
        causal: the direction of each request's attention.
        codes: [K], rows of the model's table of codes (see `CodeTable`), frame after frame.
        frames: [F], where each frame of prompts and responses begins in `codes`: its rows are summed.
        kept: [S], the positions whose states predict, in order.
        heads: (classifier, number of predictions) for those that the requests use; predictions are sorted by it.
        output: [M], which of the kept states makes each prediction.
        target: [M], what it should be; -1 where nothing is known.
        owner: [M], whose mean it counts to: its request, or with `delay` a level of it.
        owner_head: [G], the classifier of each owner.
    """

    rows: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    causal: tuple[bool, ...]
    codes: Tensor
    frames: Tensor
    kept: Tensor
    heads: tuple[tuple[int, int], ...]
    output: Tensor
    target: Tensor
    owner: Tensor
    owner_head: Tensor

    def to(self, device: torch.device | str) -> Batch:
        moved = {k: v.to(device, non_blocking=True) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def ends_aligned(self) -> tuple[Tensor, Tensor]:
        """Where each position goes when the requests stand side by side, padded on the left, as decoding has them.

        Returns:
            (index [B, T] into the N positions, 0 at padding; valid [B, T] booleans, False there).
        """
        lengths = torch.tensor(self.lengths)
        width = int(lengths.max())
        place = torch.arange(width) - (width - lengths)[:, None]  # B, T
        index = (lengths.cumsum(0) - lengths)[:, None] + place
        valid = place >= 0
        return index.where(valid, 0).to(self.rows.device), valid.to(self.rows.device)


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
        self.delayed = np.concatenate([[self.ar], self.nar])

    def prompt_rows(self, codes: np.ndarray, request: Request) -> np.ndarray:
        """Rows [T, n] of prompt codes [T, Q]: of the levels below the predicted one, at least of the first."""
        if request.kind == "delay":
            return codes + self.prompt
        limit = max(1, request.level)
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
    """The classifier's number: the level (with `delay` the first one), then NAR-len, speech-to-text and length."""
    q = spec.levels
    return {"ar": 0, "nar": request.level, "nar-len": q, "delay": 0, "stt": q + 1, "len": q + 2}[request.kind]


def length_tokens(frames: int, spec: ModelSpec) -> np.ndarray:
    """A number of frames as tokens of the `len` task: start, digits, stop."""
    digits = [int(d) for d in str(frames + spec.length_offset)]
    return np.array([0, *digits, LENGTH_DIGITS - 1], np.int64)


@dataclass(frozen=True)
class _Output:
    """The segment that a request ends with, and what is to be predicted.

    Attributes:
        static: rows [T] of the model's static table, when it is not of codes.
        codes: rows [K] of the model's table of codes, frame after frame.
        widths: [F], how many of them each frame has.
        target: [M].
        step: [M], the state that predicts each, counted from the first that does.
        level: [M], with `delay` the level of each.
    """

    static: np.ndarray | None = None
    codes: np.ndarray = field(default_factory=lambda: _NONE)
    widths: np.ndarray = field(default_factory=lambda: _NONE)
    target: np.ndarray = field(default_factory=lambda: _NONE)
    step: np.ndarray | None = None
    level: np.ndarray | None = None


def lay_out(requests: Sequence[Request], spec: ModelSpec) -> Batch:
    """Lay out requests as a batch.

    Raises:
        ValueError: a code or phoneme outside its table, named with its sample.
    """
    tables, code_table = Tables(spec), CodeTable(spec)
    separator = np.array([tables.separator])
    rows: list[np.ndarray] = []
    segments: list[int] = []  # lengths of what positions are counted in
    codes: list[np.ndarray] = []
    widths: list[np.ndarray] = []
    kept, output, heads, targets, owners = [], [], [], [], []
    owner_head: list[int] = []
    lengths: list[int] = []
    frames = start = predictions = 0
    for at, request in enumerate(requests):
        sample = request.sample
        phones = tables.phonemes + _checked(sample.phone_ids(), spec.phoneme_tokens, "phoneme", at)
        language = tables.languages + _bounded(spec.language_row(sample.language), spec.langs, "language", at)
        quantiser = tables.levels + _bounded(request.level, spec.levels, "level", at)
        labels = np.array([language, tables.separator, quantiser, tables.separator])
        out = _output(request, spec, tables, code_table, at)
        if request.kind == "stt":
            spoken = tables.audio + frames + np.arange(len(out.widths))
            frames += len(spoken)
            codes.append(out.codes)
            widths.append(out.widths)
            pieces, sizes = [spoken, separator, labels, phones], [len(spoken) + 1, 2, 2, len(phones)]
        else:
            pieces, sizes = [phones, separator, labels], [len(phones) + 1, 2, 2]
            before = len(pieces)
            for part in sample.prompt_parts():
                if isinstance(part, str):
                    if part not in TASKS:
                        raise ValueError(
                            f"sample {at}: task in a prompt: expected one of {', '.join(TASKS)}, found {part!r}"
                        )
                    pieces.append(np.array([tables.tasks + TASKS[part]]))
                    continue
                prompt = code_table.prompt_rows(_codes(part, spec, at, "prompt", levels_read(request, spec)), request)
                pieces.append(tables.audio + frames + np.arange(len(prompt)))
                frames += len(prompt)
                codes.append(prompt.reshape(-1))
                widths.append(np.full(len(prompt), prompt.shape[1]))
            if len(pieces) > before:
                sizes.append(sum(map(len, pieces[before:])) + 1)
                pieces.append(separator)
            if sample.tone is not None:
                tone = tables.tones + _bounded(sample.tone, spec.tones, "tone", at)
                pieces.append(np.array([tone, tables.separator]))
                sizes.append(2)
            response = out.static
            if response is None:
                response = tables.audio + frames + np.arange(len(out.widths))
                frames += len(response)
                codes.append(out.codes)
                widths.append(out.widths)
            pieces.append(response)
            sizes.append(len(response))
        rows += pieces
        length = sum(sizes)
        segments += [length] if spec.unified_position_ids else sizes
        # An autoregressive state predicts the token behind it, the last separator the first token.
        first = start + length - sizes[-1] - (1 if request.causal else 0)
        count, step, target = len(out.target), out.step, out.target
        if not count and request.causal:  # to be continued: the last state predicts what nobody knows yet
            first, count, target = start + length - 1, 1, np.full(1, -1)
        states = count if step is None else int(step.max()) + 1
        kept.append(np.arange(first, first + states))
        output.append(predictions + (np.arange(count) if step is None else step))
        head = head_of(request, spec)
        heads.append(np.full(count, head) if out.level is None else out.level)
        owners.append(np.full(count, len(owner_head)) if out.level is None else len(owner_head) + out.level)
        owner_head += [head] if out.level is None else range(spec.levels)
        targets.append(target)
        predictions += states
        lengths.append(length)
        start += length
    counts = np.concatenate([*widths, _NONE])
    head_of_each = np.concatenate([*heads, _NONE])
    order = np.argsort(head_of_each, kind="stable")
    used = np.bincount(head_of_each)
    ends = np.cumsum(segments)
    return Batch(
        rows=_joined(rows),
        positions=torch.from_numpy(np.arange(start) - np.repeat(ends - segments, segments)),
        lengths=tuple(lengths),
        causal=tuple(r.causal or not spec.noncausal_masks for r in requests),
        codes=_joined(codes),
        frames=torch.from_numpy(np.cumsum(counts) - counts),
        kept=_joined(kept),
        heads=tuple((h, n) for h, n in enumerate(used.tolist()) if n),
        output=_joined(output)[order],
        target=_joined(targets)[order],
        owner=_joined(owners)[order],
        owner_head=torch.tensor(owner_head),
    )


def _joined(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([*arrays, _NONE]))


def _output(request: Request, spec: ModelSpec, tables: Tables, code_table: CodeTable, at: int) -> _Output:
    """What a request ends with."""
    sample = request.sample
    if request.kind == "len":
        if not request.stop:
            return _Output(tables.lengths + np.array(request.digits, np.int64))
        tokens = _NONE if sample.response is None else length_tokens(len(sample.response), spec)
        return _Output(tables.lengths + tokens, target=tokens)
    codes = np.zeros((0, spec.levels), np.int64)
    if sample.response is not None:
        codes = _codes(sample.response, spec, at, "response", levels_read(request, spec))
    if request.kind == "delay":
        return _delayed(codes, spec, code_table) if request.stop else _Output(_NONE)
    target = _NONE
    if request.kind == "stt":
        if not len(codes):
            raise ValueError(f"sample {at}: there is no response to transcribe")
        target = sample.phone_ids() if request.stop else target
    elif request.kind == "ar" and request.stop:
        end = np.zeros((1, spec.levels), np.int64)
        end[0, 0] = spec.stop
        codes = np.concatenate([codes, end])
        target = codes[:, 0]
    elif request.kind == "nar":
        if not 1 <= request.level < spec.levels:
            raise ValueError(f"sample {at}: NAR predicts levels 1 to {spec.levels - 1}, asked for {request.level}")
        target = codes[:, request.level]
    elif request.kind == "nar-len":
        masked = np.ones(len(codes), bool) if request.masked is None else np.asarray(request.masked, bool)
        target = np.where(masked, codes[:, 0], -1)
        codes = codes.copy()
        codes[masked, 0] = spec.stop
    looked_up = code_table.response_rows(codes, request)
    return _Output(codes=looked_up.reshape(-1), widths=np.full(len(codes), looked_up.shape[1]), target=target)


def _delayed(codes: np.ndarray, spec: ModelSpec, code_table: CodeTable) -> _Output:
    """All levels of codes [T, Q] behind each other, the stop token after the first level's last."""
    frames = len(codes)
    end = np.full((1, spec.levels), -1)
    end[0, 0] = spec.stop
    steps = max(frames + 1, frames + max(spec.offsets)) if frames else 1
    sequence = delay(frames + 1, spec.offsets).spread(np.concatenate([codes, end]), -1)[:steps]
    there = sequence >= 0
    step, level = there.nonzero()
    # The last step is predicted, and not read.
    return _Output(
        codes=(sequence + code_table.delayed)[:-1][there[:-1]],
        widths=there[:-1].sum(1),
        target=sequence[there],
        step=step,
        level=level,
    )


def levels_read(request: Request, spec: ModelSpec) -> int:
    """How many levels of prompt and response a request reads."""
    return spec.levels if request.kind == "delay" else max(1, request.level)


def _codes(codes: np.ndarray, spec: ModelSpec, at: int, what: str, levels: int) -> np.ndarray:
    """Codes as int64 [T, Q], checked; levels above those that are read may be missing, and are zero then."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] > spec.levels or codes.dtype.kind not in "iu":
        raise ValueError(
            f"sample {at}: {what}: expected integer codes [frames, {spec.levels}], found {codes.dtype} of shape "
            f"{list(codes.shape)}"
        )
    if codes.shape[1] < levels:
        raise ValueError(f"sample {at}: {what}: {levels} levels are read here, and it has {codes.shape[1]}")
    codes = _checked(codes.astype(np.int64), spec.audio_tokens, "audio code", at)
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
