"""Where values come from, in rising precedence, and how they are laid over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

from ._errors import Problem
from ._yaml import Document, Key

Path = tuple[Key, ...]
ABSENT = object()  # what `child` gives for an entry that is not there


class Layer:
    """Values from one place.

    Attributes:
        data: nested mappings and lists.
        label: what `source_of` says where there are no lines, such as ``"base"`` or ``"model.sft#config"``.
        may_refer: whether a value may hold ``${...}``.
    """

    def __init__(self, data: Mapping[str, Any], label: str) -> None:
        self.data = data
        self.label = label
        self.may_refer = _has_reference(data)
        self._moved_from: dict[Path, Path] = {}

    def apply(self, below: Any, problems: list[Problem]) -> Any:
        """This layer laid over what is below: mappings merge, everything else replaces."""
        return merge(below, self.data)

    def setter(self, path: Path) -> Path | None:
        """The part of ``path`` that this layer sets, None if it does not touch it."""
        node: Any = self.data
        for i, step in enumerate(path):
            inner = child(node, step)
            if inner is ABSENT:
                return None if isinstance(node, Mapping) else path[:i]
            node = inner
        return path

    def locate(self, path: Path, *, value: bool = False) -> str:
        """Where this layer sets ``path``."""
        return self.label

    def raw_text(self, path: Path) -> str | None:
        """The characters that the value at ``path`` was read from, if it was read from text."""
        return None

    def moved(self, old: Path, new: Mapping[Path, Any]) -> Layer:
        """This layer with the value at ``old`` taken out and others put in, which keep its location."""
        data = without(self.data, old)
        for path, value in new.items():
            data = assign(data, path, value)
        layer = copy(self)
        layer.data = data
        layer._moved_from = {**self._moved_from, **dict.fromkeys(new, self._before(old))}
        return layer

    def _before(self, path: Path) -> Path:
        """Where the value at ``path`` stood before it was moved."""
        for new, old in self._moved_from.items():
            if _begins_with(path, new):
                return (*old, *path[len(new) :])
        return path


class FileLayer(Layer):
    """Values of a YAML file."""

    def __init__(self, document: Document, data: Mapping[str, Any]) -> None:
        super().__init__({}, document.name)
        self.data = data
        self.document = document
        self.may_refer = document.may_refer

    def locate(self, path: Path, *, value: bool = False) -> str:
        return self.document.locate(self._before(path), value=value)

    def raw_text(self, path: Path) -> str | None:
        return self.document.text(self._before(path))


class Assignment(NamedTuple):
    """One ``a.b.0.c=value``, from the environment, the command line or code."""

    path: Path
    value: Any
    text: str | None
    label: str


class AssignmentLayer(Layer):
    """Single values by path, applied in order."""

    def __init__(self, assignments: Sequence[Assignment], label: str) -> None:
        super().__init__({}, label)
        self.assignments = tuple(assignments)
        self.may_refer = any(isinstance(a.value, str) and "${" in a.value for a in self.assignments)

    def apply(self, below: Any, problems: list[Problem]) -> Any:
        for assignment in self.assignments:
            try:
                below = assign(below, assignment.path, assignment.value)
            except LookupError as error:
                problems.append(Problem(assignment.label, dotted(assignment.path), str(error.args[0])))
        return below

    def _assignment(self, path: Path) -> Assignment | None:
        """The last assignment to ``path`` or to something it is part of."""
        for assignment in reversed(self.assignments):
            if _begins_with(path, assignment.path):
                return assignment
        return None

    def setter(self, path: Path) -> Path | None:
        assignment = self._assignment(path)
        if assignment is not None:
            return path
        inside = any(_begins_with(assignment.path, path) for assignment in self.assignments)
        return path if inside and path else None

    def locate(self, path: Path, *, value: bool = False) -> str:
        assignment = self._assignment(path)
        if assignment is None:
            inside = [a for a in self.assignments if _begins_with(a.path, path)]
            return inside[-1].label if inside else self.label
        return assignment.label

    def raw_text(self, path: Path) -> str | None:
        assignment = self._assignment(path)
        return assignment.text if assignment and len(assignment.path) == len(path) else None


def merge(below: Any, above: Any) -> Any:
    """``above`` laid over ``below``. Neither is changed; parts may be shared."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def assign(data: Any, path: Path, value: Any) -> Any:
    """A copy of ``data`` with one value replaced, copying only along the path.

    Raises:
        LookupError: a list has no such entry; its argument says so.
    """
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(data, Sequence) and not isinstance(data, str):
        if not isinstance(step, int):
            raise LookupError(f"expected the number of a list entry, found {step!r}")
        if not 0 <= step <= len(data):
            raise LookupError(f"the list has {len(data)} entries; {step} is neither one of them nor the next")
        items = list(data)
        if step == len(items):
            items.append(assign({}, rest, value))
        else:
            items[step] = assign(items[step], rest, value)
        return items
    copied = dict(data) if isinstance(data, Mapping) else {}
    key = str(step) if step not in copied and str(step) in copied else step
    copied[key] = assign(copied.get(key, {}), rest, value)
    return copied


def without(data: Any, path: Path) -> Any:
    """A copy of ``data`` without the entry at ``path``, which exists; copied only along the path."""
    step, rest = path[0], path[1:]
    copied: Any = list(data) if isinstance(data, list | tuple) else dict(data)
    if rest:
        copied[step] = without(copied[step], rest)
    else:
        del copied[step]
    return copied


def lookup(data: Any, path: Path) -> Any:
    """The value at ``path``.

    Raises:
        KeyError: there is none.
    """
    value = child_at(data, path)
    if value is ABSENT:
        raise KeyError(dotted(path))
    return value


def child_at(data: Any, path: Path) -> Any:
    """The value at ``path``, or `ABSENT`."""
    for step in path:
        data = child(data, step)
    return data


def child(node: Any, step: Key) -> Any:
    """The entry of a mapping or list, or `ABSENT`."""
    if isinstance(node, Mapping):
        if step in node:
            return node[step]
        return node.get(str(step), ABSENT) if isinstance(step, int) else ABSENT
    if isinstance(node, list | tuple) and isinstance(step, int) and 0 <= step < len(node):
        return node[step]
    return ABSENT


def _has_reference(node: Any) -> bool:
    if isinstance(node, str):
        return "${" in node
    if isinstance(node, Mapping):
        return any(map(_has_reference, node.values()))
    return isinstance(node, list | tuple) and any(map(_has_reference, node))


def _begins_with(path: Path, start: Path) -> bool:
    return path[: len(start)] == start


def parse_path(text: str) -> Path:
    """``"models.0.size"`` to ``("models", 0, "size")``."""
    return tuple(int(step) if step.isdecimal() else step for step in text.split("."))


def dotted(path: Path) -> str:
    """``("models", 0, "size")`` to ``"models.0.size"``."""
    return ".".join(map(str, path))
