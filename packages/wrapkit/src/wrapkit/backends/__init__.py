"""Layers of optional packages, by name. Nothing is imported before it is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from torch import nn

from wrapkit.backends.bitnet import BitLinear

Factory = type[nn.Module] | Callable[[nn.Module], nn.Module]

REPLACEMENTS: dict[str, Callable[[], Mapping[type[nn.Module], Factory]]] = {
    "bitlinear": lambda: {nn.Linear: BitLinear},
}

INJECTABLE: dict[str, Callable[[], type]] = {
    "bitlinear": lambda: BitLinear,
}


def replacements(name: str) -> Mapping[type[nn.Module], Factory]:
    """What `replace(model, name)` swaps.

    Raises:
        ValueError: an unknown name.
        BackendUnavailable: the package behind it cannot be used here.
    """
    return _look_up(name, REPLACEMENTS)()


def injectable(name: str) -> type:
    """The class that `inject(X=name)` puts in place; errors as for `replacements`."""
    return _look_up(name, INJECTABLE)()


def _look_up(name: str, table: Mapping[str, Callable[[], object]]) -> Callable[[], object]:
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"there is no backend {name!r}{meant}; known: {', '.join(sorted(table))}")
    return table[name]
