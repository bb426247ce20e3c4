"""JSON that gives back what was put in: NaN, integer keys and paths survive or raise, none becomes null.

They are written as the tagged objects of `_tree`, such as ``{"$float": "nan"}``. A tuple becomes an array.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import orjson

from ._atomic import atomic_writer
from ._errors import CorruptFileError, UnsupportedObjectError
from ._stream import write_all
from ._tree import decode, encode

_REQUIRED = object()


def json_stringify(data: Any, *, truncate: int | None = None, pretty: bool = False) -> str:
    """``data`` as JSON text.

    Args:
        data: plain data, as in `stateio.save`, without tensors and arrays.
        truncate: keep this many significant digits of each float, for logs.
        pretty: indent by two spaces.

    Raises:
        UnsupportedObjectError: naming the path of what JSON cannot hold.
    """
    try:
        tree = _tuples_to_lists(encode(data, _refuse_tensor))
    except RecursionError:
        raise UnsupportedObjectError("the data contains itself, or is nested too deeply") from None
    if truncate is not None:
        tree = _shorten(tree, truncate)
    return orjson.dumps(tree, option=orjson.OPT_INDENT_2 if pretty else None).decode()


def json_parse(text: str | bytes) -> Any:
    """The data that `json_stringify` was given; any other JSON as it is.

    Raises:
        ValueError: not JSON; the message gives line and column.
    """
    return decode(orjson.loads(text), _refuse_name, _refuse_name)


def json_read(path: str | os.PathLike[str], default: Any = _REQUIRED) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        default: returned when the file does not exist; without it that is an error.

    Raises:
        FileNotFoundError: no file and no default.
        CorruptFileError: not JSON; the message names the file, line and column.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        if default is _REQUIRED:
            raise
        return default
    try:
        return json_parse(raw)
    except ValueError as error:
        raise CorruptFileError(f"expected JSON: {error}", path=path) from None


def json_write(data: Any, path: str | os.PathLike[str], *, truncate: int | None = None, pretty: bool = False) -> Path:
    """Write a JSON file in one step: readers find the old text or the new. See `json_stringify`."""
    text = json_stringify(data, truncate=truncate, pretty=pretty)
    with atomic_writer(path) as file:
        write_all(file, memoryview(text.encode()))
    return Path(path)


def _tuples_to_lists(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_tuples_to_lists(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1 and "$tuple" in tree:
        return _tuples_to_lists(tree["$tuple"])
    return {key: _tuples_to_lists(value) for key, value in tree.items()}


def _shorten(tree: Any, digits: int) -> Any:
    if type(tree) is float and math.isfinite(tree):
        return float(f"{tree:.{digits}g}")
    if isinstance(tree, list):
        return [_shorten(item, digits) for item in tree]
    if isinstance(tree, dict):
        return {key: _shorten(value, digits) for key, value in tree.items()}
    return tree


def _refuse_tensor(value: Any, path: tuple[str, ...]) -> str:
    where = ".".join(path) or "the top level"
    problem = f"at {where}: JSON holds no {type(value).__name__}; use .tolist(), or stateio.save for files"
    raise UnsupportedObjectError(problem)


def _refuse_name(name: str) -> Any:
    raise ValueError(f"a reference to the tensor {name!r}, which JSON cannot hold")
