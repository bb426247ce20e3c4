"""Move tensor bytes between memory and a file, each piece hashed while the processor's cache holds it.

So a hash costs little more than nothing, and needs no thread of its own. Reading, several threads fill several
tensors, straight in their own memory: one core alone does not use all that memory can do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from types import TracebackType
from typing import Self

import xxhash

from ._errors import ChecksumError, TruncatedFileError
from ._layout import StoredTensor

Progress = Callable[[int], object]
Placed = tuple[StoredTensor, memoryview]  # a stored tensor and the memory it goes to

PIECE = 1 << 18  # bytes moved and hashed at a time: they fit into the cache that a core has to itself
BUFFER = 1 << 22  # bytes of tensors smaller than a piece, gathered into one write
_THREADS = min(4, os.cpu_count() or 1)  # for reading; more only compete for memory
_SPAN = 256  # neighbours read by one system call, which takes at most 1024 places, the gaps among them
_GAP = memoryview(bytearray(1 << 12))  # takes the bytes between neighbours; nobody looks at them


class ByteWriter:
    """Append bytes and tensors to a file, small ones gathered."""

    def __init__(self, file: FileIO, progress: Progress | None = None) -> None:
        self._file = file
        self._progress = progress
        self._buffer = bytearray()

    def write(self, data: bytes) -> None:
        """Append a few bytes that are no tensor's."""
        self._buffer += data

    def tensor(self, data: memoryview) -> str:
        """Append a tensor's bytes and return their xxh3."""
        if len(data) < PIECE:
            self._buffer += data
            if len(self._buffer) >= BUFFER:
                self.flush()
            self._report(len(data))
            return xxhash.xxh3_64_hexdigest(data)
        self.flush()
        digest = xxhash.xxh3_64()
        for piece in pieces(data):
            digest.update(piece)
            write_all(self._file, piece)
            self._report(len(piece))
        return digest.hexdigest()

    def _report(self, nbytes: int) -> None:
        if self._progress is not None:
            self._progress(nbytes)

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._buffer:
            write_all(self._file, memoryview(self._buffer))
            self._buffer = bytearray()


class TensorReader:
    """Read tensors of one file into memory by offset, several at a time, and compare their xxh3."""

    def __init__(self, path: str, *, verify: bool, progress: Progress | None = None) -> None:
        self._path = path
        self._verify = verify
        self._progress = progress
        self._file = FileIO(path, "r")
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="stateio-read")
        self._seeking = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._file.close()

    def read(self, placed: Iterable[Placed]) -> None:
        """Fill each memory (uint8, as long as its tensor) with its tensor's bytes.

        Raises:
            TruncatedFileError: the file ends first.
            ChecksumError: naming the file, the tensor, the expected and the found xxh3; of several, the first
                in the file. Other tensors may have been read by then.
        """
        spans = list(_spans(sorted(placed, key=lambda pair: pair[0].offset)))
        done = map(self._read_span, spans) if len(spans) == 1 else self._pool.map(self._read_span, spans)
        for nbytes in done:
            if self._progress is not None:
                self._progress(nbytes)

    def _read_span(self, span: Sequence[Placed]) -> int:
        """Read neighbours in one go, or a large tensor by pieces; returns the bytes of the tensors."""
        stored, memory = span[0]
        if len(span) == 1:
            digest, offset = xxhash.xxh3_64(), stored.offset
            for piece in pieces(memory):
                self._fill([piece], offset, span)
                offset += len(piece)
                if self._verify:
                    digest.update(piece)
            self._check(stored, digest.hexdigest())
            return len(memory)
        places, end = [], stored.offset
        for stored, memory in span:
            places += [_GAP[: stored.offset - end], memory]
            end = stored.offset + len(memory)
        self._fill(places, span[0][0].offset, span)
        for stored, memory in span:
            self._check(stored, xxhash.xxh3_64_hexdigest(memory) if self._verify else "")
        return sum(len(memory) for _, memory in span)

    def _fill(self, places: list[memoryview], offset: int, span: Sequence[Placed]) -> None:
        """Fill memory, one piece after the other, with what the file holds from ``offset`` on."""
        wanted = sum(map(len, places))
        while wanted:
            count = self._read_at(places, offset)
            if not count:
                cut = next(stored for stored, _ in span if stored.offset + stored.nbytes > offset)
                problem = f"the file ends at byte {offset}, before the {wanted} bytes read here do"
                raise TruncatedFileError(problem, path=self._path, tensor=cut.name)
            offset += count
            wanted -= count
            if wanted:  # a system call may read less than it is asked for
                places = _after(places, count)

    def _read_at(self, places: list[memoryview], offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), places, offset)
        with self._seeking:  # Windows
            self._file.seek(offset)
            return self._file.readinto(next(place for place in places if place)) or 0

    def _check(self, stored: StoredTensor, found: str) -> None:
        if self._verify and stored.xxh3 is not None and found != stored.xxh3:
            problem = f"expected xxh3 {stored.xxh3}, found {found}: its bytes changed after they were written"
            raise ChecksumError(problem, path=self._path, tensor=stored.name)


def _spans(placed: Iterable[Placed]) -> Iterator[list[Placed]]:
    """Neighbours in the file that are small together; a large tensor is alone."""
    span: list[Placed] = []
    end = size = 0
    for stored, memory in placed:
        gap = stored.offset - end
        if span and (len(span) == _SPAN or size + len(memory) > PIECE or not 0 <= gap <= len(_GAP)):
            yield span
            span, size = [], 0
        span.append((stored, memory))
        size += len(memory)
        end = stored.offset + len(memory)
    if span:
        yield span


def _after(places: list[memoryview], count: int) -> list[memoryview]:
    """What is left of memory once its first ``count`` bytes are filled."""
    left = []
    for place in places:
        skipped = min(count, len(place))
        count -= skipped
        left.append(place[skipped:])
    return left


def pieces(data: memoryview) -> Iterator[memoryview]:
    """``data``, a piece at a time."""
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def write_all(file: FileIO, data: memoryview) -> None:
    """Write all of ``data``; one system call may write less than it is given."""
    while len(data):
        data = data[file.write(data) :]


def read_all(file: FileIO, target: memoryview, path: str) -> None:
    """Fill ``target`` or raise `TruncatedFileError`."""
    wanted = len(target)
    while len(target):
        count = file.readinto(target)
        if not count:
            problem = f"the file ends {len(target)} bytes before the {wanted} bytes read here do"
            raise TruncatedFileError(problem, path=path)
        target = target[count:]
