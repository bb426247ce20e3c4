"""What a class body says about a field, kept as plain data until pydantic is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING", "__bool__": lambda self: False})()


class FieldInfo:
    """The arguments of one `Field` call. See there."""

    __slots__ = ("affects_cache", "constraints", "default", "default_factory", "description", "secret")

    def __init__(
        self,
        default: Any = MISSING,
        default_factory: Callable[[], Any] | None = None,
        description: str | None = None,
        secret: bool = False,
        affects_cache: bool = True,
        constraints: dict[str, Any] | None = None,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.description = description
        self.secret = secret
        self.affects_cache = affects_cache
        self.constraints = constraints or {}

    def to_pydantic(self, **more: Any) -> Any:
        """The same as a pydantic field."""
        import pydantic

        arguments = {"repr": not self.secret, **self.constraints, **more}
        if self.description is not None:
            arguments["description"] = self.description
        if self.default_factory is not None:
            arguments["default_factory"] = self.default_factory
        elif self.default is not MISSING:
            arguments["default"] = self.default
        return pydantic.Field(**arguments)


def Field(
    default: Any = MISSING,
    *,
    default_factory: Callable[[], Any] | None = None,
    description: str | None = None,
    secret: bool = False,
    affects_cache: bool = True,
    **constraints: Any,
) -> Any:
    """Say more about a field than its annotation and default do.

    Args:
        default: the value when nothing sets one; without it and ``default_factory`` the field is required
            (a section whose fields all have defaults is not).
        default_factory: makes the default.
        description: for ``--help`` and the JSON Schema. A string literal below the field does the same.
        secret: written as ``"**********"`` by `dumps`, `dump` and `to_state`.
        affects_cache: whether `BaseConfig.hash_key` counts the field.
        constraints: those of pydantic's ``Field``: ``ge``, ``gt``, ``le``, ``lt``, ``multiple_of``,
            ``min_length``, ``max_length``, ``pattern``, ``discriminator`` and so on.
    """
    return FieldInfo(default, default_factory, description, secret, affects_cache, constraints)
