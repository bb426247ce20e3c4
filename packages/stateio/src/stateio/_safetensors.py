"""The SafeTensors form: a JSON header, then the tensors' bytes. Reading a header takes no torch.

Format: https://github.com/huggingface/safetensors#format. What stateio adds lives in one metadata string,
``stateio``, which comes first in the header so that the header's digest has a fixed place.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any

import orjson

from ._errors import CorruptFileError, ForeignFileError, TruncatedFileError
from ._layout import (
    FORMAT_VERSION,
    ITEM_SIZES,
    NO_DIGEST,
    Layout,
    StoredTensor,
    check_version,
    nbytes_of,
    seal,
    seal_is_intact,
)
from ._stream import ByteWriter, Progress, read_all, write_all

if TYPE_CHECKING:
    from ._collect import Source

DTYPE_OF_CODE = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
# Codes that readers of other versions may not know are not written: those dtypes go in as raw bytes.
_RECENT_CODES = {"F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"}
_CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items() if code not in _RECENT_CODES}
_ALIGNMENT = 64  # bytes; of the first tensor, so that a mapped file gives aligned tensors
_OWN_KEY = "stateio"
_DIGEST_PREFIX = f'{{"__metadata__":{{"stateio":"{{\\"stateio_version\\":{FORMAT_VERSION},\\"header\\":\\"'.encode()
_DIGESTS_PREFIX = _DIGEST_PREFIX + NO_DIGEST.encode() + b'\\",\\"xxh3\\":\\"'  # those of the tensors follow
OWN_MARK = b"stateio_version"  # in every header of ours, besides the key: one flipped bit leaves one of them


@dataclass(frozen=True)
class Header:
    """What a SafeTensors header says.

    Attributes:
        path: the file.
        tensors: by name, in the header's order; offsets count from the start of the file.
        metadata: the ``__metadata__`` strings as they stand.
        file_size: in bytes.
    """

    path: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    file_size: int
    raw: bytes


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a SafeTensors file, without torch and without reading a tensor.

    Raises:
        TruncatedFileError: the file is shorter than the header says.
        ForeignFileError: this is no SafeTensors file.
        CorruptFileError: the header contradicts itself or the file.
    """
    name = os.fspath(path)
    with FileIO(name, "r") as file:
        size = os.fstat(file.fileno()).st_size
        raw = _raw_header(file, size, name)
    try:
        header = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise CorruptFileError(f"the header is not JSON: {error}", path=name) from None
    if not isinstance(header, dict):
        raise CorruptFileError(f"expected a JSON object as header, found {type(header).__name__}", path=name)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptFileError("expected __metadata__ to map strings to strings", path=name)
    start = 8 + len(raw)
    tensors = {key: _parse_entry(key, entry, start, name) for key, entry in header.items()}
    _check_coverage(tensors.values(), start, size, name)
    return Header(name, tensors, metadata, size, raw)


def _raw_header(file: FileIO, size: int, name: str) -> bytes:
    if size == 0:
        raise TruncatedFileError("the file is empty", path=name)
    if size < 9:
        raise TruncatedFileError(f"expected more than the 8 bytes of a header's length, found {size}", path=name)
    start = bytearray(9)
    read_all(file, memoryview(start), name)
    (length,) = struct.unpack_from("<Q", start)
    if start[8:9] != b"{":
        raise ForeignFileError("this is no SafeTensors file: its header is not JSON", path=name)
    if 8 + length > size:
        raise TruncatedFileError(f"expected a header of {length} bytes, found {size - 8} in the file", path=name)
    raw = bytearray(length)
    file.seek(8)
    read_all(file, memoryview(raw), name)
    return bytes(raw)


def _parse_entry(key: str, entry: Any, start: int, path: str) -> StoredTensor:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        problem = f"expected dtype, shape and two data_offsets in its header entry, found {entry!r}"
        raise CorruptFileError(problem, path=path, tensor=key) from None
    dtype = DTYPE_OF_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        known = ", ".join(DTYPE_OF_CODE)
        raise CorruptFileError(f"unknown dtype {code!r}; expected one of {known}", path=path, tensor=key)
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CorruptFileError("expected shape and data_offsets to be natural numbers", path=path, tensor=key)
    stored = StoredTensor(key, dtype, tuple(shape), start + begin, end - begin)
    if nbytes_of(dtype, stored.shape) != stored.nbytes:
        expected = nbytes_of(dtype, stored.shape)
        problem = f"expected {expected} bytes for {code} {shape}, found data_offsets [{begin}, {end}]"
        raise CorruptFileError(problem, path=path, tensor=key)
    return stored


def _check_coverage(tensors: Any, start: int, size: int, path: str) -> None:
    """The tensors must cover the data part without gap or overlap."""
    end = start
    for stored in sorted(tensors, key=lambda stored: (stored.offset, stored.nbytes)):
        if stored.offset != end:
            problem = f"expected its bytes at offset {end}, found {stored.offset}"
            raise CorruptFileError(problem, path=path, tensor=stored.name)
        end = stored.offset + stored.nbytes
    if end > size:
        raise TruncatedFileError(f"expected {end} bytes, found {size}", path=path)
    if end < size:
        raise CorruptFileError(f"expected {end} bytes, found {size - end} more after the last tensor", path=path)


