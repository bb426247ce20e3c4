"""Which utterances of a speaker sound most alike, for prompts that match what is spoken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def most_similar(codes: Sequence[np.ndarray], entries: int, count: int) -> list[list[int]]:
    """For each of a speaker's utterances the indices of the `count` others that sound most like it, nearest first.

    Two utterances are as alike as the cosine of how often each uses the codes of the first two levels, counts damped
    by a square root: no codec and no speaker model is needed.

    Args:
        codes: integers [T, levels] of each utterance.
        entries: codes in a codebook.
    """
    levels = min(2, codes[0].shape[1]) if codes else 0
    bags = np.zeros((len(codes), levels * entries), np.float32)
    for bag, c in zip(bags, codes, strict=True):
        for level in range(levels):
            bag[level * entries : (level + 1) * entries] = np.bincount(c[:, level], minlength=entries)[:entries]
    bags = np.sqrt(bags)
    bags /= np.linalg.norm(bags, axis=1, keepdims=True).clip(1e-9)
    nearness = bags @ bags.T
    np.fill_diagonal(nearness, -np.inf)
    order = np.argsort(-nearness, axis=1, kind="stable")
    return [row[: min(count, len(codes) - 1)].tolist() for row in order]
