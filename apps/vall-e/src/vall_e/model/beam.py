"""Beam search over level 0: the most likely sequence that a beam of some width finds."""

from __future__ import annotations

import numpy as np
import torch
from vall_e.model.model import VallE
from vall_e.model.sampling import Sampling
from vall_e.model.sequence import Request, Sample, lay_out


@torch.inference_mode()
def beam_search(model: VallE, sample: Sample, max_frames: int, width: int, sampling: Sampling) -> np.ndarray:
    """The codes [T, 1] whose mean log-probability a frame, the stop token counted, is largest.

    Args:
        sample: without a response.
        max_frames: a sequence that has not stopped by then is taken as it is.
        width: sequences kept after each step.
        sampling: its penalties apply; nothing is drawn.
    """
    spec = model.spec
    batch = lay_out([Request(sample.with_response(None), "ar", stop=False)], spec).to(model.device)
    growth = model.begin(batch, max_frames + 1, branching=True)
    offset = int(batch.positions[-1]) + 1 if spec.unified_position_ids else 0
    beams = torch.zeros(1, 0, dtype=torch.long, device=model.device)
    scores = torch.zeros(1, device=model.device)
    best, best_score = np.zeros((0, 1), np.int64), -torch.inf
    for frame in range(max_frames + 1):
        logits = sampling.penalised(model.project(growth.state, 0).float(), beams, spec.stop)
        total = scores[:, None] + logits.log_softmax(-1)  # beams, classes
        stopped = total[:, spec.stop] / (frame + 1)
        if float(stopped.max()) > best_score:
            best_score = float(stopped.max())
            best = beams[int(stopped.argmax())].cpu().numpy()[:, None]
        if frame == max_frames:
            break
        total[:, spec.stop] = -torch.inf
        scores, index = total.flatten().topk(min(width, total.numel() - len(total)))
        parent, token = index // total.shape[1], index % total.shape[1]
        # Scores only fall: no sequence that goes on can end above the best one found, even at full length.
        if float(scores[0]) / (max_frames + 1) < best_score:
            break
        growth.keep(parent)
        beams = torch.cat([beams[parent], token[:, None]], 1)
        step = model.resps_emb.embeddings[0](token)[:, None]
        position = torch.full((len(token), 1), offset + frame, device=model.device)
        growth.read(step, position)
    if not len(best) and beams.shape[1] and best_score == -torch.inf:
        best = beams[0].cpu().numpy()[:, None]
    return best
