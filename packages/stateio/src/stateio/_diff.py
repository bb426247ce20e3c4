"""What differs between two state files, whatever their forms."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ._load import load


@dataclass(frozen=True)
class Difference:
    """How two files differ, by dotted path.

    Attributes:
        only_first: paths that the second file lacks.
        only_second: paths that the first file lacks.
        changed: path to what differs, such as ``"float32 [2, 3]: largest difference 0.25"``.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: Mapping[str, str]

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.only_first or self.only_second or self.changed)


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Difference:
    """Compare two files leaf by leaf. Tensors are mapped, so files larger than memory can be compared.

    Raises:
        OSError, StateFileError: as `stateio.load`.
    """
    ours, theirs = (dict(_leaves(load(path, lazy=True), "")) for path in (first, second))
    changed = {}
    for path in ours.keys() & theirs.keys():
        reason = _reason(ours[path], theirs[path])
        if reason is not None:
            changed[path] = reason
    return Difference(
        tuple(path for path in ours if path not in theirs),
        tuple(path for path in theirs if path not in ours),
        dict(sorted(changed.items())),
    )


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple) and node:
        for i, value in enumerate(node):
            yield from _leaves(value, f"{path}.{i}" if path else str(i))
    else:
        yield path, node


def _reason(ours: Any, theirs: Any) -> str | None:
    """What differs between two leaves, None if nothing does."""
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        same = ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=ours.dtype.kind in "fc")
        return None if same else f"numpy arrays: {ours.dtype} {ours.shape} and {theirs.dtype} {theirs.shape}"
    if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
        same = type(ours) is type(theirs) and (ours == theirs or ours != ours)
        return None if same else f"{ours!r} and {theirs!r}"
    kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} and {kinds[1]}"
    if torch.equal(_as_bytes(ours), _as_bytes(theirs)):
        return None
    wide = torch.complex128 if ours.is_complex() else torch.float64
    gap = (ours.to(wide) - theirs.to(wide)).abs().nan_to_num(float("inf"))
    return f"{kinds[0]}: largest difference {gap.max().item():.6g}"


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
