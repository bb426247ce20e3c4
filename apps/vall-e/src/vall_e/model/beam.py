"""Beam search over level 0: the most likely sequence that a beam of some width finds."""

from __future__ import annotations

import numpy as np
import torch
from vall_e.model.generate import first_positions, null_of
from vall_e.model.model import VallE
from vall_e.model.sampling import Sampling, guided
from vall_e.model.sequence import Request, Sample, lay_out


@torch.inference_mode()
def beam_search(
    model: VallE,
    sample: Sample,
    max_frames: int,
    width: int,
    sampling: Sampling,
    strength: float = 1.0,
    rescale: float = 0.75,
) -> np.ndarray:
    """The codes [T, 1] whose mean log-probability a frame, the stop token counted, is largest.

    A sequence ends where stopping is among the `width` most likely ways to go on from all that are kept.

    Args:
        sample: its response, when given, is continued.
        max_frames: a sequence that has not stopped by then is taken as it is.
        width: sequences kept after each step.
        sampling: its penalties apply; nothing is drawn.
        strength, rescale: of classifier-free guidance; 1 for none.
    """
    spec, guide = model.spec, strength != 1
    requests = [Request(s, "ar", stop=False) for s in ((sample, null_of(sample)) if guide else (sample,))]
    batch = lay_out(requests, spec).to(model.device)
    growth = model.begin(batch, max_frames + 1, branching=True)
    position = first_positions(model, batch, requests)
    beams = torch.zeros(1, 0, dtype=torch.long, device=model.device)
    scores = torch.zeros(1, device=model.device)
    best, best_score = None, -torch.inf
    for frame in range(max_frames):
        logits = model.project(growth.state, 0).float()
        if guide:
            logits = guided(*logits.chunk(2), strength, rescale)
        total = scores[:, None] + sampling.penalised(logits, beams, spec.stop).log_softmax(-1)  # beams, classes
        # At most one way to stop for each beam, so as many more leave `width` that go on.
        values, index = total.flatten().topk(min(width + len(total), total.numel()))
        parent, token = index // total.shape[1], index % total.shape[1]
        ends = token == spec.stop
        for place in ends[:width].nonzero().flatten().tolist():
            if float(values[place]) / (frame + 1) > best_score:
                best, best_score = beams[parent[place]], float(values[place]) / (frame + 1)
        scores, parent, token = (x[~ends][:width] for x in (values, parent, token))
        # Scores only fall: no sequence that goes on can end above the best one found, even at full length.
        if not len(scores) or float(scores[0]) / (max_frames + 1) < best_score:
            break
        both = torch.cat([parent, parent + len(beams)]) if guide else parent
        growth.keep(both)
        position = position[both] + (1 if frame else 0)
        beams = torch.cat([beams[parent], token[:, None]], 1)
        step = model.resps_emb.embeddings[0](torch.cat([token, token]) if guide else token)[:, None]
        growth.read(step, position)
    found = (beams[0] if best is None else best).cpu().numpy()[:, None]
    return found if sample.response is None else np.concatenate([np.asarray(sample.response)[:, :1], found])
