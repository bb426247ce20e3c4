"""Dotted patterns that choose parameters of a module by their names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern covers a dotted name: the name itself or a module above it, with `*` for anything.

    >>> covers("layers.1", "layers.1.weight"), covers("layers.1", "layers.10.weight"), covers("*.bias", "a.b.bias")
    (True, False, True)
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def names_by_pattern(module: nn.Module, patterns: Iterable[str], who: str) -> dict[str, set[str]]:
    """The parameters that each pattern covers, by the names `named_parameters()` gives them.

    A parameter that is tied is covered under any of its names.

    Raises:
        ValueError: a pattern that covers none.
    """
    first = {id(p): name for name, p in module.named_parameters()}
    every = [(name, first[id(p)]) for name, p in module.named_parameters(remove_duplicate=False)]
    found: dict[str, set[str]] = {}
    for pattern in patterns:
        found[pattern] = {name for alias, name in every if covers(pattern, alias)}
        if not found[pattern]:
            parents = {alias.rpartition(".")[0] for alias, _ in every} | {alias for alias, _ in every}
            close = difflib.get_close_matches(pattern, sorted(parents), n=3) or sorted(parents - {""})[:5]
            raise ValueError(
                f"{who}: the pattern {pattern!r} covers no parameter of this {type(module).__name__}; "
                f"its names are like {', '.join(close)}"
            )
    return found
