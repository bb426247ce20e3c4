"""Torch's own pickles: the one inside an archive of ours, for other readers, and those that others wrote."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ._collect import Source, dtype_name
from ._errors import CorruptFileError, StateFileError, UnsafePickleError
from ._inspect import FileInfo
from ._layout import ITEM_SIZES, StoredTensor
from ._tree import decode

_TYPED_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}


@dataclass(frozen=True, eq=False)
class _TensorSlot:
    """Stands for a tensor while the tree is pickled."""

    key: str
    source: Source


@dataclass(frozen=True, eq=False)
class _StorageSlot:
    key: str
    source: Source


class _Pickler(pickle.Pickler):
    """Pickles slots the way torch pickles tensors: rebuilt from storages that the archive holds."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _TensorSlot):
            return NotImplemented
        shape, stride, step = obj.source.shape, [], 1
        for length in reversed(shape):
            stride.insert(0, step)
            step *= max(length, 1)
        arguments = (_StorageSlot(obj.key, obj.source), 0, shape, tuple(stride), False, OrderedDict())
        if obj.source.dtype in _TYPED_STORAGES:
            return torch._utils._rebuild_tensor_v2, arguments
        return torch._utils._rebuild_tensor_v3, (*arguments, getattr(torch, obj.source.dtype))

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _StorageSlot):
            return None
        typed = _TYPED_STORAGES.get(obj.source.dtype)
        if typed is None:
            return ("storage", torch.UntypedStorage, obj.key, "cpu", obj.source.nbytes)
        count = obj.source.nbytes // ITEM_SIZES[obj.source.dtype]
        return ("storage", getattr(torch, typed), obj.key, "cpu", count)


def pickled(sources: Mapping[str, Source], tree: Any) -> bytes:
    """``data.pkl`` of an archive: what ``weights_only`` rejects is replaced by the nearest plain data."""
    slots = {name: _TensorSlot(str(i), source) for i, (name, source) in enumerate(sources.items())}
    buffer = io.BytesIO()
    plain = decode(tree, slots.__getitem__, slots.__getitem__, plain=True)
    _Pickler(buffer, protocol=2).dump(plain)
    return buffer.getvalue()


def load_foreign(path: str, *, unsafe: bool, lazy: bool, device: str = "cpu") -> Any:
    """Read a torch pickle that others wrote.

    Args:
        path: the file.
        unsafe: let it run what it names.
        lazy: map the tensors instead of reading them, where the file is an archive.
        device: ``"cpu"``, or ``"meta"`` for shapes and dtypes alone.

    Raises:
        UnsafePickleError: it names something other than tensors and plain data, and ``unsafe`` is off.
        CorruptFileError: torch cannot read it.
    """
    mapped = lazy and zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what matters is raised
            return torch.load(path, map_location=device, weights_only=not unsafe, mmap=mapped or None)
    except OSError:
        raise
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise _translated(error, path) from error


def _translated(error: Exception, path: str) -> StateFileError:
    lines = str(error).splitlines() or [repr(error)]
    if isinstance(error, pickle.UnpicklingError):
        reason = next((line.strip() for line in lines if "GLOBAL" in line or "Unsupported" in line), None)
        if reason is not None:
            problem = f"{reason}; unsafe=True runs what it asks for: only for files you trust"
            return UnsafePickleError(problem, path=path)
    return CorruptFileError(f"torch cannot read it: {lines[0]}", path=path)


def describe(path: str) -> FileInfo:
    """What a pickle that others wrote holds; its tensors have no known offset (-1) and no digest."""
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, Any] = {}

    def visit(node: Any, name: str) -> None:
        if isinstance(node, torch.Tensor):
            nbytes = node.numel() * node.element_size()
            tensors[name] = StoredTensor(name, dtype_name(node.dtype), tuple(node.shape), -1, nbytes)
        elif isinstance(node, Mapping):
            for key, value in node.items():
                visit(value, f"{name}.{key}" if name else str(key))
        elif isinstance(node, list | tuple):
            for i, value in enumerate(node):
                visit(value, f"{name}.{i}" if name else str(i))

    state = load_foreign(path, unsafe=False, lazy=False, device="meta")
    for key, value in state.items() if isinstance(state, Mapping) else [("", state)]:
        before = len(tensors)
        visit(value, str(key))
        if len(tensors) == before:
            metadata[str(key)] = value
    nbytes = sum(stored.nbytes for stored in tensors.values())
    return FileInfo(path, "pickle", None, tensors, metadata, nbytes, (path,))
