"""What the ranks of a run tell each other, apart from gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class RanksFailed(RuntimeError):
    """Another rank failed; carries its number and its message."""


class Comm:
    """A control channel over the ranks of `torch.distributed`; nothing at all on one process.

    It has its own gloo group, so a control word never waits for the GPU and never mixes with the
    gradients' collectives. Construct it on every rank.

    Args:
        timeout: seconds after which a rank that does not arrive is an error.
    """

    def __init__(self, timeout: float = 1800.0) -> None:
        self._group = None
        self.rank, self.world_size = 0, 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over the ranks, in float64."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        return tensor.tolist()

    def max(self, values: Sequence[float]) -> list[float]:
        """Elementwise maximum over the ranks."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return tensor.tolist()

    def broadcast(self, value: Any, src: int = 0) -> Any:
        """`value` of rank `src`, on every rank."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=src, group=self._group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        if self._group is None:
            return [value]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value, group=self._group)
        return box

    def barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)

    def close(self) -> None:
        """Give the group back. Not collective, so it is safe after a failure."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """Run a block that every rank enters; when one fails, all raise.

        Raises:
            RanksFailed: on the ranks whose own block succeeded, with the first failure's message.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as e:
            error = e
        if self._group is None:
            if error is not None:
                raise error
            return
        messages = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RanksFailed(f"rank {rank} failed while {doing}: {message}")
