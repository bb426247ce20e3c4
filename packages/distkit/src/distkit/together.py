"""One rank's failure becomes everybody's, instead of everybody's wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distkit.ranks import is_distributed
from distkit.words import gather_objects


class RankFailed(RuntimeError):
    """Another rank raised. `rank` is the first that did; the message is its message."""

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(f"rank {rank} failed: {message}")
        self.rank = rank


@contextmanager
def raise_together() -> Iterator[None]:
    """Run a block that every rank enters. When one rank raises in it, all do.

    The block must hold no collective of its own that a failing rank would leave the others waiting in.

    Raises:
        RankFailed: on every rank, the failing ones too (theirs is chained to their own exception), with
            the message of the lowest failing rank.
    """
    if not is_distributed():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as e:
        error = e
    messages = gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    for rank, message in enumerate(messages):
        if message is not None:
            raise RankFailed(rank, message) from error
