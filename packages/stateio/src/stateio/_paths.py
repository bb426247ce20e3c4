"""Choose among the names a file may go by."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

STATE_SUFFIXES = {
    ".sft": "safetensors",
    ".safetensors": "safetensors",
    ".pt": "pickle",
    ".pth": "pickle",
    ".bin": "pickle",
    ".ckpt": "pickle",
}


def pick_path(path: str | PathLike[str], *suffixes: str) -> Path:
    """The first of ``path`` with each suffix in turn that exists.

    A suffix replaces one that is a state file's or among ``suffixes``; otherwise it is appended, so that
    ``"run-1.5"`` with ``".sft"`` means ``run-1.5.sft``.

    Returns:
        the first that exists, else ``path`` itself, so that opening it names what was asked for.
    """
    path = Path(path)
    replaceable = path.suffix in suffixes or path.suffix in STATE_SUFFIXES
    stem = path.name[: -len(path.suffix)] if replaceable and path.suffix else path.name
    for suffix in suffixes:
        candidate = path.with_name(stem + suffix)
        if candidate.exists():
            return candidate
    return path
