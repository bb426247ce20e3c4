"""Seeds that differ between ranks."""

from __future__ import annotations

import hashlib
import random
import sys

import torch

from distkit.ranks import rank as this_rank


def seed_all(seed: int, rank: int | None = None) -> int:
    """Seed python, numpy (where it is loaded) and torch with a seed of this rank's own; returns it.

    It is derived by hash: with addition, rank 1 of seed 0 would be rank 0 of seed 1, and two runs with
    neighbouring seeds would share most of their random numbers.

    Args:
        seed: the run's seed.
        rank: of this process; asked from `rank()` when None.
    """
    rank = this_rank() if rank is None else rank
    digest = hashlib.sha256(f"distkit/{seed}/{rank}".encode()).digest()
    derived = int.from_bytes(digest[:4], "little")  # numpy takes 32 bits
    random.seed(derived)
    torch.manual_seed(derived)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(derived)
    return derived
