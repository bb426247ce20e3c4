"""Old keys: read with a warning that names the line to change, rewritten in the user's file on request."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import _layers
from ._errors import ConfigWarning, Problem
from ._layers import AssignmentLayer, Layer, dotted, parse_path

Target = str | Callable[[Any], Mapping[str, Any]]


def migrate_layer(layer: Layer, migrations: Mapping[str, Target]) -> Layer:
    """The layer with old keys moved to their new places; a warning for each."""
    for old, target in migrations.items():
        path = parse_path(old)
        if isinstance(layer, AssignmentLayer):
            layer = _migrate_assignments(layer, path, target)
            continue
        value = _layers.child_at(layer.data, path)
        if value is _layers.ABSENT:
            continue
        moved = _moved(target, value)
        _warn(layer.locate(path), path, moved)
        layer = layer.moved(path, {parse_path(new): item for new, item in moved.items()})
    return layer


def _migrate_assignments(layer: AssignmentLayer, path: _layers.Path, target: Target) -> AssignmentLayer:
    assignments = []
    for assignment in layer.assignments:
        if assignment.path[: len(path)] != path or (callable(target) and assignment.path != path):
            assignments.append(assignment)
            continue
        rest = assignment.path[len(path) :]
        moved = _moved(target, assignment.value)
        _warn(assignment.label, path, moved)
        text = assignment.text if isinstance(target, str) else None
        for new, value in moved.items():
            assignments.append(assignment._replace(path=(*parse_path(new), *rest), value=value, text=text))
    return AssignmentLayer(assignments, layer.label)


def _moved(target: Target, value: Any) -> Mapping[str, Any]:
    return {target: value} if isinstance(target, str) else target(value)


def _warn(location: str, path: _layers.Path, moved: Mapping[str, Any]) -> None:
    advice = f"now {', '.join(moved)}; change it there" if moved else "has no effect any more; remove it"
    warnings.warn(str(Problem(location, dotted(path), advice)), ConfigWarning, stacklevel=2)


def migrate_file(cls: type, path: str | os.PathLike[str]) -> list[str]:
    """Rewrite the old keys of a YAML file in place, keeping comments and order.

    Needs ``basecfg[migrate]`` (ruamel.yaml).

    Args:
        cls: the configuration class whose `migrations` apply.
        path: the file; includes are not followed.

    Returns:
        one line per change, such as ``"trainer.lr -> hyperparameters.learning_rate"``.

    Raises:
        ImportError: ruamel.yaml is not installed.
        ConfigError: the file cannot be read.
    """
    from ._yaml import read_document

    read_document(path)  # the errors of a file that is not valid, with their places
    try:
        from ruamel.yaml import YAML
    except ImportError as error:
        raise ImportError("rewriting a file needs ruamel.yaml: pip install 'basecfg[migrate]'") from error
    from io import StringIO

    from ._dump import write_text

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # long lines stay as they are
    data = yaml.load(Path(path).read_text(encoding="utf-8"))
    done = []
    for old, target in cls.migrations.items():
        steps = parse_path(old)
        parent = _layers.child_at(data, steps[:-1])
        if not isinstance(parent, Mapping) or steps[-1] not in parent:
            continue
        moved = _moved(target, parent[steps[-1]])
        new_paths = {parse_path(new): value for new, value in moved.items()}
        _rewrite(data, steps, new_paths)
        done.append(f"{old} -> {', '.join(moved) or 'removed'}")
    if done:
        text = StringIO()
        yaml.dump(data, text)
        write_text(text.getvalue(), Path(path))
    return done


def _rewrite(data: Any, old: _layers.Path, new: Mapping[_layers.Path, Any]) -> None:
    """Move a key of a ruamel mapping; one that stays among its siblings keeps its place and comment."""
    parent = _layers.child_at(data, old[:-1])
    place = list(parent).index(old[-1])
    comment = parent.ca.items.pop(old[-1], None)
    del parent[old[-1]]
    for path, value in new.items():
        node = data
        for step in path[:-1]:
            if step not in node:
                node[step] = type(data)()
            node = node[step]
        if path[:-1] == old[:-1]:
            node.insert(min(place, len(node)), path[-1], value)
        else:
            node[path[-1]] = value
        if comment is not None:
            node.ca.items[path[-1]] = comment
            comment = None
