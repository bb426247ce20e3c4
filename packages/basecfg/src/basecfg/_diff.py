"""What differs between two configurations, and what set each side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._layers import ABSENT, Path, dotted


class Change(NamedTuple):
    """One key whose values differ.

    Attributes:
        path: dotted.
        ours, theirs: the values as plain data; None also for a key that one side lacks.
        our_source, their_source: as `BaseConfig.source_of` says.
    """

    path: str
    ours: Any
    theirs: Any
    our_source: str
    their_source: str

    def __str__(self) -> str:
        return f"{self.path}: {self.ours!r} ({self.our_source}) != {self.theirs!r} ({self.their_source})"


def changes(
    ours: Any, theirs: Any, our_source: Callable[[Path], str], their_source: Callable[[Path], str]
) -> list[Change]:
    """The differing keys of two plain trees, the innermost that differ, in the order of ``ours``."""
    found: list[Change] = []

    def visit(a: Any, b: Any, path: Path) -> None:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in [*a, *(key for key in b if key not in a)]:
                visit(a.get(key, ABSENT), b.get(key, ABSENT), (*path, key))
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (item, other) in enumerate(zip(a, b, strict=True)):
                visit(item, other, (*path, i))
        elif a is ABSENT or b is ABSENT or a != b:
            values = (None if value is ABSENT else value for value in (a, b))
            found.append(Change(dotted(path), *values, our_source(path), their_source(path)))

    visit(ours, theirs, ())
    return found
