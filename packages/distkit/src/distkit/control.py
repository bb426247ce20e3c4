"""The control group: words between ranks that never wait for a GPU nor mix with the gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from distkit.ranks import is_distributed

DEFAULT_TIMEOUT = 1800.0  # seconds

in_leader_section: ContextVar[str | None] = ContextVar("distkit_leader_section", default=None)
_group: Any = None
_of: Any = None  # the default group `_group` was made beside
_timeout = DEFAULT_TIMEOUT


class CollectiveError(RuntimeError):
    """The ranks did not come together: one died, is late, or called something else."""


class LeaderOnlyError(RuntimeError):
    """A collective was called where only the leader runs, and would have waited for ever."""


def open_control(timeout: float) -> None:
    """Make the control group. Collective; a session does it."""
    global _group, _of, _timeout
    _timeout = timeout
    _of = dist.group.WORLD
    _group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))


def close_control() -> None:
    global _group, _of
    _group, _of = None, None


def control_group() -> Any:
    """The control group, made on first use where the process group is not a session's."""
    if _group is None or _of is not dist.group.WORLD:
        open_control(_timeout)
    return _group


@contextmanager
def collective(name: str) -> Iterator[Any]:
    """Around every collective: refuses inside a leader-only section, and says who failed at what.

    Yields the control group.
    """
    section = in_leader_section.get()
    if section is not None and is_distributed():
        raise LeaderOnlyError(
            f"{name}() was called inside {section}, which runs on the leader alone: the other ranks would "
            "never answer. Call it outside, on every rank"
        )
    try:
        yield control_group()
    except RuntimeError as e:
        if isinstance(e, CollectiveError | LeaderOnlyError):
            raise
        raise CollectiveError(
            f"{name}() failed on rank {dist.get_rank()} of {dist.get_world_size()}: another rank died, "
            f"did not call it within {_timeout:g} s, or called something else ({e})"
        ) from e


def barrier(timeout: float | None = None) -> None:
    """Wait until every rank is here.

    Args:
        timeout: seconds; the session's by default.

    Raises:
        CollectiveError: not all came in time. Rank 0 names those that did not; the others are told only
            that rank 0 gave up.
    """
    if not is_distributed():
        return
    seconds = _timeout if timeout is None else timeout
    with collective("barrier") as group:
        try:
            dist.monitored_barrier(group, timedelta(seconds=seconds), wait_all_ranks=True)
        except RuntimeError as e:
            late = re.search(r"Ranks? ([\d, ]+?) failed to pass", str(e))
            if dist.get_rank() == 0 and late:
                raise CollectiveError(
                    f"barrier: rank {late[1].strip(' ,')} of {dist.get_world_size()} did not arrive within "
                    f"{seconds:g} s"
                ) from e
            raise CollectiveError(
                f"barrier: rank 0 did not let rank {dist.get_rank()} pass within {seconds:g} s; a rank is "
                "late or dead, rank 0's error names it"
            ) from e
