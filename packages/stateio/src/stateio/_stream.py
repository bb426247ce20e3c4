"""Move tensor bytes between memory and a file while a second thread hashes them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from types import TracebackType
from typing import Self

import xxhash

from ._errors import ChecksumError, TruncatedFileError
from ._layout import StoredTensor

Progress = Callable[[int], object]

SMALL = 1 << 18  # bytes; below this a thread hand-over or a system call of its own costs more than it saves
BUFFER = 1 << 22  # bytes of small tensors gathered into one write
PIECE = 1 << 26  # bytes moved between two progress reports


class ByteWriter:
    """Append bytes and tensors to a file: small ones gathered, large ones hashed as they are written."""

    def __init__(self, file: FileIO, progress: Progress | None = None) -> None:
        self._file = file
        self._progress = progress
        self._buffer = bytearray()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stateio-hash")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown()

    def write(self, data: bytes) -> None:
        """Append a few bytes that are no tensor's."""
        self._buffer += data

    def tensor(self, data: memoryview) -> str:
        """Append a tensor's bytes and return their xxh3."""
        if len(data) < SMALL:
            self._buffer += data
            if len(self._buffer) >= BUFFER:
                self.flush()
            digest = xxhash.xxh3_64_hexdigest(data)
            self._report(len(data))
            return digest
        self.flush()
        hashing = self._pool.submit(xxhash.xxh3_64_hexdigest, data)
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            write_all(self._file, piece)
            self._report(len(piece))
        return hashing.result()

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._buffer:
            write_all(self._file, memoryview(self._buffer))
            self._buffer = bytearray()

    def _report(self, nbytes: int) -> None:
        if self._progress is not None:
            self._progress(nbytes)


class ByteReader:
    """Read tensors of a file into memory by offset; `finish` raises for those whose xxh3 differs."""

    def __init__(self, path: str, *, verify: bool, progress: Progress | None = None) -> None:
        self._path = path
        self._verify = verify
        self._progress = progress
        self._file = FileIO(path, "r")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stateio-hash")
        self._hashing: list[tuple[StoredTensor, Future[str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._file.close()

    def into(self, stored: StoredTensor, target: memoryview) -> None:
        """Fill ``target`` (uint8, the tensor's size) with a tensor's bytes.

        Raises:
            TruncatedFileError: the file ends first.
            ChecksumError: at once for a small tensor, from `finish` for a large one.
        """
        if self._file.tell() != stored.offset:
            self._file.seek(stored.offset)
        for start in range(0, len(target), PIECE):
            piece = target[start : start + PIECE]
            read_all(self._file, piece, self._path, stored.name)
            if self._progress is not None:
                self._progress(len(piece))
        if not self._verify or stored.xxh3 is None:
            return
        if len(target) < SMALL:
            self._check(stored, xxhash.xxh3_64_hexdigest(target))
        else:
            self._hashing.append((stored, self._pool.submit(xxhash.xxh3_64_hexdigest, target)))

    def finish(self) -> None:
        """Wait for the hashes under way and compare them.

        Raises:
            ChecksumError: naming the file, the tensor, the expected and the found xxh3.
        """
        while self._hashing:
            stored, hashing = self._hashing.pop(0)
            self._check(stored, hashing.result())

    def _check(self, stored: StoredTensor, found: str) -> None:
        if found != stored.xxh3:
            problem = f"expected xxh3 {stored.xxh3}, found {found}: its bytes changed after they were written"
            raise ChecksumError(problem, path=self._path, tensor=stored.name)


def write_all(file: FileIO, data: memoryview) -> None:
    """Write all of ``data``; one system call may write less than it is given."""
    while len(data):
        written = file.write(data)
        data = data[written:]


def read_all(file: FileIO, target: memoryview, path: str, tensor: str | None = None) -> None:
    """Fill ``target`` or raise `TruncatedFileError`."""
    wanted = len(target)
    while len(target):
        count = file.readinto(target)
        if not count:
            problem = f"the file ends {len(target)} bytes before the {wanted} bytes read here do"
            raise TruncatedFileError(problem, path=path, tensor=tensor)
        target = target[count:]
