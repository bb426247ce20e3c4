"""Look at a state file without loading it, and check it without keeping it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._layout import StoredTensor


@dataclass(frozen=True)
class FileInfo:
    """What a state file holds.

    Attributes:
        path: the file (of a sharded save, its index).
        format: ``"safetensors"`` or ``"pickle"``.
        version: of the stateio format, None for files that others wrote.
        tensors: by name in the file.
        metadata: entries that other readers see as well, parsed.
        nbytes: of all tensors together.
        files: those that hold the tensors.
    """

    path: str
    format: str
    version: int | None
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Any]
    nbytes: int
    files: tuple[str, ...]


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """Names, shapes, dtypes, sizes and metadata. No tensor is read.

    Torch is imported only for a pickle that others wrote, whose tensors have neither offset nor digest.

    Raises:
        OSError, StateFileError: as `stateio.load`.
    """
    from ._open import Foreign, open_layout

    opened = open_layout(path, verify=True)
    if isinstance(opened, Foreign):
        from ._torchpickle import describe

        return describe(opened.path)
    whole = opened.whole
    nbytes = sum(stored.nbytes for stored in whole.tensors.values())
    files = tuple(part.path for part in opened.parts)
    return FileInfo(whole.path, whole.format, whole.version, whole.tensors, whole.metadata, nbytes, files)


def verify(path: str | os.PathLike[str]) -> int:
    """Read every tensor of a file and compare it with its xxh3.

    Returns:
        how many tensors were compared: 0 for files that others wrote, which record no digests.

    Raises:
        OSError, StateFileError: as `stateio.load`; `ChecksumError` names the tensor.
    """
    from ._open import Foreign, open_layout
    from ._stream import TensorReader

    opened = open_layout(path, verify=True)
    if isinstance(opened, Foreign):
        return 0
    compared = 0
    for part in opened.parts:
        with TensorReader(part.path, verify=True) as reader:
            for stored in part.tensors.values():
                reader.read([(stored, memoryview(bytearray(stored.nbytes)))])  # one at a time
                compared += stored.xxh3 is not None
    return compared
