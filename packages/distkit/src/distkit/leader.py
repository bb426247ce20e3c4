"""Work for one rank: alone, or before the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from distkit.control import in_leader_section
from distkit.ranks import is_distributed, is_leader, is_local_leader
from distkit.together import RankFailed
from distkit.words import gather_objects

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D")
Scope = Literal["global", "local"]


def leads(scope: Scope) -> bool:
    """Whether this rank is the leader of all (`global`) or of its machine (`local`)."""
    if scope not in ("global", "local"):
        raise ValueError(f"scope must be 'global' or 'local', found {scope!r}")
    return is_leader() if scope == "global" else is_local_leader()


def leader_only(scope: Scope = "global", default: D = None) -> Callable[[Callable[P, R]], Callable[P, R | D]]:
    """Decorator: the function runs on the leader, elsewhere it returns `default`.

    A distkit collective called inside raises `LeaderOnlyError` at once instead of waiting for ranks that
    never come. What the function raises, it raises on the leader alone: put it in `raise_together()` where
    the others must know.

    ```python
    @leader_only()
    def write_log(text): ...
    ```

    Raises:
        ValueError: `scope` is neither `global` nor `local`.
    """
    if scope not in ("global", "local"):
        raise ValueError(f"scope must be 'global' or 'local', found {scope!r}")

    def decorate(fn: Callable[P, R]) -> Callable[P, R | D]:
        @wraps(fn)
        def run(*args: P.args, **kwargs: P.kwargs) -> R | D:
            if not leads(scope):
                return default
            with _leader_section(f"leader_only function {fn.__qualname__}()"):
                return fn(*args, **kwargs)

        return run

    return decorate


@contextmanager
def _leader_section(name: str) -> Iterator[None]:
    token = in_leader_section.set(name)
    try:
        yield
    finally:
        in_leader_section.reset(token)


@contextmanager
def leader_first(scope: Scope = "global") -> Iterator[None]:
    """Run a block on the leader first and then on the others: one download, many readers.

    Raises:
        RankFailed: on the others, when the leader's block failed.
    """
    if not is_distributed():
        yield
        return
    leading = leads(scope)
    error: Any = None
    if leading:
        try:
            yield
        except Exception as e:
            error = e
    failed = gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, message in enumerate(failed):
        if message is not None:
            raise RankFailed(rank, message)
    if not leading:
        yield
