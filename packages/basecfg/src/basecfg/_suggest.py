"""The valid key, or value, nearest to one that is not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any, Literal, get_args, get_origin

from ._describe import ENTRY, NAME, leaves, members
from ._layers import Path, dotted

_CLOSE = 0.6  # similarity from 0 to 1 below which a suggestion would mislead


def similarity(a: str, b: str) -> float:
    """From 0 (nothing in common) to 1 (equal)."""
    return SequenceMatcher(None, a, b).ratio()


def nearest_key(cls: type, path: Path) -> str | None:
    """The dotted key nearest to ``path``, searched over all keys of all sections."""
    wanted = str(path[-1])
    best, best_score = None, 0.0
    for candidate in _all_keys(cls):
        score = similarity(wanted, candidate[-1])
        if score < _CLOSE:
            continue
        score += 0.3 * similarity(dotted(path[:-1]), dotted(candidate[:-1]))
        if _fits(candidate[:-1], path[:-1]):
            score += 0.2
        if score > best_score:
            best, best_score = candidate, score
    if best is None:
        return None
    if _fits(best[:-1], path[:-1]):
        return dotted((*path[:-1], best[-1]))
    return dotted(best)


def _all_keys(cls: type) -> Iterable[tuple[str, ...]]:
    seen: dict[tuple[str, ...], None] = {}
    for leaf in leaves(cls):
        for end in range(1, len(leaf.path) + 1):
            if leaf.path[end - 1] not in (ENTRY, NAME):
                seen[leaf.path[:end]] = None
    return seen


def _fits(pattern: tuple[str, ...], path: Path) -> bool:
    """Whether ``path`` is one of those that a pattern with ``<n>`` and ``<name>`` stands for."""
    if len(pattern) != len(path):
        return False
    return all(
        want == step or want == NAME or (want == ENTRY and isinstance(step, int))
        for want, step in zip(pattern, path, strict=True)
    )


def nearest_choice(annotation: Any, value: Any) -> str | None:
    """The choice of a ``Literal`` or enum nearest to ``value``."""
    choices: list[str] = []
    for member in members(annotation):
        if get_origin(member) is Literal:
            choices += [choice for choice in get_args(member) if isinstance(choice, str)]
        elif isinstance(member, type) and hasattr(member, "__members__"):
            choices += [item.value for item in member if isinstance(item.value, str)]
    scored = [(similarity(str(value), choice), choice) for choice in choices]
    score, choice = max(scored, default=(0.0, None))
    return choice if score >= _CLOSE else None
