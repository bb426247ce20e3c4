"""Tell the kinds of state files apart by content and read their layout, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from typing import Any

from . import _safetensors, _shards, _torchzip
from ._errors import CorruptFileError, ForeignFileError, TruncatedFileError
from ._layout import Layout
from ._tree import decode


@dataclass(frozen=True)
class Foreign:
    """A pickle that others wrote: nothing is known before torch reads it."""

    path: str


@dataclass(frozen=True)
class Opened:
    """A file whose layout is known.

    Attributes:
        whole: tree, metadata and all tensors.
        parts: the layouts of the files that hold the tensors: itself, or its shards.
    """

    whole: Layout
    parts: list[Layout]


def open_layout(path: str | os.PathLike[str], *, verify: bool) -> Opened | Foreign:
    """Find out what kind of file ``path`` is and read its layout, no tensor."""
    name = _shards.resolve(os.fspath(path))
    with FileIO(name, "r") as file:
        start = file.read(9) or b""
    if not start:
        raise TruncatedFileError("the file is empty", path=name)
    if start.startswith(b"PK"):
        layout = _torchzip.read_layout(name, verify=verify)
        return Foreign(name) if layout is None else Opened(layout, [layout])
    if start[:1] == b"\x80":
        # The first byte of a pickle; a SafeTensors header may have a length that begins with it as well.
        if start[8:9] != b"{":
            return Foreign(name)
    elif start[:1] == b"{" and name.endswith(".json"):
        whole, parts = _shards.read_index(name, verify=verify)
        return Opened(whole, parts)
    if len(start) == 9 and start[8:9] != b"{":
        problem = f"expected SafeTensors, a torch pickle or a shard index, found a file that begins with {start!r}"
        raise ForeignFileError(problem, path=name)
    layout = _safetensors.read_layout(name, verify=verify)
    return Opened(layout, [layout])


def rebuild(layout: Layout, tensor: Callable[[str], Any], array: Callable[[str], Any]) -> Any:
    """Decode the tree of a layout."""
    try:
        return decode(layout.tree, tensor, array)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CorruptFileError(f"its tree is damaged ({error!r})", path=layout.path) from error
