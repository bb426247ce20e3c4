"""What a section class offers: every dotted key, its type, default and description. Without pydantic."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from ._field import MISSING
from ._section import FieldSpec, Section, fields_of, light_class

ENTRY, NAME = "<n>", "<name>"  # stand for a list's index and a dict's key in dotted paths


class Leaf(NamedTuple):
    """One key that can be set.

    Attributes:
        path: its steps, with ``<n>`` for any list index and ``<name>`` for any dict key.
        spec: the field that declares it.
    """

    path: tuple[str, ...]
    spec: FieldSpec


def leaves(cls: type) -> Iterator[Leaf]:
    """Every key of a section and of the sections in it, in order of declaration."""
    yield from _leaves(cls, (), (light_class(cls),))


def _leaves(cls: type, prefix: tuple[str, ...], above: tuple[type, ...]) -> Iterator[Leaf]:
    for name, spec in fields_of(cls).items():
        inner = list(_sections_in(spec.annotation, (*prefix, name)))
        if not inner or any(path != (*prefix, name) for _, path in inner):
            yield Leaf((*prefix, name), spec)
        for section, path in inner:
            if section not in above:  # a section that contains itself is listed once
                yield from _leaves(section, path, (*above, section))


def _sections_in(annotation: Any, path: tuple[str, ...]) -> Iterator[tuple[type, tuple[str, ...]]]:
    for member in members(annotation):
        if is_section(member):
            yield member, path
        elif get_origin(member) in (list, tuple, set):
            yield from _sections_in(get_args(member)[0], (*path, ENTRY))
        elif get_origin(member) is dict:
            yield from _sections_in(get_args(member)[1], (*path, NAME))


def is_section(annotation: Any) -> bool:
    """Whether an annotation is a section class."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def members(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, ``Annotated`` and unions taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def descend(annotation: Any, step: str | int) -> Any:
    """The annotation of a field, list entry or dict value inside ``annotation``; None if there is none."""
    for member in members(annotation):
        if is_section(member):
            spec = fields_of(member).get(str(step))
            if spec is not None:
                return spec.annotation
        elif get_origin(member) in (list, tuple, set) and isinstance(step, int):
            return get_args(member)[0]
        elif get_origin(member) is dict:
            return get_args(member)[1]
        elif member in (list, dict, Any):
            return Any
    return None


def annotation_at(cls: type, path: tuple[str | int, ...]) -> Any:
    """The annotation at a dotted path of a section class; None if no such key exists."""
    annotation: Any = cls
    for step in path:
        annotation = descend(annotation, step)
        if annotation is None:
            return None
    return annotation


def type_name(annotation: Any) -> str:
    """An annotation for readers of ``--help``: ``int``, ``list[str]``, ``'a' | 'b'``, ``Path | None``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, UnionType):
        return " | ".join(type_name(member) for member in arguments)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if annotation is NoneType or annotation is None:
        return "None"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(repr(member.value) for member in annotation)
    if origin is not None:
        inner = ", ".join("..." if argument is ... else type_name(argument) for argument in arguments)
        return f"{type_name(origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def default_text(spec: FieldSpec) -> str:
    """The default of a field as a reader of ``--help`` wants it."""
    info = spec.info
    if info.secret and info.default not in (MISSING, None, ""):
        return "**********"
    if info.default_factory is not None:
        value = "" if is_section(info.default_factory) else info.default_factory()
        return "..." if isinstance(value, Section) else repr(value)
    if info.default is MISSING:
        return "required"
    if isinstance(info.default, Enum):
        return repr(info.default.value)
    if isinstance(info.default, Path):
        return repr(str(info.default))
    return repr(info.default)


def descriptions_of(cls: type) -> dict[str, str]:
    """The description of each field that has one: of its `Field`, else the string literal below it."""
    texts: dict[str, str] = {}
    for name, spec in fields_of(cls).items():
        text = spec.info.description or _docstrings(spec.owner).get(name)
        if text:
            texts[name] = inspect.cleandoc(text)
    return texts


def _docstrings(cls: type) -> dict[str, str]:
    """String literals below the fields of one class body; none where the source is not at hand."""
    module = sys.modules.get(cls.__module__)
    source = getattr(module, "__file__", None)
    return _module_docstrings(source).get(cls.__qualname__, {}) if source else {}


@functools.cache
def _module_docstrings(path: str) -> dict[str, dict[str, str]]:
    """Field docstrings of every class in a source file, by qualified class name."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, dict[str, str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                name = prefix + node.name
                found[name] = _body_docstrings(node.body)
                visit(node.body, f"{name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                visit(node.body, f"{prefix}{node.name}.<locals>.")

    visit(tree.body, "")
    return found


def _body_docstrings(body: list[ast.stmt]) -> dict[str, str]:
    texts = {}
    for node, following in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            texts[node.target.id] = following.value.value
    return texts
