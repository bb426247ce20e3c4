"""`Section`: a class with annotated fields that becomes a pydantic model when it is first used.

A declared class is light: its metaclass takes the annotations and defaults out of the body and keeps them.
Its model is a subclass of it and of ``pydantic.BaseModel``, made on demand (`_model`). So methods, properties
and ``isinstance`` work as in any class, and a program that only prints its help never imports pydantic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple, Self, dataclass_transform, get_origin, get_type_hints

from ._field import MISSING, Field, FieldInfo


class FieldSpec(NamedTuple):
    """A field as its class body declares it."""

    name: str
    annotation: Any
    info: FieldInfo
    owner: type


class SectionType(type):
    """Metaclass of sections: collects fields at declaration, makes the model at the first instance."""

    __declared__: dict[str, FieldInfo]
    __scope__: Mapping[str, Any] | None

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **arguments: Any
    ) -> SectionType:
        cls = super().__new__(mcs, name, bases, namespace, **arguments)
        if "__light__" in namespace:  # a model, made by `_model` from a class that is already collected
            return cls
        declared = {}
        for field, annotation in dict(cls.__annotations__ if "__annotations__" in vars(cls) else {}).items():
            if field.startswith("_") or _is_class_variable(annotation):
                continue
            default = vars(cls).get(field, MISSING)
            declared[field] = default if isinstance(default, FieldInfo) else FieldInfo(default)
            if default is not MISSING:
                delattr(cls, field)  # so that no instance ever shares it
        cls.__declared__ = declared
        # Annotations that are strings may name classes of the function that declares this one.
        cls.__scope__ = dict(sys._getframe(1).f_locals) if "<locals>" in cls.__qualname__ else None
        return cls

    def __call__(cls, *arguments: Any, **values: Any) -> Any:
        if "__light__" in vars(cls):
            return super().__call__(*arguments, **values)
        if arguments:
            raise TypeError(f"{cls.__name__} takes keyword arguments only")
        return cls._construct(values)


def _is_class_variable(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.startswith(("ClassVar", "typing.ClassVar"))
    return annotation is ClassVar or get_origin(annotation) is ClassVar


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Section(metaclass=SectionType):
    """A group of settings. Subclass it with annotated fields; instances are frozen.

    Fields may be plain types, ``Path``, enums, ``Literal``, unions, lists and dicts, other sections, and
    lists and dicts of those. A section is its own default where all its fields have one: ``trainer: Trainer``
    needs no ``= Trainer()``.

    Raises:
        ConfigError: on construction, listing all that is wrong.
    """

    @classmethod
    def _construct(cls, values: dict[str, Any]) -> Self:
        from ._resolve import construct

        return construct(cls, values)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler.generate_schema(model_of(cls))  # the model itself has pydantic's own method

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in fields_of(type(self)))

    def __hash__(self) -> int:
        return hash((type(self), tuple(getattr(self, name) for name in fields_of(type(self)))))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return _restore(light_class(type(self)), deepcopy(_values(self), memo))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restore, (light_class(type(self)), _values(self))


def _values(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in fields_of(type(section))}


def _restore(cls: type[Section], values: dict[str, Any]) -> Any:
    """A section of values that were validated before."""
    return model_of(cls).model_construct(**values)


def light_class(cls: type) -> type:
    """The class as its author declared it, for itself or its model."""
    return vars(cls).get("__light__", cls)


def model_of(cls: type) -> Any:
    """The pydantic model of a section class."""
    if "__light__" in vars(cls):
        return cls
    model = vars(cls).get("__model__")
    if model is None:
        from ._model import make_model

        model = make_model(cls)
        cls.__model__ = model
    return model


def fields_of(cls: type) -> dict[str, FieldSpec]:
    """The fields of a section class by name, base classes first, annotations resolved."""
    cls = light_class(cls)
    fields = vars(cls).get("__fields_by_name__")
    if fields is not None:
        return fields
    fields = {}
    for base in reversed(cls.__mro__):
        for name, info in vars(base).get("__declared__", {}).items():
            fields[name] = FieldSpec(name, _hints(base)[name], info, base)
    cls.__fields_by_name__ = fields
    return fields


def _hints(cls: type) -> dict[str, Any]:
    """The annotations of one class body, strings resolved."""
    hints = vars(cls).get("__hints__")
    if hints is None:
        scope: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            scope |= vars(base).get("__scope__") or {}
            scope[base.__name__] = base
        hints = get_type_hints(cls, localns=scope, include_extras=True)
        cls.__hints__ = hints
    return hints
