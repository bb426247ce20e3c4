"""Where two states differ, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """The first place where two nested states differ, described; None when they are alike to the bit."""
    where = path or "the top"
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{where}: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        if torch.equal(_bits(a), _bits(b)):
            return None
        apart = (a.double() - b.double()).abs().max().item() if a.is_floating_point() else None
        return f"{where}: tensors differ" + ("" if apart is None else f", by up to {apart:.3g}")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            return f"{where}: the keys differ, {sorted(map(str, a.keys() ^ b.keys()))[0]} is in one alone"
        return _first((a[k], b[k], f"{path}.{k}" if path else str(k)) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} items"
        return _first(((x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))))
    if type(a) is not type(b) or repr(a) != repr(b):
        return f"{where}: {a!r} and {b!r}"
    return None


def _first(pairs: Any) -> str | None:
    for a, b, path in pairs:
        found = first_difference(a, b, path)
        if found is not None:
            return found
    return None


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if t.numel() else t
