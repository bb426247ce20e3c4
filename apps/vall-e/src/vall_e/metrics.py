"""How close speech is to a recording: mel-STFT loss, warped spectral distance, and intelligibility."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vall_e.codecs import mel

_STEP = 2  # mel frames between those compared: 21 ms


@cache
def _mel_stft_loss():
    from auraloss.freq import MelSTFTLoss

    return MelSTFTLoss(mel.SAMPLE_RATE)


def mel_stft(speech: np.ndarray, target: np.ndarray) -> float:
    """auraloss' MelSTFTLoss between samples [T] and [S] at 24 kHz; the longer one is cut."""
    length = min(len(speech), len(target))
    if length < mel.N_FFT:
        return float("nan")
    pair = [torch.from_numpy(np.ascontiguousarray(x[:length])).view(1, 1, -1) for x in (speech, target)]
    with torch.no_grad():
        return float(_mel_stft_loss()(*pair))


def frames(samples: np.ndarray) -> np.ndarray:
    """The log-mel frames [F, 100] that are compared, 46.9 a second."""
    if not len(samples):
        samples = np.zeros(mel.N_FFT, np.float32)
    return mel.log_mel(torch.from_numpy(np.ascontiguousarray(samples)))[::_STEP].numpy()


def warped_distances(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Dynamic-time-warped distance of every a[i] [F, C] to every b[j] [G, C]: [len(a), len(b)].

    The distance of two frames is the root mean square over bands; a path costs the sum of its frames, divided
    by half of F + G. Steps go one frame ahead in a, in b or in both.
    """
    # All pairs together, one anti-diagonal of the cost matrix a step; cells outside a pair are infinite.
    rows, columns = max(map(len, a)), max(map(len, b))
    cost = np.full((len(a), len(b), rows, columns), np.inf, np.float32)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            cost[i, j, : len(x), : len(y)] = _frame_distances(x, y)
    total = _accumulate(cost)
    result = np.empty((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i, j] = total[i, j, len(x) - 1, len(y) - 1] * 2 / (len(x) + len(y))
    return result


def _frame_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    square = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.sqrt(np.maximum(square, 0) / x.shape[1])


def _accumulate(cost: np.ndarray) -> np.ndarray:
    """The cheapest path's cost to each cell of cost [..., F, G]."""
    rows, columns = cost.shape[-2:]
    total = np.full((*cost.shape[:-2], rows + 1, columns + 1), np.inf, np.float32)
    total[..., 0, 0] = 0
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        best = np.minimum(np.minimum(total[..., i, j], total[..., i, j + 1]), total[..., i + 1, j])
        total[..., i + 1, j + 1] = cost[..., i, j] + best
    return total[..., 1:, 1:]


def aligned(speech: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`speech` warped onto the time of `target`: samples about as long as the target.

    Its mel frames are laid along the warping path and turned back into samples by Griffin-Lim, which itself
    costs about 0.03 of STOI.
    """
    x, y = (mel.log_mel(torch.from_numpy(np.ascontiguousarray(s))) for s in (speech, target))
    total = _accumulate(_frame_distances(x.numpy(), y.numpy()))
    i, j = len(x) - 1, len(y) - 1
    source = np.zeros(len(y), int)
    while True:
        source[j] = i
        if i == 0 and j == 0:
            break
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min((s for s in steps if min(s) >= 0), key=lambda s: total[s])
    return _griffin_lim(x[torch.from_numpy(source)])


def _griffin_lim(frames: Tensor) -> np.ndarray:
    return mel.griffin_lim(frames).numpy()


def aligned_stoi(speech: np.ndarray, target: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al., 2011) of speech warped onto its target, -1 to 1."""
    from pystoi import stoi

    if len(speech) < mel.N_FFT or len(target) < mel.N_FFT:
        return float("nan")
    warped = aligned(speech, target)
    length = min(len(warped), len(target))
    return float(stoi(target[:length], warped[:length], mel.SAMPLE_RATE))
