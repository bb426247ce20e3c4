"""The valid key, or value, nearest to one that is not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any, Literal, get_args, get_origin

from ._describe import ENTRY, NAME, annotation_at, is_section, leaves, members
from ._layers import Path, dotted
from ._section import fields_of

_CLOSE = 0.6  # similarity from 0 to 1 below which a suggestion would mislead


def similarity(a: str, b: str) -> float:
    """From 0 (nothing in common) to 1 (equal)."""
    return SequenceMatcher(None, a, b).ratio()


def nearest_key(cls: type, path: Path) -> str | None:
    """The dotted key nearest to ``path``, searched over all keys of all sections; siblings count more."""
    parent, wanted = path[:-1], str(path[-1])
    siblings = [(*parent, name) for name in _fields_at(cls, parent)]
    best, best_score = None, 0.0
    for candidate in [*siblings, *_all_keys(cls)]:
        score = similarity(wanted, str(candidate[-1]))
        if score < _CLOSE or candidate == path:
            continue
        score += 0.3 * similarity(dotted(parent), dotted(candidate[:-1]))
        if candidate[:-1] == parent:
            score += 0.2
        if score > best_score:
            best, best_score = candidate, score
    return None if best is None else dotted(best)


def _fields_at(cls: type, path: Path) -> Iterable[str]:
    """The keys that the section at ``path`` has."""
    for member in members(annotation_at(cls, path)):
        if is_section(member):
            yield from fields_of(member)


def _all_keys(cls: type) -> Iterable[tuple[str, ...]]:
    seen: dict[tuple[str, ...], None] = {}
    for leaf in leaves(cls):
        for end in range(1, len(leaf.path) + 1):
            if leaf.path[end - 1] not in (ENTRY, NAME):
                seen[leaf.path[:end]] = None
    return seen


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
