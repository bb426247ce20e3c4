"""What makes a checkpoint folder complete: a list of its files with sizes and hashes, written last."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
NAME = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not what it says it is.

    Args:
        why: what is wrong.
        remedy: what to do, in terms of this library. Both are kept, for an application with advice of its own.
    """

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(f"{why}\n{remedy}" if remedy else why)
        self.why, self.remedy = why, remedy


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Force a file, or on POSIX a folder's entries, to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_manifest(folder: Path, step: int, info: Mapping[str, Any]) -> None:
    """Hash every file in `folder` and write the manifest, the last file to appear."""
    files = {
        p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": sha256(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    manifest = {
        "format": FORMAT,
        "step": step,
        "versions": {
            "trainloop": version("trainloop"),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "platform": sys.platform,
        },
        **info,
        "files": files,
    }
    path = folder / NAME
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fsync(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are all there, whole.

    Raises:
        CheckpointError: says which file is missing, cut short or changed.
    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        found = manifest["format"]
    except FileNotFoundError:
        raise CheckpointError("it has no manifest.json, so it was never completed") from None
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"its manifest.json is damaged: {e}") from None
    if found != FORMAT:
        raise CheckpointError(f"its format is {found!r}, this version reads {FORMAT}")
    for name, expected in files.items():
        file = folder / name
        try:
            size = file.stat().st_size
        except OSError:
            raise CheckpointError(f"{name} is missing") from None
        if size != expected["size"]:
            raise CheckpointError(f"{name} has {size} bytes, expected {expected['size']}")
    for name, expected in files.items():
        if sha256(folder / name) != expected["sha256"]:
            raise CheckpointError(f"{name} has changed since it was written (its hash differs)")
    return manifest
