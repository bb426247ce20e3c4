"""A place to meet that no earlier attempt of the same launch has written to.

torchrun keeps one store for the ranks over all its restarts (torch 2.5 and later), with the addresses of the
dead in it: a restarted rank that looks before its peer has overwritten its old address connects to nobody, and
the attempt fails (https://github.com/pytorch/pytorch/issues/135712). `TORCHELASTIC_RESTART_COUNT` does not
tell attempts apart, it is counted by each machine for itself.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

import torch.distributed as dist

_POLL = 0.01  # seconds


def fresh_store(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The part of `store` that the ranks of this attempt have to themselves. Collective.

    Every rank calls with a word never used before; rank 0 answers under that very word with the name of the
    part, so that nothing an earlier attempt left can be taken for an answer, and asks until all have it.

    Raises:
        TimeoutError: a rank did not come.
    """
    end = time.monotonic() + timeout.total_seconds()
    if rank != 0:
        word = secrets.token_hex(8)
        store.set(f"distkit/call/{rank}", word)
        _wait(store, f"distkit/answer/{word}", end, "rank 0")
        name = store.get(f"distkit/answer/{word}").decode()
        store.set(f"{name}/heard/{rank}", b"")
        return dist.PrefixStore(name, store)
    name = f"distkit/attempt/{secrets.token_hex(8)}"
    deaf = set(range(1, world_size))
    while deaf:
        for other in sorted(deaf):
            if store.check([f"distkit/call/{other}"]):
                word = store.get(f"distkit/call/{other}").decode()
                store.set(f"distkit/answer/{word}", name)
            if store.check([f"{name}/heard/{other}"]):
                deaf.discard(other)
        if deaf:
            _pause(end, f"rank {', '.join(map(str, sorted(deaf)))}")
    return dist.PrefixStore(name, store)


def _wait(store: dist.Store, key: str, end: float, whom: str) -> None:
    while not store.check([key]):
        _pause(end, whom)


def _pause(end: float, whom: str) -> None:
    if time.monotonic() > end:
        raise TimeoutError(f"{whom} did not come to the store in time: it died, or was never started")
    time.sleep(_POLL)
