"""Decoding: level 0 autoregressively or by demasking, the levels above it in one pass each."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vall_e.model.model import VallE
from vall_e.model.sampling import Sampling, guided
from vall_e.model.sequence import Batch, Request, Sample, head_of, lay_out
from vall_e.model.spec import LENGTH_DIGITS

_MODALITIES = ("ar", "ar+nar", "nar-len", "delay")
_OTHERS = ("nar_temperature", "beam_width", "cfg_strength", "cfg_rescale", "steps", "seed", "max_frames", "frames")
"""Options of `generate` beside those of `Sampling`."""
_NULL_PHONES = np.array([1, 2])  # <s> and </s>


@torch.inference_mode()
def generate(
    model: VallE,
    samples: Sequence[Sample],
    modality: str | None = None,
    *,
    max_frames: int | Sequence[int] = 500,
    frames: int | Sequence[int] | None = None,
    nar_temperature: float = 0.0,
    beam_width: int = 0,
    cfg_strength: float = 1.0,
    cfg_rescale: float = 0.75,
    steps: int = 25,
    seed: int = 0,
    on_frame: Callable[[int], None] | None = None,
    **sampling: Any,
) -> list[np.ndarray]:
    """Generate codes for each sample.

    Args:
        samples: their `response`, when given, is continued (`ar`) or refined (`ar+nar`: level 0 is continued).
        modality: `ar` gives level 0 alone, `ar+nar` all levels, `nar-len` all levels without the AR passes, `delay` all
            levels one behind the other, by a model made for it; None for what the model is made for.
        max_frames: autoregressive decoding stops here when the model has not; one for all, or one a sample.
        frames: the length of each sample for `nar-len`; without it the model's `len` task predicts them.
        nar_temperature: for the levels above 0; with `delay` they are drawn as level 0 is.
        beam_width: above 1, level 0 is the most likely sequence that a beam of this width finds; nothing is drawn.
        cfg_strength: classifier-free guidance; 1 for none.
        cfg_rescale: how far guided logits are scaled back to the spread of the conditioned ones, 0 to 1.
        steps: demasking steps of `nar-len`.
        seed: the same seed gives the same codes.
        on_frame: called with the number of frames after each autoregressive step.
        sampling: fields of `Sampling`, for level 0: temperature, top_k, top_p, …

    Returns:
        Integer codes [T, 1] for `ar`, else [T, levels], a sample each.

    Raises:
        ValueError: an option is out of range or unknown.
    """
    modality = model.spec.modality if modality is None else modality
    if modality not in _MODALITIES:
        raise ValueError(f"modality: expected one of {', '.join(_MODALITIES)}, found {modality!r}")
    if (modality == "delay") != bool(model.spec.delay):
        raise ValueError(f"modality: this model is made for {model.spec.modality}, not for {modality}")
    if modality == "delay" and (beam_width > 1 or any(s.response is not None for s in samples)):
        raise ValueError("modality delay: neither beam search nor the continuation of a response is possible")
    if not samples:
        return []
    _check(cfg_strength, cfg_rescale, steps, beam_width)
    chosen = sampling_of(sampling)
    limits = _one_each("max_frames", max_frames, len(samples))
    was_training = model.training
    model.eval()
    try:
        generator = torch.Generator(model.device).manual_seed(seed)
        if modality == "nar-len":
            if frames is None:
                frames = [min(n, limit) for n, limit in zip(lengths(model, samples), limits, strict=True)]
            frames = _one_each("frames", frames, len(samples))
            codes = [
                _demask(model, sample, n, steps, max(cfg_strength, 2.5), cfg_rescale, chosen, generator)
                for sample, n in zip(samples, frames, strict=True)
            ]
        elif modality == "delay":
            from vall_e.model import delayed

            null = null_of if cfg_strength != 1 else None
            return delayed.decode(model, samples, limits, chosen, generator, null, cfg_rescale, cfg_strength, on_frame)
        elif beam_width > 1:
            from vall_e.model.beam import beam_search

            codes = [
                beam_search(model, s, n, beam_width, chosen, cfg_strength, cfg_rescale)
                for s, n in zip(samples, limits, strict=True)
            ]
        else:
            codes = [np.zeros((0, 1), np.int64)] * len(samples)
            for drawn in autoregress(model, samples, limits, chosen, generator, codes, cfg_strength, cfg_rescale):
                if on_frame:
                    on_frame(drawn.shape[1])
        if modality == "ar":
            return codes
        strength = max(cfg_strength, 2.5) if modality == "nar-len" else 1.0
        return refine(model, samples, codes, Sampling(nar_temperature), generator, strength, cfg_rescale)
    finally:
        model.train(was_training)


def _check(cfg_strength: float, cfg_rescale: float, steps: int, beam_width: int) -> None:
    for name, value, expected, right in (
        ("cfg_strength", cfg_strength, "a number", math.isfinite(cfg_strength)),
        ("cfg_rescale", cfg_rescale, "0 to 1", 0 <= cfg_rescale <= 1),
        ("steps", steps, "1 or more", steps >= 1),
        ("beam_width", beam_width, "0 or more", beam_width >= 0),
    ):
        if not right:
            raise ValueError(f"{name}: expected {expected}, found {value}")


def _one_each(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """A number for each sample, from one for all or one each."""
    values = [int(value)] * count if isinstance(value, Integral) else [int(v) for v in value]
    if len(values) != count or min(values) < 0:
        raise ValueError(f"{name}: expected a number of 0 or more, or one for each of {count} samples, found {value}")
    return values


def sampling_of(options: dict[str, Any]) -> Sampling:
    """`Sampling` from options by name.

    Raises:
        ValueError: one is unknown or out of range.
    """
    known = [f.name for f in fields(Sampling)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, *_OTHERS], n=1)
            hint = f"; did you mean {close[0]}?" if close else f" (known: {', '.join([*known, *_OTHERS])})"
            raise ValueError(f"unknown option of the synthesis: {name}{hint}")
    return Sampling(**options)


@torch.inference_mode()
def lengths(model: VallE, samples: Sequence[Sample], most: int = 99_999) -> list[int]:
    """The number of frames that the `len` task predicts for each sample, digit by digit; at least 1.

    A number that is not ended by the stop token after five digits is cut there, so no length is absurd.
    """
    found = []
    for sample in samples:
        digits: list[int] = []
        while len(digits) < len(str(most)):
            # The start token, then the digits so far, as a response in the making.
            batch = lay_out([Request(sample, "len", stop=False, digits=(0, *digits))], model.spec).to(model.device)
            (logits,) = model.batch_logits(batch)
            token = int(logits[-1].argmax())
            if token >= LENGTH_DIGITS - 1:
                break
            digits.append(token)
        number = int("".join(map(str, digits)) or 0) - model.spec.length_offset
        found.append(max(1, number))
    return found


@torch.inference_mode()
def transcribe(
    model: VallE, samples: Sequence[Sample], most: int = 500, *, start: int = 1, end: int = 2
) -> list[np.ndarray]:
    """The phonemes that the `stt` task hears in each sample's response, the most likely one after the other.

    Args:
        most: phonemes of each at most.
        start, end: ids of the tokens around a text.

    Returns:
        Phoneme ids [N] without those two, a sample each.
    """
    spec, found = model.spec, []
    for sample in samples:
        request = Request(replace(sample, phones=[]), "stt", stop=False)
        batch = lay_out([request], spec).to(model.device)
        growth = model.begin(batch, most + 2)
        position = torch.full((1, 1), batch.lengths[0] if spec.unified_position_ids else 0, device=model.device)
        ids: list[int] = []
        while len(ids) < most + 2:
            token = model.project(growth.state, head_of(request, spec)).argmax(-1)
            if int(token) == end:
                break
            ids.append(int(token))
            growth.read(model.text_emb(token)[:, None], position)
            position = position + 1
        found.append(np.array(ids[1:] if ids[:1] == [start] else ids, np.int64))
    return found


def null_of(sample: Sample) -> Sample:
    """The unconditioned sample of classifier-free guidance: no phonemes, no prompt, the language kept."""
    return Sample(_NULL_PHONES, None, sample.response, sample.language)


def autoregress(
    model: VallE,
    samples: Sequence[Sample],
    limits: Sequence[int],
    sampling: Sampling,
    generator: torch.Generator,
    results: list[np.ndarray],
    strength: float = 1.0,
    rescale: float = 0.75,
) -> Iterator[Tensor]:
    """Level 0, one token a step for all samples together; a finished one leaves the batch.

    Args:
        limits: frames of each sample at most.
        results: takes the codes [T, 1] of each sample when it is finished.

    Yields:
        The tokens [rows, frames] of the samples that go on, after each step.
    """
    spec, count = model.spec, len(samples)
    guide = strength != 1
    requests = [Request(s, "ar", stop=False) for s in samples]
    if guide:  # the conditioned samples, then their null twins, in one batch
        requests += [Request(null_of(s), "ar", stop=False) for s in samples]
    batch = lay_out(requests, spec).to(model.device)
    growth = model.begin(batch, max(limits) + 1)
    position = first_positions(model, batch, requests)
    table = model.resps_emb.embeddings[0]
    alive = torch.arange(count, device=model.device)
    drawn = torch.zeros(count, 0, dtype=torch.long, device=model.device)
    budget = torch.tensor(list(limits), device=model.device)
    surprise = sampling.surprise(count, growth.state)
    while True:
        logits = model.project(growth.state, 0).float()
        if guide:
            logits = guided(logits[: len(alive)], logits[len(alive) :], strength, rescale)
        token = sampling.draw(logits, generator, drawn, stop=spec.stop, surprise=surprise)
        ended = (token == spec.stop) | (drawn.shape[1] >= budget[alive])
        for i in ended.nonzero().flatten().tolist():
            before = samples[alive[i]].response
            new = drawn[i].cpu().numpy()[:, None]
            results[alive[i]] = new if before is None else np.concatenate([np.asarray(before)[:, :1], new])
        drawn = torch.cat([drawn, token[:, None]], 1)
        if ended.any():
            keep = (~ended).nonzero().flatten()
            if not len(keep):
                return
            both = torch.cat([keep, keep + len(alive)]) if guide else keep
            growth.keep(both)
            alive, drawn, token = alive[keep], drawn[keep], token[keep]
            surprise = surprise[keep] if surprise is not None else None
            position = position[both]
        yield drawn
        step = table(torch.cat([token, token]) if guide else token)[:, None]
        growth.read(step, position)
        position = position + 1


def first_positions(model: VallE, batch: Batch, requests: Sequence[Request]) -> Tensor:
    """The positions [B, 1] of the first frames that autoregressive requests go on with."""
    if model.spec.unified_position_ids:
        return torch.tensor(batch.lengths, device=model.device)[:, None]
    held = [0 if r.sample.response is None else len(r.sample.response) for r in requests]
    return torch.tensor(held, device=model.device)[:, None]


def refine(
    model: VallE,
    samples: Sequence[Sample],
    codes: Sequence[np.ndarray],
    sampling: Sampling,
    generator: torch.Generator,
    strength: float = 1.0,
    rescale: float = 0.75,
) -> list[np.ndarray]:
    """Levels 1 and up for codes [T, 1] of level 0, all samples in one pass a level."""
    codes = [np.asarray(c)[:, :1] for c in codes]
    speaking = [i for i, c in enumerate(codes) if len(c)]
    results = [np.zeros((0, model.spec.levels), np.int64)] * len(codes)
    current = [codes[i] for i in speaking]
    for level in range(1, model.spec.levels if speaking else 1):
        full = [s.with_response(c) for s, c in zip((samples[i] for i in speaking), current, strict=True)]
        logits = _nar_logits(model, full, level, strength, rescale)
        current = [
            np.concatenate([c, sampling.draw(z, generator).cpu().numpy()[:, None]], 1)
            for c, z in zip(current, logits, strict=True)
        ]
    for i, c in zip(speaking, current, strict=True):
        results[i] = c
    return results


def _nar_logits(model: VallE, samples: list[Sample], level: int, strength: float, rescale: float) -> list[Tensor]:
    if strength == 1:
        return model.logits(samples, level=level)
    both = model.logits([*samples, *(null_of(s) for s in samples)], level=level)  # one pass for the pairs
    return [guided(p, n, strength, rescale) for p, n in zip(both[: len(samples)], both[len(samples) :], strict=True)]


def _demask(
    model: VallE,
    sample: Sample,
    frames: int,
    steps: int,
    strength: float,
    rescale: float,
    sampling: Sampling,
    generator: torch.Generator,
) -> np.ndarray:
    """Level 0 without autoregression: all frames masked at first, the least certain ones drawn anew each step.

    The schedule is MaskGIT's cosine (Chang et al., 2022, arXiv 2202.04200).
    """
    codes = np.zeros((frames, 1), np.int64)
    if not frames:
        return codes
    scores = torch.ones(frames, device=model.device)
    for step, t in enumerate(torch.linspace(0, 1, steps).tolist()):
        count = int(np.clip(int(math.cos(t * math.pi / 2) * frames), 1, frames - step)) if step < frames else 1
        masked = np.zeros(frames, bool)
        masked[scores.topk(count, largest=False).indices.cpu().numpy()] = True
        requests = [Request(s.with_response(codes), "nar-len", masked=masked) for s in (sample, null_of(sample))]
        batch = lay_out(requests, model.spec).to(model.device)
        (logits,) = model.batch_logits(batch)
        logits = guided(logits[:frames], logits[frames:], strength, rescale)
        token = sampling.draw(logits, generator)
        scores = logits.softmax(-1).amax(-1)
        codes = np.where(masked[:, None], token.cpu().numpy()[:, None], codes)
    return codes
