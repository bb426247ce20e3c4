"""Take an object apart into a tagged tree and the tensors to store, each once and named by its path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from ._errors import UnsupportedObjectError
from ._layout import ITEM_SIZES, nbytes_of
from ._memory import has_memory, memory_of
from ._tree import encode


@dataclass(slots=True)
class Source:
    """A tensor or numpy array to store: its value, and what it is in the file."""

    value: torch.Tensor | np.ndarray
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass
class Collected:
    """The parts of one object: the tree, and what it refers to by name."""

    tree: Any = None
    sources: dict[str, Source] = field(default_factory=dict)
    cast: torch.dtype | None = None
    _at: dict[int, tuple[str, ...]] = field(default_factory=dict)  # names of the sources that begin at an address

    def add(self, value: Any, path: tuple[str, ...]) -> str:
        """Name a tensor or array; one that is the same view of the same memory as an earlier one gets its name."""
        dtype, address = self._inspect(value, path)
        earlier = self._at.get(address, ())
        for name in earlier:
            if _is_same_view(self.sources[name].value, value):
                return name
        wanted = ".".join(path).encode("utf-8", "replace").decode() or "tensor"
        name, repeat = wanted, 1
        while name in self.sources or name == "__metadata__":  # the header's own key
            repeat += 1
            name = f"{wanted}#{repeat}"
        shape = tuple(value.shape)
        self.sources[name] = Source(value, dtype, shape, nbytes_of(dtype, shape))
        self._at[address] = (*earlier, name)
        return name

    def _inspect(self, value: Any, path: tuple[str, ...]) -> tuple[str, int]:
        """The dtype that a value gets in the file, and its address."""
        if isinstance(value, np.ndarray):
            return value.dtype.name, value.ctypes.data
        dtype = dtype_name(value.dtype)
        if value.layout is not torch.strided or dtype not in ITEM_SIZES or not has_memory(value):
            kind = f"a {type(value).__name__} of layout {value.layout}, dtype {value.dtype}"
            problem = f"at {'.'.join(path)}: expected a dense tensor, found {kind}; save its parts instead"
            raise UnsupportedObjectError(problem)
        if value.is_meta:
            raise UnsupportedObjectError(f"at {'.'.join(path)}: a tensor on the meta device has no bytes")
        if self.cast is not None and value.is_floating_point():
            dtype = dtype_name(self.cast)
        return dtype, value.data_ptr()


def collect(obj: Any, cast: torch.dtype | None = None) -> Collected:
    """Take ``obj`` apart. Nothing is copied and nothing in ``obj`` changes.

    When ``module`` is the only top-level entry that holds tensors, their names leave that prefix out, so
    that other readers find the model's own names.
    """
    parts = Collected(cast=cast)
    try:
        parts.tree = _encode_state(obj, parts)
    except RecursionError:
        raise UnsupportedObjectError("the object contains itself, or is nested too deeply") from None
    return parts


def _encode_state(obj: Any, parts: Collected) -> Any:
    if not _has_module(obj):
        return encode(obj, parts.add)
    rest = {key: encode(value, parts.add, (key,)) for key, value in obj.items() if key != "module"}
    module = encode(obj["module"], parts.add, ("module",) if parts.sources else ())
    return {key: module if key == "module" else rest[key] for key in obj}


def _has_module(obj: Any) -> bool:
    """Whether the object is laid out like a checkpoint: text keys, one of them ``module``, a dict."""
    if not isinstance(obj, Mapping) or not isinstance(obj.get("module"), Mapping):
        return False
    return all(type(key) is str for key in obj)


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` to ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from itself or from its name.

    Raises:
        ValueError: no dtype has this name.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"expected a torch dtype or its name, found {dtype!r}")
    return found


def _is_same_view(a: Any, b: Any) -> bool:
    """Whether two values that begin at the same address are the same view of the same memory."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if type(a) is not type(b) or a.size == 0:
            return a is b
        return (a.shape, a.strides, a.dtype) == (b.shape, b.strides, b.dtype)
    if a.numel() == 0:  # no memory to share
        return a is b
    same_shape = a.device == b.device and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
    return same_shape and a.is_conj() == b.is_conj() and a.is_neg() == b.is_neg()


def contiguous_bytes(source: Source) -> memoryview:
    """The bytes of a source in row-major order: its own memory where it can be, else a copy that the view owns."""
    value = source.value
    if source.nbytes == 0:
        return memoryview(b"")
    if isinstance(value, np.ndarray):
        return memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    as_it_is = value.is_cpu and value.is_contiguous() and dtype_name(value.dtype) == source.dtype
    if as_it_is and not value.is_neg() and not value.is_conj():
        return memory_of(value)
    value = value.detach().resolve_conj().resolve_neg()
    value = value.to(getattr(torch, source.dtype)).cpu().contiguous()
    return memoryview(value.reshape(-1).view(torch.uint8).numpy())


def mirror(tree: Any) -> Mapping[str, Any]:
    """The top-level entries of a tree without tensors, as plain JSON that any reader understands."""
    if not isinstance(tree, dict) or (len(tree) == 1 and next(iter(tree)).startswith("$")):
        return {}
    plain = {key: _plain(value) for key, value in tree.items() if key != "stateio"}  # our own entry
    return {key: value for key, value in plain.items() if value is not _NOT_PLAIN}


_NOT_PLAIN = object()


def _plain(tree: Any) -> Any:
    """A tree with tags resolved to the nearest JSON, or `_NOT_PLAIN`."""
    if isinstance(tree, list):
        return _all_plain(tree)
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        (tag, value), *_ = tree.items()
        if tag in ("$tuple", "$size"):
            return _all_plain(value)
        if tag in ("$path", "$dtype", "$device", "$datetime", "$date", "$time"):
            return value
        if tag == "$dict":
            # The keys are the user's own, also where one of them looks like a tag.
            named = {str(key): item for key, item in value if not isinstance(key, dict)}
            values = _all_plain(named.values())
            return _NOT_PLAIN if values is _NOT_PLAIN else dict(zip(named, values, strict=True))
        if tag.startswith("$"):
            return _NOT_PLAIN
    values = _all_plain(tree.values())
    return _NOT_PLAIN if values is _NOT_PLAIN else dict(zip(tree, values, strict=True))


def _all_plain(items: Iterable[Any]) -> Any:
    plain = [_plain(item) for item in items]
    return _NOT_PLAIN if any(item is _NOT_PLAIN for item in plain) else plain
