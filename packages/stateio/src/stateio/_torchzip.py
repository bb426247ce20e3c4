"""The pickle form: the zip archive that ``torch.save`` writes, streamed, with a manifest as one more record.

``torch.load(weights_only=True)`` reads ``data.pkl`` and finds plain data and tensors. This package reads
``stateio.json`` instead: the same tree and the same offsets as in the SafeTensors form, so that both forms
give the same object and no pickle is executed for a file of our own.

Tensor records have a CRC of zero, as after ``torch.serialization.set_crc32_options(False)``: computing it
takes twice as long as writing, and torch does not check it.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any, BinaryIO

from ._errors import CorruptFileError, TruncatedFileError
from ._layout import FORMAT_VERSION, NO_DIGEST, Layout, StoredTensor, check_version, nbytes_of, seal, seal_is_intact
from ._stream import ByteWriter, Progress

if TYPE_CHECKING:
    from ._collect import Source

_ROOT = "stateio"  # the folder inside the zip; torch accepts any
_MANIFEST = f"{_ROOT}/stateio.json"
_MANIFEST_PREFIX = f'{{"stateio_version":{FORMAT_VERSION},"header":"'.encode()
_ALIGNMENT = 64
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
# What reading a damaged archive raises: zipfile checks less than it trusts.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_YEAR_1980 = 0x21  # the earliest date a zip can hold: equal inputs give equal files
_IN_EXTRA = 0xFFFFFFFF


@dataclass
class _Record:
    name: str
    size: int
    offset: int
    crc: int = 0


class _ZipWriter:
    """Stored (uncompressed) zip64 records, each one's bytes aligned, appended in one pass."""

    def __init__(self, writer: ByteWriter) -> None:
        self._writer = writer
        self._records: list[_Record] = []
        self._end = 0

    def begin(self, name: str, size: int, crc: int = 0) -> int:
        """Write a record's header; its bytes must follow. Returns where they begin in the file."""
        sizes = struct.pack("<HHQQ", 1, 16, size, size)
        unpadded = self._end + _LOCAL.size + len(name) + len(sizes) + 4
        padding = -unpadded % _ALIGNMENT
        extra = sizes + struct.pack("<2sH", b"FB", padding) + bytes(padding)
        fields = (45, 0, 0, 0, _YEAR_1980, crc, _IN_EXTRA, _IN_EXTRA, len(name), len(extra))
        self._writer.write(_LOCAL.pack(b"PK\3\4", *fields) + name.encode() + extra)
        self._records.append(_Record(name, size, self._end, crc))
        start = unpadded + padding
        self._end = start + size
        return start

    def add(self, name: str, data: bytes) -> None:
        self.begin(name, len(data), zlib.crc32(data))
        self._writer.write(data)

    def close(self) -> None:
        """Write the central directory."""
        start = self._end
        for record in self._records:
            extra = struct.pack("<HHQQQ", 1, 24, record.size, record.size, record.offset)
            fields = (45, 45, 0, 0, 0, _YEAR_1980, record.crc, _IN_EXTRA, _IN_EXTRA)
            fields += (len(record.name), len(extra), 0, 0, 0, 0, _IN_EXTRA)
            entry = _CENTRAL.pack(b"PK\1\2", *fields) + record.name.encode() + extra
            self._writer.write(entry)
            self._end += len(entry)
        count, size = len(self._records), self._end - start
        self._writer.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start))
        self._writer.write(struct.pack("<4sIQI", b"PK\6\7", 0, self._end, 1))
        self._writer.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, _IN_EXTRA, _IN_EXTRA, 0))


def write(
    file: FileIO,
    sources: Mapping[str, Source],
    tree: Any,
    metadata: Mapping[str, Any],
    *,
    progress: Progress | None,
) -> None:
    """Write a torch archive; arguments as in `_safetensors.write`."""
    from ._collect import contiguous_bytes
    from ._torchpickle import pickled

    writer = ByteWriter(file, progress)
    archive = _ZipWriter(writer)
    archive.add(f"{_ROOT}/data.pkl", pickled(sources, tree))
    archive.add(f"{_ROOT}/byteorder", sys.byteorder.encode())
    entries = {}
    for i, (name, source) in enumerate(sources.items()):
        offset = archive.begin(f"{_ROOT}/data/{i}", source.nbytes)
        digest = writer.tensor(contiguous_bytes(source))
        entries[name] = [source.dtype, list(source.shape), offset, digest]
    archive.add(f"{_ROOT}/version", b"3\n")
    own = {
        "stateio_version": FORMAT_VERSION,
        "header": NO_DIGEST,
        "tensors": entries,
        "metadata": metadata,
        "tree": tree,
    }
    manifest = json.dumps(own, separators=(",", ":")).encode()
    archive.add(_MANIFEST, seal(manifest, len(_MANIFEST_PREFIX)))
    archive.close()
    writer.flush()


def _manifest(file: BinaryIO) -> tuple[list[str], bytes | None]:
    """The names of an archive's records, and the manifest if there is one."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            return names, archive.read(_MANIFEST) if _MANIFEST in names else None
    except OSError as error:
        raise ValueError(str(error)) from None  # a seek to where a damaged directory points


def read_layout(path: str, *, verify: bool) -> Layout | None:
    """The layout of a torch archive that stateio wrote, None for one that others wrote.

    Raises:
        TruncatedFileError: the archive's directory, at its end, is missing.
        CorruptFileError: the manifest or the archive is damaged.
    """
    try:
        with open(path, "rb") as file:
            names, raw = _manifest(file)
    except _ZIP_ERRORS as error:
        problem = f"the zip archive has no readable directory ({error}): cut short or damaged"
        raise TruncatedFileError(problem, path=path) from None
    if raw is None:
        if any(name.startswith(f"{_ROOT}/") for name in names):
            raise CorruptFileError(f"an archive of stateio without its {_MANIFEST}: damaged", path=path)
        return None
    try:
        own = json.loads(raw)
        version = check_version(own["stateio_version"], path)
        intact = raw.startswith(_MANIFEST_PREFIX) and seal_is_intact(raw, len(_MANIFEST_PREFIX))
        if verify and not intact:
            raise CorruptFileError("its manifest does not match its digest: it changed after writing", path=path)
        tensors = {
            name: StoredTensor(name, dtype, tuple(shape), offset, nbytes_of(dtype, tuple(shape)), digest)
            for name, (dtype, shape, offset, digest) in own["tensors"].items()
        }
        return Layout(path, "pickle", tensors, own["tree"], own["metadata"], version)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"its stateio manifest is damaged ({error!r})", path=path) from None
