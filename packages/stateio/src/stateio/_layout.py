"""What both file forms have in common: named tensors at offsets, and a tree that says what goes where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from os import PathLike
from typing import Any

import xxhash

from ._errors import CorruptFileError, NewerVersionError

FORMAT_VERSION = 1

ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file.

    Attributes:
        name: its name in the file.
        dtype: the torch dtype's name, such as ``"bfloat16"``.
        shape: its shape.
        offset: where its bytes begin, counted from the start of the file.
        nbytes: how many bytes it takes.
        xxh3: 16 hexadecimal digits recorded when it was written, or None in files written by others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    xxh3: str | None = None


@dataclass(frozen=True)
class Layout:
    """A file whose every tensor can be read by offset.

    Attributes:
        path: the file.
        format: ``"safetensors"`` or ``"pickle"``.
        tensors: by name.
        tree: the tagged JSON tree of the whole object (see `_tree`).
        metadata: the plain entries that other readers see.
        version: of the stateio format, None for files written by others.
    """

    path: str
    format: str
    tensors: Mapping[str, StoredTensor]
    tree: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: int | None = None


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor of this dtype and shape."""
    return ITEM_SIZES[dtype] * prod(shape)


# A header carries its own digest at a fixed place: the digest of the header with zeros in that place.
NO_DIGEST = "0" * 16


def seal(raw: bytes, place: int) -> bytes:
    """``raw`` with the digest of itself written over the 16 zeros at ``place``."""
    digest = xxhash.xxh3_64_hexdigest(raw).encode()
    return raw[:place] + digest + raw[place + 16 :]


def seal_is_intact(raw: bytes, place: int) -> bool:
    """Whether ``raw`` still is what `seal` returned."""
    unsealed = raw[:place] + NO_DIGEST.encode() + raw[place + 16 :]
    return xxhash.xxh3_64_hexdigest(unsealed).encode() == raw[place : place + 16]


def check_version(version: Any, path: str | PathLike[str]) -> int:
    """The format version, when it is one that this code reads.

    Raises:
        NewerVersionError: written by a later stateio.
        CorruptFileError: not a version at all.
    """
    if not isinstance(version, int) or version < 1:
        raise CorruptFileError(f"expected a stateio format version, found {version!r}", path=path)
    if version > FORMAT_VERSION:
        problem = f"written in stateio format {version}; this stateio reads up to {FORMAT_VERSION}: upgrade it"
        raise NewerVersionError(problem, path=path)
    return version
