"""Where a configuration came from, and what can only be said with that knowledge."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._layers import Layer, dotted, parse_path
from ._section import light_class

if TYPE_CHECKING:
    from ._config import BaseConfig
    from ._diff import Change


@dataclass(frozen=True, eq=False)
class Origin:
    """The layers of a configuration, in rising precedence, and its first file."""

    layers: Sequence[Layer]
    yaml_path: Path | None = None

    @property
    def folder(self) -> Path:
        """The absolute folder of the first file, or the working folder."""
        return Path.cwd() if self.yaml_path is None else Path(os.path.abspath(self.yaml_path)).parent

    def source_of(self, config: BaseConfig, path: str) -> str:
        """See `BaseConfig.source_of`."""
        from ._describe import annotation_at
        from ._suggest import nearest_key

        steps = parse_path(path)
        if annotation_at(type(config), steps) is None:
            nearest = nearest_key(type(config), steps)
            raise KeyError(f"no key {path!r}" + (f"; did you mean {nearest}?" if nearest else ""))
        return self.source_at(steps)

    def source_at(self, steps: tuple[str | int, ...]) -> str:
        """What set the value at a path that exists."""
        for layer in reversed(self.layers):
            setter = layer.setter(steps)
            if setter is not None:
                return layer.locate(setter)
        return "default"

    def settled(self, config: BaseConfig) -> Origin:
        """The same without open files: what crosses to another process."""
        sources: dict[str, str] = {}

        def visit(node: Any, path: tuple[str | int, ...]) -> None:
            if path:
                sources[dotted(path)] = self.source_at(path)
            children = node.items() if isinstance(node, Mapping) else ()
            for key, value in enumerate(node) if isinstance(node, list) else children:
                visit(value, (*path, key))

        values = config.model_dump()
        visit(values, ())
        return Origin((SettledLayer(values, sources),), self.yaml_path)

    def replaced(self, config: BaseConfig, values: Mapping[str, Any]) -> Any:
        """See `BaseConfig.replace`."""
        from ._read import build
        from ._sources import override_layer

        layer = override_layer(values, "replace", [])
        return build(light_class(type(config)), [*self.layers, layer], self.yaml_path, unknown="error")

    def diff(self, config: BaseConfig, other: BaseConfig | Mapping[str, Any] | None) -> list[Change]:
        """See `BaseConfig.diff`."""
        from ._diff import changes
        from ._dump import to_plain
        from ._resolve import default_values
        from ._section import Section

        if other is None:
            theirs, their_source = default_values(type(config)), lambda path: "default"
        elif isinstance(other, Section):
            theirs, their_source = to_plain(other), other._origin.source_at
        else:
            theirs, their_source = other, lambda path: "state"
        return changes(to_plain(config), theirs, self.source_at, their_source)


def restore(rebuild: Callable[..., Any], cls: type, values: dict[str, Any], origin: Origin) -> Any:
    """Unpickle a configuration."""
    config = rebuild(cls, values)
    object.__setattr__(config, "_origin", origin)
    return config


class SettledLayer(Layer):
    """The sources of a configuration that crossed to another process: values by dotted path, no files."""

    def __init__(self, data: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        super().__init__(data, "default")
        self._sources = sources

    def locate(self, path: tuple[str | int, ...], *, value: bool = False) -> str:
        for end in range(len(path), 0, -1):
            source = self._sources.get(dotted(path[:end]))
            if source is not None:
                return source
        return self.label
