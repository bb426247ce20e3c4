"""Any nesting of plain data and tensors as a JSON tree plus a flat dict of tensors, and back.

JSON stands for itself where it can: None, bool, int, str, finite float, list, and dict with string keys.
Everything else is an object with one key that begins with ``$``:

    {"$t": "name"}                a tensor of the file       {"$dict": [[key, value], ...]}   any other dict
    {"$tuple": [...]}             also $size, $set, $frozenset
    {"$float": "nan"}             also "inf", "-inf"         {"$int": "..."}  beyond 64 bits
    {"$utf32": base64}            text with lone surrogates
    {"$bytes": base64}            {"$path": "a/b"}           {"$dtype": "float32"}   {"$device": "cuda:0"}
    {"$np": ["<f4", base64]}      a numpy scalar             {"$array": [shape, "<U4", base64]}
    {"$ndarray": "name"}          a numpy array stored as a tensor of the file
    {"$complex": [re, im]}        {"$datetime": iso}         also $date, $time, $timedelta (seconds)

What has no equal on the way back is normalised on the way in: mapping types to dict, dataclasses to dict,
named tuples to tuple, enum members to their value, parameters to tensors.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from ._errors import UnsupportedObjectError
from ._layout import ITEM_SIZES

# A numpy dtype that torch has as well is stored as a tensor of the file, others as bytes in the tree.
TensorHook = Callable[[Any, tuple[str, ...]], str]


def encode(obj: Any, add_tensor: TensorHook, path: tuple[str, ...] = ()) -> Any:
    """The tagged JSON tree of ``obj``.

    Args:
        obj: anything the module docstring lists.
        add_tensor: called with each tensor or numpy array and its path of keys; returns its name.
        path: keys that led here.

    Raises:
        UnsupportedObjectError: naming the path and the type.
    """
    kind = type(obj)
    if obj is None or kind is bool:
        return obj
    if kind is str:
        return obj if _is_unicode(obj) else {"$utf32": _base64(obj.encode("utf-32-le", "surrogatepass"))}
    if kind is int:
        return obj if -(2**63) <= obj < 2**63 else {"$int": str(obj)}
    if kind is float:
        return obj if math.isfinite(obj) else {"$float": repr(obj)}
    if kind is dict:
        return _encode_dict(obj, add_tensor, path)
    if kind is list:
        return [encode(item, add_tensor, (*path, str(i))) for i, item in enumerate(obj)]
    if kind is tuple:
        return {"$tuple": [encode(item, add_tensor, (*path, str(i))) for i, item in enumerate(obj)]}
    return _encode_other(obj, add_tensor, path)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: JSON would join two lone surrogates into one character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


def _encode_dict(obj: Mapping[Any, Any], add_tensor: TensorHook, path: tuple[str, ...]) -> Any:
    plain = all(type(key) is str and _is_unicode(key) for key in obj)
    if plain and len(obj) == 1:
        plain = not next(iter(obj)).startswith("$")
    if plain:
        return {key: encode(value, add_tensor, (*path, key)) for key, value in obj.items()}
    return {
        "$dict": [
            [encode(key, add_tensor, path), encode(value, add_tensor, (*path, str(key)))] for key, value in obj.items()
        ]
    }


def _encode_other(obj: Any, add_tensor: TensorHook, path: tuple[str, ...]) -> Any:
    torch = sys.modules.get("torch")  # an object of torch's exists only where torch is imported
    if torch is not None:
        if isinstance(obj, torch.Tensor):
            return {"$t": add_tensor(obj, path)}
        if isinstance(obj, torch.dtype):
            return {"$dtype": str(obj).removeprefix("torch.")}
        if isinstance(obj, torch.device):
            return {"$device": str(obj)}
        if isinstance(obj, torch.Size):
            return {"$size": list(obj)}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(obj, numpy.ndarray | numpy.generic):
        return _encode_numpy(numpy, obj, add_tensor, path)
    if isinstance(obj, enum.Enum):
        return encode(obj.value, add_tensor, path)
    if isinstance(obj, bytes | bytearray):
        return {"$bytes": _base64(obj)}
    if isinstance(obj, PurePath):
        return {"$path": str(obj)}
    if isinstance(obj, complex):
        return {"$complex": [encode(obj.real, add_tensor, path), encode(obj.imag, add_tensor, path)]}
    if isinstance(obj, set | frozenset):
        tag = "$set" if isinstance(obj, set) else "$frozenset"
        return {tag: [encode(item, add_tensor, path) for item in obj]}
    if isinstance(obj, datetime.datetime | datetime.date | datetime.time):
        return {f"${_date_kind(obj)}": obj.isoformat()}
    if isinstance(obj, datetime.timedelta):
        return {"$timedelta": [obj.days, obj.seconds, obj.microseconds]}
    if isinstance(obj, Mapping):
        return _encode_dict(obj, add_tensor, path)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
        return _encode_dict(fields, add_tensor, path)
    for base in (str, bool, int, float, list, tuple):  # subclasses: a named tuple, a list of a library
        if isinstance(obj, base):
            return encode(base(obj), add_tensor, path)
    where = ".".join(path) or "the top level"
    problem = (
        f"at {where}: expected plain data, a tensor or a numpy value, "
        f"found {type(obj).__module__}.{type(obj).__qualname__}; convert it before saving"
    )
    raise UnsupportedObjectError(problem)


def _date_kind(obj: datetime.datetime | datetime.date | datetime.time) -> str:
    if isinstance(obj, datetime.datetime):
        return "datetime"
    return "date" if isinstance(obj, datetime.date) else "time"


def _encode_numpy(numpy: Any, obj: Any, add_tensor: TensorHook, path: tuple[str, ...]) -> Any:
    if obj.dtype.hasobject or obj.dtype.fields is not None:
        where = ".".join(path) or "the top level"
        raise UnsupportedObjectError(f"at {where}: a numpy value of dtype {obj.dtype} has no fixed bytes")
    if isinstance(obj, numpy.generic):
        return {"$np": [obj.dtype.str, _base64(obj.tobytes())]}
    if obj.dtype.isnative and obj.dtype.name in ITEM_SIZES:
        return {"$ndarray": add_tensor(obj, path)}
    return {"$array": [list(obj.shape), obj.dtype.str, _base64(obj.tobytes())]}


def decode(tree: Any, tensor: Callable[[str], Any], array: Callable[[str], Any], *, plain: bool = False) -> Any:
    """The object that `encode` was given.

    Args:
        tree: what `encode` returned.
        tensor: gives the tensor of a name.
        array: gives the numpy array of a name.
        plain: give the nearest of the types that ``torch.load(weights_only=True)`` accepts.
    """
    leaves = _PLAIN_LEAVES if plain else _LEAVES
    sequences = _PLAIN_SEQUENCES if plain else _SEQUENCES

    def visit(node: Any) -> Any:
        if isinstance(node, list):
            return [visit(item) for item in node]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            (tag, value), *_ = node.items()
            if tag.startswith("$"):
                return visit_tag(tag, value)
        return {key: visit(value) for key, value in node.items()}

    def visit_tag(tag: str, value: Any) -> Any:
        if tag == "$t":
            return tensor(value)
        if tag == "$ndarray":
            return array(value)
        if tag in sequences:
            return sequences[tag](visit(item) for item in value)
        if tag == "$dict":
            return {visit(key): visit(item) for key, item in value}
        if tag == "$complex":
            return complex(*map(visit, value))
        if tag in leaves:
            return leaves[tag](value)
        raise ValueError(f"unknown tag {tag!r}")

    return visit(tree)


def _numpy_value(shape: list[int], dtype: str, data: str) -> Any:
    import numpy

    return numpy.frombuffer(base64.b64decode(data), dtype=numpy.dtype(dtype)).reshape(shape).copy()


def _torch_name(name: str) -> Any:
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no torch dtype is named {name!r}")
    return dtype


def _torch_device(name: str) -> Any:
    import torch

    return torch.device(name)


def _torch_size(items: list[int]) -> Any:
    import torch

    return torch.Size(items)


_SEQUENCES: dict[str, Callable[[Any], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
_LEAVES: dict[str, Callable[[Any], Any]] = {
    "$int": int,
    "$float": float,
    "$bytes": base64.b64decode,
    "$utf32": lambda value: base64.b64decode(value).decode("utf-32-le", "surrogatepass"),
    "$path": Path,
    "$dtype": _torch_name,
    "$device": _torch_device,
    "$size": _torch_size,
    "$np": lambda value: _numpy_value([], *value)[()],
    "$array": lambda value: _numpy_value(*value),
    "$datetime": datetime.datetime.fromisoformat,
    "$date": datetime.date.fromisoformat,
    "$time": datetime.time.fromisoformat,
    "$timedelta": lambda value: datetime.timedelta(*value),
}

_PLAIN_SEQUENCES = {"$tuple": tuple, "$set": list, "$frozenset": list}
_PLAIN_LEAVES = _LEAVES | {
    "$path": str,
    "$np": lambda value: _numpy_value([], *value).tolist(),
    "$array": lambda value: _numpy_value(*value).tolist(),
    "$datetime": str,
    "$date": str,
    "$time": str,
    "$timedelta": lambda value: datetime.timedelta(*value).total_seconds(),
}
