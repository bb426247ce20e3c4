"""Packages that a prepared hook needs and the base install does not bring."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_EXTRA = {"huggingface_hub": "hub", "safetensors": "hub"}  # others are named like their package


def require(module: str, wanted_by: str) -> ModuleType:
    """Import `module` when it is first needed.

    Args:
        module: its full name, such as `safetensors.torch`.
        wanted_by: what needs it, for the message.

    Raises:
        ImportError: its package is not installed; names the extra that brings it.
    """
    package = module.partition(".")[0]
    try:
        import_module(package)
    except ImportError as e:
        extra = _EXTRA.get(package, package)
        raise ImportError(f"{wanted_by} needs {package}: pip install trainloop[{extra}] ({e})") from e
    return import_module(module)
