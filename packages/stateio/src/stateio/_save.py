"""Write an object to a state file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch

from . import _safetensors, _shards, _torchzip
from ._atomic import atomic_writer
from ._collect import as_dtype, collect, mirror
from ._garbage import no_collection
from ._paths import STATE_SUFFIXES
from ._stream import Progress


@no_collection()
def save(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    format: Literal["safetensors", "pickle"] | None = None,
    dtype: torch.dtype | str | None = None,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Save an object so that a crash at any moment leaves the old file or the new one.

    Args:
        obj: any nesting of plain data, tensors and numpy values; it is not changed. What cannot come back
            equal is normalised: mapping types to dict, dataclasses to dict, named tuples to tuple, enum
            members to their value, parameters to tensors.
        path: the file. A symbolic link is followed.
        format: by default from the suffix: ``.sft`` and ``.safetensors``, or ``.pt``, ``.pth``, ``.bin``
            and ``.ckpt`` for a pickle that ``torch.load(weights_only=True)`` reads.
        dtype: what floating-point tensors are stored as, by default as they are.
        shard_bytes: write shards of at most this many bytes (a larger tensor gets one to itself) and an
            index in the Hugging Face layout, ``<path>.index.json``. SafeTensors only.
        progress: called with the bytes of each piece written; ``tqdm(...).update`` fits.

    Returns:
        the file written: ``path``, or the index.

    Raises:
        UnsupportedObjectError: the object holds something that no file can; nothing is written.
        ValueError: no format given and the suffix says none, or shards of a pickle.
        OSError: the folder is missing or the disk is full; the previous file is intact.
    """
    target = Path(path)
    form = format or STATE_SUFFIXES.get(target.suffix)
    if form not in ("safetensors", "pickle"):
        known = ", ".join(STATE_SUFFIXES)
        raise ValueError(f"{target}: expected a suffix among {known} or format=, found {format or target.suffix!r}")
    parts = collect(obj, as_dtype(dtype))
    metadata = mirror(parts.tree)
    if shard_bytes is not None:
        if form != "safetensors" or shard_bytes <= 0:
            raise ValueError(f"{target}: shard_bytes takes SafeTensors and a positive size, found {shard_bytes}")
        return _shards.write(target, parts.sources, parts.tree, metadata, shard_bytes, progress)
    with atomic_writer(target) as file:
        if form == "pickle":
            _torchzip.write(file, parts.sources, parts.tree, metadata, progress=progress)
        else:
            plain = {"format": "pt"} if _is_flat(parts.tree) else {}
            _safetensors.write(file, parts.sources, parts.tree, metadata, plain_metadata=plain, progress=progress)
    _shards.remove_shards_of(target)
    return target


def _is_flat(tree: Any) -> bool:
    """A dict of tensors and nothing else: what Hugging Face's loaders take, and mark with a format."""
    return isinstance(tree, dict) and all(isinstance(node, dict) and "$t" in node for node in tree.values())
