"""Batches and metrics are nested containers; these walk them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def map_tensors(fn: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """`tree` with `fn` applied to every tensor; dicts, lists, tuples and named tuples keep their type."""
    if isinstance(tree, torch.Tensor):
        return fn(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(fn, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(fn, value) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(fn, value) for value in tree)
    return tree


def to_device(tree: Any, device: torch.device | str, non_blocking: bool = True) -> Any:
    """`tree` with every tensor on `device`. `non_blocking` overlaps the copy when memory is pinned."""
    return map_tensors(lambda t: t.to(device, non_blocking=non_blocking), tree)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`: one level, for logs."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
