"""Make the pydantic model of a section class."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic

from ._field import MISSING, FieldInfo
from ._section import Section, SectionType, fields_of


class _ModelType(SectionType, type(pydantic.BaseModel)):
    """Both metaclasses, for a class that is a section and a model."""


_SETTINGS = pydantic.ConfigDict(
    defer_build=True,  # so that sections may contain themselves
    extra="forbid",
    frozen=True,
    validate_default=True,
    ser_json_inf_nan="strings",
    protected_namespaces=(),
)


def make_model(cls: type[Section]) -> type[pydantic.BaseModel]:
    """A subclass of ``cls`` and ``pydantic.BaseModel`` with the declared fields."""
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__light__": cls,
        "__annotations__": {},
        "__get_pydantic_core_schema__": vars(pydantic.BaseModel)["__get_pydantic_core_schema__"],
        "model_config": _SETTINGS | {"json_schema_extra": _add_descriptions},
    }
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if hasattr(value, "decorator_info"):  # a pydantic validator or serializer of the body
                namespace[name] = value
    for name, spec in fields_of(cls).items():
        namespace["__annotations__"][name] = to_pydantic(spec.annotation)
        field = _pydantic_field(spec.annotation, spec.info)
        if field is not MISSING:
            namespace[name] = field
    return _ModelType(cls.__name__, (cls, pydantic.BaseModel), namespace)


def _pydantic_field(annotation: Any, info: FieldInfo) -> Any:
    if info.default is MISSING and info.default_factory is None and _is_section(annotation):
        return info.to_pydantic(default_factory=dict)
    return info.to_pydantic()


def _add_descriptions(schema: dict[str, Any], model: type) -> None:
    from ._describe import descriptions_of

    for name, text in descriptions_of(model).items():
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", text)


def to_pydantic(annotation: Any) -> Any:
    """An annotation with our `Field` replaced by pydantic's and unions of sections made decidable.

    In ``dict | Section`` pydantic prefers ``dict``, where a misspelt key passes unseen: the ``dict`` goes.
    Sections that share a ``Literal`` field are told apart by it.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        extras = [item.to_pydantic() if isinstance(item, FieldInfo) else item for item in arguments[1:]]
        return Annotated[(to_pydantic(arguments[0]), *extras)]
    if origin in (Union, UnionType):
        return _union(arguments)
    if origin in (None, Literal) or origin is Callable or not arguments:
        return annotation
    return origin[tuple(to_pydantic(argument) if argument is not ... else ... for argument in arguments)]


def _union(members: tuple[Any, ...]) -> Any:
    sections = [member for member in members if _is_section(member)]
    if sections:
        members = tuple(member for member in members if (get_origin(member) or member) is not dict)
    tag = _shared_tag(sections) if len(sections) > 1 else None
    others = [to_pydantic(member) for member in members if member not in sections]
    union = functools.reduce(operator.or_, [*sections, *others])
    if tag is None or any(member is not NoneType for member in others):
        return union
    return Annotated[union, pydantic.Field(discriminator=tag)]


def _shared_tag(sections: list[Any]) -> str | None:
    """The name of a ``Literal`` field that all of these have."""
    for name in fields_of(sections[0]):
        specs = [fields_of(section).get(name) for section in sections]
        if all(spec is not None and get_origin(spec.annotation) is Literal for spec in specs):
            return name
    return None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
