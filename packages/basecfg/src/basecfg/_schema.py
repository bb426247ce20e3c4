"""JSON Schema of a configuration file, for editors."""

from __future__ import annotations

from typing import Any

from ._section import model_of

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON Schema of a file for ``cls``. Nothing is required: includes and overrides may supply it."""
    schema = model_of(cls).model_json_schema()
    schema.setdefault("properties", {})["include"] = {
        "description": "Files laid below this one, relative to it.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return {"$schema": _DIALECT, **schema}
