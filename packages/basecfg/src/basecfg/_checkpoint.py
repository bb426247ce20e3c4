"""The configuration stored inside a checkpoint. A SafeTensors header is read without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ._errors import ConfigError, Problem

Loader = Callable[[Path], Mapping[str, Any]]
_MAX_HEADER = 100 << 20  # bytes; the limit of the format's reference reader
_SUFFIXES = (".sft", ".safetensors")


def stored_config(path: Path, load: Loader | None = None) -> dict[str, Any]:
    """The ``config`` entry of a checkpoint.

    Args:
        path: a SafeTensors file, or whatever ``load`` reads.
        load: returns the checkpoint's top-level mapping, for other formats.

    Raises:
        ConfigError: the file is missing or damaged, or holds no configuration.
    """
    try:
        entries = _header_metadata(path) if load is None or path.suffix in _SUFFIXES else load(path)
    except OSError as error:
        raise ConfigError([Problem(str(path), "", f"cannot be read: {error.strerror or error}")]) from None
    config = entries.get("config")
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except json.JSONDecodeError as error:
            raise ConfigError([Problem(f"{path}#config", "", f"expected JSON: {error}")]) from None
    if not isinstance(config, Mapping):
        have = ", ".join(map(str, entries)) or "nothing"
        problem = f"expected a mapping as its 'config' entry, found none; the file has: {have}"
        raise ConfigError([Problem(str(path), "", problem)])
    return dict(config)


def _header_metadata(path: Path) -> Mapping[str, Any]:
    """The ``__metadata__`` of a SafeTensors file."""
    if path.suffix not in _SUFFIXES:
        problem = "expected a .sft or .safetensors file; load= reads other formats"
        raise ConfigError([Problem(str(path), "", problem)])
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        raw = file.read(length) if length <= _MAX_HEADER else b""
    try:
        if len(raw) != length:
            raise ValueError("the header is cut short")
        metadata = json.loads(raw).get("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("__metadata__ is not an object")
    except (ValueError, AttributeError) as error:
        raise ConfigError([Problem(str(path), "", f"not a SafeTensors file: {error}")]) from None
    return metadata
