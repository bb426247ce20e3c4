"""What a dataset holds, remembered between runs until a file that it was read from changes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stateio


class Sources:
    """The files and folders that an index is read from, each with its size and time of change when it was named."""

    def __init__(self) -> None:
        self.stamps: dict[str, list[int] | None] = {}

    def add(self, path: Path) -> Path:
        """Name a file or folder before it is read; one that does not exist is noticed when it appears."""
        self.stamps.setdefault(str(path), _stamp(path))
        return path


def remembered(cache: Path | None, name: str, read: Callable[[Sources], list[list[Any]]]) -> list[list[Any]]:
    """The rows that `read` returns, from the cache when all of its sources are as they were.

    Args:
        cache: the folder of the cache; None for none.
        name: tells what is read from anything else.
        read: names its sources, and returns rows of what JSON knows.
    """
    if cache is None:
        return read(Sources())
    path = cache / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"
    found = _held(path)
    if found is not None:
        return found
    sources = Sources()
    rows = read(sources)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        stateio.json_write({"sources": sources.stamps, "rows": rows}, path)
    except OSError as e:
        warnings.warn(f"{path}: what the dataset holds cannot be remembered for the next start: {e}", stacklevel=2)
    return rows


def _held(path: Path) -> list[list[Any]] | None:
    """The rows in a file of the cache; None where there is none, it is damaged, or a source has changed."""
    if not path.is_file():
        return None
    try:
        held = stateio.json_read(path)
        if any(_stamp(Path(p)) != stamp for p, stamp in held["sources"].items()):
            return None
        return held["rows"]
    except (ValueError, KeyError, TypeError):
        return None


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]
