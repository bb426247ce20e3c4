"""The random state of this process, and how to seed it."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_everything(seed: int, rank: int = 0) -> int:
    """Seed python, numpy (where it is loaded) and torch, and return the seed used.

    The seed is derived by hash, so that rank 1 of seed 0 is not rank 0 of seed 1.
    """
    digest = hashlib.sha256(f"{seed}/{rank}".encode()).digest()
    derived = int.from_bytes(digest[:4], "little")
    random.seed(derived)
    torch.manual_seed(derived)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(derived)
    return derived


def rng_state() -> dict[str, Any]:
    """The state of python's, numpy's and torch's global generators, CUDA included, as plain values."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = [kind, [int(k) for k in keys], int(position), int(has_gauss), float(cached)]
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned. CUDA states are put back when as many devices are there."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        import numpy

        kind, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))


@contextmanager
def rng_untouched() -> Iterator[None]:
    """Run a block without it moving the random state: what evaluation and export do."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
