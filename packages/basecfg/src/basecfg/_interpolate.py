"""Fill in ``${path.to.key}`` and ``${env:NAME}``. Nothing else is substituted and nothing is evaluated.

A string that is one reference takes the referred value as it is; inside other text the value is written out.
``$${`` stands for a literal ``${``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import _layers
from ._errors import Problem
from ._layers import Layer, dotted, parse_path
from ._section import Section
from ._yaml import plain_scalar

_REFERENCE = re.compile(r"\$?\$\{([^{}]*)\}")


def interpolate(cls: type[Section], data: Any, layers: Sequence[Layer], problems: list[Problem]) -> Any:
    """``data`` with its references filled in; those that cannot be are reported and left as they are."""
    return _Interpolation(cls, data, layers, problems).fill(data, ())


class _Unresolved(Exception):
    """A reference cannot be filled in; the message says why."""


class _Interpolation:
    def __init__(
        self, cls: type[Section], data: Any, layers: Sequence[Layer], problems: list[Problem]
    ) -> None:
        self._cls = cls
        self._data = data
        self._layers = layers
        self._problems = problems

    def fill(self, node: Any, path: _layers.Path) -> Any:
        if isinstance(node, Mapping):
            return {key: self.fill(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self.fill(item, (*path, i)) for i, item in enumerate(node)]
        if not isinstance(node, str) or "${" not in node:
            return node
        try:
            return self._text(node, (path,))
        except _Unresolved as error:
            from ._resolve import locate

            place = locate(self._layers, path, value=True)
            self._problems.append(Problem(place, dotted(path), str(error)))
            return node

    def _text(self, text: str, trail: tuple[_layers.Path, ...]) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole and not text.startswith("$$"):
            return self._value(whole[1], trail)

        def written(match: re.Match[str]) -> str:
            if match[0].startswith("$$"):
                return match[0][1:]
            value = self._value(match[1], trail)
            if isinstance(value, Mapping | list | tuple):
                raise _Unresolved(f"${{{match[1]}}} is a {type(value).__name__}, which text cannot hold")
            return str(value)

        return _REFERENCE.sub(written, text)

    def _value(self, name: str, trail: tuple[_layers.Path, ...]) -> Any:
        if name.startswith("env:"):
            variable = name.removeprefix("env:")
            if variable not in os.environ:
                raise _Unresolved(f"the environment variable {variable} of ${{{name}}} is not set")
            return plain_scalar(os.environ[variable])
        path = parse_path(name)
        if path in trail:
            cycle = " -> ".join(map(dotted, (*trail[trail.index(path) :], path)))
            raise _Unresolved(f"a reference that leads back to itself: {cycle}")
        value = _layers.child_at(self._data, path)
        if value is _layers.ABSENT:
            value = self._default(path, name)
        if isinstance(value, str) and "${" in value:
            return self._text(value, (*trail, path))
        if isinstance(value, Mapping | list | tuple) and any(_begins(other, path) for other in trail):
            raise _Unresolved(f"${{{name}}} contains the reference itself")
        return self.fill(value, path) if isinstance(value, Mapping | list | tuple) else value

    def _default(self, path: _layers.Path, name: str) -> Any:
        from ._resolve import default_at
        from ._suggest import nearest_key

        try:
            return default_at(self._cls, path)
        except (KeyError, IndexError):
            nearest = nearest_key(self._cls, path)
            hint = f"; did you mean ${{{nearest}}}?" if nearest and nearest != name else ""
            raise _Unresolved(f"${{{name}}} refers to nothing that is set or has a default{hint}") from None


def _begins(path: _layers.Path, start: _layers.Path) -> bool:
    return path[: len(start)] == start
