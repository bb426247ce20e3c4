"""Make layers: files with their includes, environment variables, and overrides by dotted path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._errors import ConfigError, Problem
from ._layers import Assignment, AssignmentLayer, FileLayer, Layer, dotted, parse_path
from ._yaml import Document, read_document

_INCLUDE = "include"


def file_layers(
    paths: Iterable[str | os.PathLike[str]], problems: list[Problem], unreadable: list[Problem]
) -> list[Layer]:
    """The layers of YAML files, the files that each one includes below it.

    Args:
        paths: the files.
        problems: takes what is wrong inside them.
        unreadable: takes what is wrong with those that give no data at all.
    """
    layers: list[Layer] = []
    for path in paths:
        layers += _file_layers(Path(path), (), problems, unreadable)
    return layers


def _file_layers(
    path: Path, above: tuple[Path, ...], problems: list[Problem], unreadable: list[Problem]
) -> list[Layer]:
    try:
        document = read_document(path)
    except ConfigError as error:
        unreadable += error.problems
        return []
    problems += document.problems
    data = document.data
    if _INCLUDE not in data:
        return [FileLayer(document, data)]
    layers: list[Layer] = []
    here = path.resolve()
    for i, target in enumerate(_included(document, problems)):
        step = (_INCLUDE, i) if isinstance(data[_INCLUDE], list) else (_INCLUDE,)
        place = document.locate(step, value=True)
        included = path.parent / target
        chain = (*above, here)
        if included.resolve() in chain:
            cycle = " -> ".join(
                str(p) for p in (*chain[chain.index(included.resolve()) :], included.resolve())
            )
            unreadable.append(Problem(place, _INCLUDE, f"a file that includes itself: {cycle}"))
        elif not included.is_file():
            unreadable.append(Problem(place, _INCLUDE, f"the file {included} does not exist"))
        else:
            layers += _file_layers(included, chain, problems, unreadable)
    own = {key: value for key, value in data.items() if key != _INCLUDE}
    return [*layers, FileLayer(document, own)]


def _included(document: Document, problems: list[Problem]) -> list[str]:
    value = document.data[_INCLUDE]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        place = document.locate((_INCLUDE,), value=True)
        problems.append(Problem(place, _INCLUDE, f"expected a file name or a list of them, found {value!r}"))
        return []
    return names


def environment_layer(prefix: str, problems: list[Problem], environ: Mapping[str, str] = os.environ) -> Layer:
    """``VALLE_TRAINER__ITERATIONS=10`` as ``trainer.iterations``, for the prefix ``VALLE_``."""
    assignments = []
    for name in sorted(environ):
        if name.startswith(prefix) and name != prefix:
            steps = name.removeprefix(prefix).lower().split("__")
            path = parse_path(".".join(steps))
            assignments.append(_assignment(path, environ[name], f"env {name}", problems))
    return AssignmentLayer([a for a in assignments if a is not None], "env")


def override_layer(
    overrides: Iterable[str] | Mapping[str, Any], label: str, problems: list[Problem]
) -> AssignmentLayer:
    """``["trainer.iterations=10", …]`` or ``{"trainer.iterations": 10}`` as a layer."""
    assignments = []
    if isinstance(overrides, Mapping):
        assignments = [Assignment(parse_path(key), value, None, label) for key, value in overrides.items()]
        return AssignmentLayer(assignments, label)
    for item in overrides:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(Problem(label, "", f"expected path.to.key=value, found {item!r}"))
            continue
        assignment = _assignment(parse_path(key), text, label, problems)
        if assignment is not None:
            assignments.append(assignment)
    return AssignmentLayer(assignments, label)


def _assignment(
    path: tuple[str | int, ...], text: str, label: str, problems: list[Problem]
) -> Assignment | None:
    """An assignment whose value is written in YAML."""
    try:
        document = Document(text, label)
    except ConfigError as error:
        message = f"expected a YAML value, found {text!r} ({error.problems[0].message})"
        problems.append(Problem(label, dotted(path), message))
        return None
    problems += [Problem(label, dotted(path), problem.message) for problem in document.problems]
    value = document.data if text.strip() and not text.lstrip().startswith("#") else None
    return Assignment(path, value, text, label)
