"""Decoding with a delay between levels: every step predicts a code of each level, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from vall_e.model.model import VallE
from vall_e.model.sampling import Sampling, guided
from vall_e.model.sequence import Request, Sample, lay_out


@torch.inference_mode()
def decode(
    model: VallE,
    samples: Sequence[Sample],
    limits: Sequence[int],
    sampling: Sampling,
    generator: torch.Generator,
    null_of: Callable[[Sample], Sample] | None = None,
    rescale: float = 0.75,
    strength: float = 1.0,
    on_frame: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Codes [T, Q] for each sample, all samples together; a finished one leaves the batch.

    Args:
        samples: without responses.
        limits: frames of each sample at most.
        sampling: of all levels.
        null_of: the unconditioned twin of a sample, for classifier-free guidance; None for none.
        strength, rescale: of the guidance.
        on_frame: called with the number of frames begun after each step.
    """
    spec, count, device = model.spec, len(samples), model.device
    offsets = spec.offsets
    requests = [Request(s, "delay", stop=False) for s in samples]
    if null_of is not None:
        requests += [Request(null_of(s), "delay", stop=False) for s in samples]
    batch = lay_out(requests, spec).to(device)
    most = max(limits)
    growth = model.begin(batch, most + max(offsets) + 1)
    place = torch.tensor(batch.lengths, device=device)[:, None]
    if not spec.unified_position_ids:
        place = torch.zeros_like(place)
    results = [np.zeros((0, spec.levels), np.int64)] * count
    alive = torch.arange(count, device=device)
    codes = torch.zeros(count, most + max(offsets) + 1, spec.levels, dtype=torch.long, device=device)
    frames = torch.tensor(list(limits), device=device)  # of each sample, as far as is known
    surprise = [sampling.surprise(count, growth.state) for _ in offsets]
    for step in range(most + max(offsets) + 1):
        there = torch.zeros(len(alive), spec.levels, dtype=torch.bool, device=device)
        for level, offset in enumerate(offsets):
            frame = step - offset
            if frame < 0 or (frame > frames).all():
                continue
            logits = model.project(growth.state, level).float()
            if null_of is not None:
                logits = guided(logits[: len(alive)], logits[len(alive) :], strength, rescale)
            stop = None if level else spec.stop
            token = sampling.draw(logits, generator, codes[:, :frame, level], stop=stop, surprise=surprise[level])
            if level:
                there[:, level] = frame < frames
            else:
                ended = (frame < frames) & (token == spec.stop)
                frames = torch.where(ended, frame, frames)
                token = torch.where(frame == frames, spec.stop, token)  # also where the limit ends it
                there[:, level] = frame <= frames
            codes[:, frame, level] = token
        done = (step >= frames) & (step >= frames - 1 + max(offsets)) | (frames == 0)
        for i in done.nonzero().flatten().tolist():
            results[alive[i]] = codes[i, : int(frames[i])].cpu().numpy()
        if done.any():
            left = (~done).nonzero().flatten()
            if not len(left):
                break
            both = left if null_of is None else torch.cat([left, left + len(alive)])
            growth.keep(both)
            alive, codes, frames, there, place = alive[left], codes[left], frames[left], there[left], place[both]
            surprise = [s if s is None else s[left] for s in surprise]
        if on_frame is not None:
            on_frame(min(step + 1, most))
        x = _embedded(model, codes, there, step)
        growth.read((x if null_of is None else torch.cat([x, x]))[:, None], place)
        place = place + 1
    return results


def _embedded(model: VallE, codes: Tensor, there: Tensor, step: int) -> Tensor:
    """The embeddings [B, D] of a step: the sum over the levels that have a code there, of codes [B, T, Q]."""
    x = model.sep.new_zeros(len(codes), model.spec.dim)
    for level, offset in enumerate(model.spec.offsets):
        if step >= offset:
            code = codes[:, step - offset, level].where(there[:, level], 0)
            x = x + model.resps_emb.embeddings[level](code) * there[:, level, None]
    return x
