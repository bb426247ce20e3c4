"""Every way a state file can be wrong, each with a class of its own."""

from __future__ import annotations

from os import PathLike, fspath


class StateFileError(ValueError):
    """A state file cannot be read, written or applied.

    Attributes:
        path: the file, or None when the error is about an object in memory.
        tensor: the name of the tensor it is about, or None.
    """

    def __init__(self, problem: str, *, path: str | PathLike[str] | None = None, tensor: str | None = None) -> None:
        self.path = None if path is None else fspath(path)
        self.tensor = tensor
        where = [] if self.path is None else [self.path]
        if tensor is not None:
            where.append(f"tensor {tensor!r}")
        super().__init__(": ".join([*where, problem]))


class TruncatedFileError(StateFileError):
    """The file ends before its contents do (a zero-length file included)."""


class CorruptFileError(StateFileError):
    """The structure contradicts itself, or the header does not match its own digest."""


class ChecksumError(CorruptFileError):
    """A tensor's bytes do not match the xxh3 recorded when they were written."""


class ForeignFileError(StateFileError):
    """The file is neither SafeTensors, nor a torch pickle, nor a shard index."""


class NewerVersionError(StateFileError):
    """The file was written by a newer stateio than this one."""


class UnsafePickleError(StateFileError):
    """The pickle names something other than tensors and plain data, which could run code."""


class UnsupportedObjectError(StateFileError, TypeError):
    """An object in the state has no representation in a file; the message gives its path."""


class TargetMismatchError(StateFileError):
    """`load_into` found missing, unexpected or mismatched tensors under ``strict=True``."""
