"""Packages that a prepared hook needs and the base install does not bring."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_EXTRA = {
    "datasets": "datasets",
    "diffusers": "diffusers",
    "huggingface_hub": "hub",
    "matplotlib": "plot",
    "safetensors": "hub",
    "transformers": "transformers",
}


def require(module: str, wanted_by: str) -> ModuleType:
    """Import `module` when it is first needed.

    Args:
        module: its full name, such as `safetensors.torch`.
        wanted_by: what needs it, for the message.

    Raises:
        ImportError: its package cannot be imported; names the extra that brings it, where there is one.
    """
    package = module.partition(".")[0]
    try:
        import_module(package)
    except ImportError as e:
        if package not in _EXTRA:
            raise
        raise ImportError(f"{wanted_by} needs {package}: pip install trainloop[{_EXTRA[package]}]") from e
    return import_module(module)
