"""`.enc` files: one encoded utterance each, a pickled dict in a NumPy file, read without running what it holds."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from vall_e.data.store import DatasetError

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


# What a damaged or hostile pickle raises besides: an array or a length that no memory holds, among others.
_DAMAGED = (pickle.PickleError, MemoryError, OverflowError, RecursionError)
_LEVELS = 32  # more than any codec has, fewer than an utterance has frames


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and plain values; anything else in the pickle is refused before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which an encoded utterance does not need")


def read_enc(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(codes int64 [T, levels], metadata) of a file; they are stored levels first, [1, levels, T] or [levels, T].

    Raises:
        DatasetError: the file is missing, damaged, would run code, or asks for more memory than there is.
    """
    try:
        with path.open("rb") as f:
            held = _read_object(f)
        codes = np.asarray(held["codes"])
        metadata = dict(held.get("metadata") or {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, *_DAMAGED) as e:
        raise DatasetError(f"{path}: not a readable .enc file: {str(e) or type(e).__name__}") from e
    if codes.nbytes > path.stat().st_size:  # made without its content, it would be read as whatever memory holds
        raise DatasetError(f"{path}: not a readable .enc file: {codes.nbytes} bytes of codes in a smaller file")
    if codes.ndim == 3 and codes.shape[0] == 1:
        codes = codes[0]
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or len(codes) > _LEVELS:
        raise DatasetError(
            f"{path}: expected integer codes [1, levels, T] of up to {_LEVELS} levels, found {codes.dtype} "
            f"{list(codes.shape)}"
        )
    return codes.T.astype(np.int64), metadata


def _read_object(f: IO[bytes]) -> dict[str, Any]:
    version = np.lib.format.read_magic(f)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(f)
    if dtype != np.dtype(object) or shape not in ((), (1,)):
        raise ValueError(f"expected one pickled object, found an array of {dtype} {list(shape)}")
    held = _ArraysOnly(f).load()
    return held.item() if isinstance(held, np.ndarray) else held
