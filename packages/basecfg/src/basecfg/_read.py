"""Gather the layers of a configuration and build it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._checkpoint import Loader, stored_config
from ._errors import ConfigError, Problem
from ._layers import Layer
from ._migrate import migrate_layer
from ._origin import Origin
from ._resolve import Unknown, resolve
from ._sources import environment_layer, file_layers, override_layer

StrPath = str | os.PathLike[str]


def read(
    cls: type,
    *,
    files: Sequence[StrPath] = (),
    model: StrPath | None = None,
    lora: StrPath | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    overrides_label: str = "override",
    env_prefix: str | None = None,
    unknown: Unknown = "error",
    unknown_in_model: Unknown = "warn",
    base: Mapping[str, Any] | None = None,
    load: Loader | None = None,
    problems: Sequence[Problem] = (),
) -> Any:
    """Gather all layers in order of precedence and build the configuration. See `BaseConfig.from_yaml`.

    Raises:
        ConfigError: a file that cannot be read at all is reported before anything else is checked.
    """
    problems = list(problems)
    unreadable: list[Problem] = []
    layers = [Layer(base, "base")] if base else []
    layers += file_layers(files, problems, unreadable)
    policy: dict[str, Unknown] = {"": unknown}
    for path, place in ((model, cls.model_values), (lora, cls.lora_values)):
        if path is None:
            continue
        try:
            config = stored_config(Path(path), load)
        except ConfigError as error:
            unreadable += error.problems
        else:
            label = f"{path}#config"
            layers.append(Layer(place(config, Path(path)), label))
            policy[label] = unknown_in_model
    if env_prefix:
        layers.append(environment_layer(env_prefix, problems))
    if overrides:
        layers.append(override_layer(overrides, overrides_label, problems))
    if unreadable:
        raise ConfigError([*unreadable, *problems])
    return build(cls, layers, Path(files[0]) if files else None, unknown=policy, problems=problems)


def build(
    cls: type,
    layers: Sequence[Layer],
    yaml_path: Path | None = None,
    *,
    unknown: Mapping[str, Unknown] | Unknown = "error",
    problems: Sequence[Problem] = (),
) -> Any:
    """Validate layers into a configuration that remembers them."""
    problems = list(problems)
    if cls.migrations:
        layers = [migrate_layer(layer, cls.migrations, problems) for layer in layers]
    config = resolve(cls, layers, unknown=unknown, problems=problems)
    object.__setattr__(config, "_origin", Origin(tuple(layers), yaml_path))
    return config
