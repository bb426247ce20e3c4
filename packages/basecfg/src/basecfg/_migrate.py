"""Old keys: read with a warning that names the line to change, rewritten in the user's file on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import _layers
from ._errors import Problem, warn
from ._layers import Assignment, AssignmentLayer, Layer, dotted, parse_path

Target = str | Callable[[Any], Mapping[str, Any] | tuple[Mapping[str, Any], str]]
_ANY = "*"


def migrate_layer(layer: Layer, migrations: Mapping[str, Target], problems: list[Problem]) -> Layer:
    """The layer with old keys moved to their new places, and one warning that lists them."""
    remarks: list[Problem] = []
    for old, target in migrations.items():
        pattern = parse_path(old)
        if isinstance(layer, AssignmentLayer):
            moved = [_moved_assignment(a, pattern, target, remarks, problems) for a in layer.assignments]
            layer = AssignmentLayer([a for some in moved for a in some], layer.label)
            continue
        for path in list(_matches(layer.data, pattern)):
            value = _layers.child_at(layer.data, path)
            try:
                new, remark = _moved(target, pattern, path, value)
            except ValueError as error:
                problems.append(Problem(layer.locate(path, value=True), dotted(path), str(error)))
                new, remark = {}, ""
            if remark:
                remarks.append(Problem(layer.locate(path), dotted(path), remark))
            layer = layer.moved(path, new)
    warn(remarks)
    return layer


def _moved_assignment(
    assignment: Assignment,
    pattern: _layers.Path,
    target: Target,
    remarks: list[Problem],
    problems: list[Problem],
) -> list[Assignment]:
    """What becomes of an assignment to an old key, or to a key inside one that has a new name."""
    path, rest = assignment.path[: len(pattern)], assignment.path[len(pattern) :]
    if not _fits(path, pattern) or (rest and callable(target)):
        return [assignment]
    try:
        new, remark = _moved(target, pattern, path, assignment.value)
    except ValueError as error:
        problems.append(Problem(assignment.label, dotted(path), str(error)))
        return []
    if remark:
        remarks.append(Problem(assignment.label, dotted(path), remark))
    return [
        # The characters that a value was read from say nothing about another value.
        assignment._replace(
            path=(*place, *rest), value=value, text=assignment.text if value is assignment.value else None
        )
        for place, value in new.items()
    ]


def _moved(
    target: Target, pattern: _layers.Path, path: _layers.Path, value: Any
) -> tuple[dict[_layers.Path, Any], str]:
    """What an old key means: values by path, and the remark about it, empty where none is due."""
    result = {target: value} if isinstance(target, str) else target(value)
    values, remark = result if isinstance(result, tuple) else (result, None)
    entries = [step for step, wanted in zip(path, pattern, strict=True) if wanted == _ANY]
    moved = {_with_entries(new, entries): item for new, item in values.items()}
    if remark is None:
        remark = _remark(path, value, moved)
    return moved, remark


def _remark(path: _layers.Path, value: Any, moved: Mapping[_layers.Path, Any]) -> str:
    if not moved:
        return "has no effect any more; remove it"
    if path not in moved:
        return f"now {', '.join(map(dotted, moved))}; change it there"
    return "" if moved == {path: value} else f"read as {moved[path]!r}; change it to that"


def _with_entries(new: str, entries: list[_layers.Key]) -> _layers.Path:
    """The path that ``new`` is for the entries which stand for the ``*`` of the old key."""
    following = iter(entries)
    return tuple(next(following) if step == _ANY else step for step in parse_path(new))


def _fits(path: _layers.Path, pattern: _layers.Path) -> bool:
    return len(path) == len(pattern) and all(
        wanted in (step, _ANY) for step, wanted in zip(path, pattern, strict=True)
    )


def _matches(data: Any, pattern: _layers.Path) -> Iterator[_layers.Path]:
    """The paths in ``data`` that an old key stands for."""
    if not pattern:
        yield ()
        return
    steps: Any = pattern[:1]
    if steps == (_ANY,):
        steps = data if isinstance(data, Mapping) else range(len(data) if isinstance(data, list | tuple) else 0)
    for step in steps:
        inner = _layers.child(data, step)
        if inner is not _layers.ABSENT:
            yield from ((step, *rest) for rest in _matches(inner, pattern[1:]))


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
        pattern = parse_path(old)
        for steps in list(_matches(data, pattern)):
            value = _layers.child_at(data, steps)
            try:
                moved, _ = _moved(target, pattern, steps, value)
            except ValueError:
                continue  # it stays, and reading the file says what is wrong with it
            if moved == {steps: value}:
                continue
            _rewrite(data, steps, moved)
            places = (repr(moved[new]) if new == steps else dotted(new) for new in moved)
            done.append(f"{dotted(steps)} -> {', '.join(places) or 'removed'}")
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