def read_layout(path: str, *, verify: bool) -> Layout:
    """The layout of a SafeTensors file, its header checked against its digest if ``verify``.

    In a file that others wrote, metadata strings that are JSON objects, arrays or quoted strings are parsed.
    With any of those the tensors go under ``module`` (and an entry of that name is left out); without, the
    object is the flat dict of tensors.
    """
    header = read_header(path)
    if _OWN_KEY in header.metadata:
        return _own_layout(header, header.metadata[_OWN_KEY], verify=verify)
    if OWN_MARK in header.raw:
        raise CorruptFileError(f"its metadata lacks {_OWN_KEY!r}: the header changed", path=path)
    tree: dict[str, Any] = {name: {"$t": name} for name in header.tensors}
    if len(tree) == 1:
        tree = escape_single(tree)
    metadata = {key: _parse_foreign(value) for key, value in header.metadata.items()}
    if any(value != header.metadata[key] for key, value in metadata.items()):
        entries = {key: value for key, value in metadata.items() if key != "module"}
        tree = {"module": tree, **{key: escape(value) for key, value in entries.items()}}
    return Layout(path, "safetensors", header.tensors, tree, metadata)


def _own_layout(header: Header, own: str, *, verify: bool) -> Layout:
    try:
        stateio = json.loads(own)
        version = check_version(stateio["stateio_version"], header.path)
        intact = header.raw.startswith(_DIGEST_PREFIX) and seal_is_intact(header.raw, len(_DIGEST_PREFIX))
        if verify and not intact:
            problem = "the header does not match its digest: it changed after stateio wrote it"
            raise CorruptFileError(f"{problem}; verify=False reads it regardless", path=header.path)
        digests, views, tree = stateio["xxh3"], stateio["views"], stateio["tree"]
        tensors = {}
        for i, stored in enumerate(header.tensors.values()):
            dtype = views.get(stored.name, stored.dtype)
            shape = stored.shape[:-1] if stored.name in views else stored.shape
            digest = digests[16 * i : 16 * (i + 1)]
            tensors[stored.name] = StoredTensor(stored.name, dtype, shape, stored.offset, stored.nbytes, digest)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"its stateio metadata is damaged ({error!r})", path=header.path) from None
    metadata = {key: _parse_foreign(value) for key, value in header.metadata.items() if key != _OWN_KEY}
    return Layout(header.path, "safetensors", tensors, tree, metadata, version)


def _parse_foreign(text: str) -> Any:
    """A metadata string, parsed if it can only be JSON: ``"1.0"`` stays a string."""
    if text[:1] not in ("{", "[", '"'):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def escape(value: Any) -> Any:
    """Plain JSON as a tree: an object that would read as a tag is written as ``$dict``."""
    if isinstance(value, list):
        return [escape(item) for item in value]
    if isinstance(value, dict):
        return escape_single({key: escape(item) for key, item in value.items()})
    return value


def escape_single(tree: dict[str, Any]) -> dict[str, Any]:
    """A dict tree that cannot be mistaken for a tag."""
    if len(tree) == 1 and next(iter(tree)).startswith("$"):
        return {"$dict": [list(item) for item in tree.items()]}
    return tree


def write(
    file: FileIO,
    sources: Mapping[str, Source],
    tree: Any,
    metadata: Mapping[str, Any],
    *,
    plain_metadata: Mapping[str, str],
    progress: Progress | None,
) -> None:
    """Write a SafeTensors file.

    Args:
        file: open for writing, empty.
        sources: what to store, by name.
        tree: the object's tree.
        metadata: entries to mirror as JSON strings.
        plain_metadata: entries to write as they are.
        progress: called with the bytes of each piece.
    """
    from ._collect import contiguous_bytes

    names = sorted(sources, key=lambda name: -ITEM_SIZES[sources[name].dtype])  # stable: every tensor is aligned
    raw = bytearray(_header(sources, names, tree, metadata, plain_metadata))
    file.seek(8 + len(raw))
    writer = ByteWriter(file, progress)
    digests = [writer.tensor(contiguous_bytes(sources[name])) for name in names]
    writer.flush()
    place = len(_DIGESTS_PREFIX)
    raw[place : place + 16 * len(names)] = "".join(digests).encode()
    file.seek(0)
    write_all(file, memoryview(struct.pack("<Q", len(raw)) + seal(bytes(raw), len(_DIGEST_PREFIX))))


def _header(
    sources: Mapping[str, Source],
    names: Sequence[str],
    tree: Any,
    metadata: Mapping[str, Any],
    plain_metadata: Mapping[str, str],
) -> bytes:
    """The header, padded so that the first tensor is aligned, with zeros where the digests go."""
    own = {
        "stateio_version": FORMAT_VERSION,
        "header": NO_DIGEST,
        "xxh3": NO_DIGEST * len(names),
        "views": {name: source.dtype for name, source in sources.items() if source.dtype not in _CODE_OF_DTYPE},
        "tree": tree,
    }
    strings = {_OWN_KEY: json.dumps(own, separators=(",", ":"))}
    strings |= {key: json.dumps(value) for key, value in metadata.items()} | plain_metadata
    entries = [f'"__metadata__":{orjson.dumps(strings).decode()}']
    end = 0
    for name in names:  # text, since one dict and two lists a tensor keep the garbage collector busy
        source = sources[name]
        begin, end = end, end + source.nbytes
        code, shape = _code_and_shape(source.dtype, source.shape)
        entries.append(f'{_quoted(name)}:{{"dtype":"{code}","shape":{shape},"data_offsets":[{begin},{end}]}}')
    raw = f"{{{','.join(entries)}}}".encode()
    return raw + b" " * (-(8 + len(raw)) % _ALIGNMENT)


@lru_cache(maxsize=1024)
def _code_and_shape(dtype: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """What a header entry says, as text. A dtype that has no code is raw bytes, its name among the views."""
    code = _CODE_OF_DTYPE.get(dtype)
    return ("U8", str([*shape, ITEM_SIZES[dtype]])) if code is None else (code, str([*shape]))
