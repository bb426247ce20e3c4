"""Small values that ranks exchange."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import torch
import torch.distributed as dist

from distkit.control import CollectiveError, collective
from distkit.ranks import is_distributed

Op = Literal["max", "min", "sum"]
_OPS = {"max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN, "sum": dist.ReduceOp.SUM}
T = TypeVar("T")


@overload
def agree(flags: int, op: Op = "max") -> int: ...
@overload
def agree(flags: Sequence[int], op: Op = "max") -> list[int]: ...
@overload
def agree(flags: Mapping[str, int], op: Op = "max") -> dict[str, int]: ...
def agree(flags: int | Sequence[int] | Mapping[str, int], op: Op = "max") -> int | list[int] | dict[str, int]:
    """Combine whole numbers (or booleans) over the ranks with one small all-reduce.

    Every rank passes as many, under the same names. `agree(stop)` is true everywhere once it is anywhere.

    Raises:
        ValueError: `op` is none of `max`, `min` and `sum`.
        CollectiveError: a rank is missing.
    """
    if op not in _OPS:
        raise ValueError(f"op must be one of {', '.join(_OPS)}, found {op!r}")
    names = sorted(flags) if isinstance(flags, Mapping) else None
    if names is not None:
        values = [int(flags[n]) for n in names]  # type: ignore[index]
    else:
        values = [int(flags)] if isinstance(flags, int) else [int(f) for f in flags]
    if is_distributed():
        tensor = torch.tensor(values, dtype=torch.int64)
        with collective("agree") as group:
            dist.all_reduce(tensor, op=_OPS[op], group=group)
        values = tensor.tolist()
    if names is not None:
        return dict(zip(names, values, strict=True))
    return values[0] if isinstance(flags, int) else values


def broadcast_object(value: T, src: int = 0) -> T:
    """`value` of rank `src`, on every rank; anything that can be pickled."""
    if not is_distributed():
        return value
    box = [value]
    with collective("broadcast_object") as group:
        dist.broadcast_object_list(box, src=src, group=group)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The value of every rank, in the order of the ranks, on every rank."""
    if not is_distributed():
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    with collective("gather_objects") as group:
        dist.all_gather_object(box, value, group=group)
    return box


def all_reduce_mean(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of each number over the ranks, in float64, by one all-reduce.

    Raises:
        CollectiveError: the ranks passed different names.
    """
    names = sorted(values)
    if not is_distributed():
        return {n: float(values[n]) for n in values}
    world = dist.get_world_size()
    # A checksum of the names and its square travel along: both come back as world times mine exactly when
    # all ranks sent the same. 26 bits, so that the square is exact in float64.
    mark = zlib.crc32("\0".join(names).encode()) & 0x3FFFFFF
    tensor = torch.tensor([mark, mark * mark, *(float(values[n]) for n in names)], dtype=torch.float64)
    with collective("all_reduce_mean") as group:
        dist.all_reduce(tensor, group=group)
    marks, squares, *sums = tensor.tolist()
    if marks != mark * world or squares != mark * mark * world:
        raise CollectiveError(f"all_reduce_mean: the ranks passed different names; this one {', '.join(names)}")
    means = {n: s / world for n, s in zip(names, sums, strict=True)}
    return {n: means[n] for n in values}
