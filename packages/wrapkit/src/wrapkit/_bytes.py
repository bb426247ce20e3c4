"""Bytes that tensors take, each piece of memory once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


def storage_key(tensor: Tensor) -> int:
    """Tells tensors apart by their memory: views and ties of one storage have one key. Works on meta tensors too."""
    return tensor.untyped_storage()._cdata


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, or those that a subclass such as torchao's quantised weights is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    else:
        yield tensor


def held_by(parameter: Tensor) -> Iterator[Tensor]:
    """The memory behind a parameter, with the scales that bitsandbytes hangs on its 8-bit ones."""
    yield from plain_tensors(parameter)
    scales = getattr(parameter, "SCB", None)
    if isinstance(scales, Tensor):
        yield scales


def module_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers directly on a module, and where bitsandbytes puts the scales in the first forward."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield from held_by(tensor)
    scales = getattr(getattr(module, "state", None), "SCB", None)
    if isinstance(scales, Tensor):
        yield scales


def nested_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in an optimizer's state."""
    if isinstance(value, Tensor):
        yield from plain_tensors(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from nested_tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from nested_tensors(item)


def total(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements; tensors that share their storage count once, as the largest of them."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        key = storage_key(tensor)
        sizes[key] = max(sizes.get(key, 0), tensor.numel() * tensor.element_size())
    return sum(sizes.values())


def readable(count: float) -> str:
    """
    >>> readable(512), readable(3 * 2**20)
    ('512 B', '3.0 MiB')
    """
    if count < 1024:
        return f"{count:.0f} B"
    power = min(int(math.log2(count)) // 10, 4)
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
