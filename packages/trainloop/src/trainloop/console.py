"""Lines typed while training runs, read without ever making it wait."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading
from collections import deque
from pathlib import Path

_POLL = 0.1  # seconds between two looks at a source that has nothing
_LONGEST = 65536  # bytes of one line; more is dropped, a command is short


class LineBuffer:
    """Cuts a stream of bytes into lines; half a line waits for its other half."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            self._rest = b""
        return [line.decode(errors="replace").strip() for line in lines if line.strip()]

    def flush(self) -> list[str]:
        """The last line, when the stream ended without a newline."""
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace").strip()] if rest.strip() else []


class Console:
    """Reads lines from stdin, and from a control file or FIFO, on a thread of its own.

    stdin may be closed, absent, `/dev/null`, a file or a pipe: the thread reads what there is and ends.
    It does not read a terminal while the process is in its background, which would stop the process.

    Args:
        stdin: whether to read it.
        control: a FIFO, or a file to which lines are appended, for runs without a terminal. Lines that
            are in the file already when the run starts count as old.
    """

    def __init__(self, stdin: bool = True, control: str | Path | None = None) -> None:
        self._lines: deque[str] = deque()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        fd = _stdin_fd() if stdin else None
        if fd is not None:
            self._start(self._read_fd, fd)
        if control is not None:
            path = Path(control)
            if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
                # Opened for writing too, so that it does not end when a writer closes it.
                self._start(self._read_fd, os.open(path, os.O_RDWR | os.O_NONBLOCK), True)
            else:
                offset = path.stat().st_size if path.exists() else 0
                self._start(self._follow, path, offset)

    def __bool__(self) -> bool:
        """Whether a line waits."""
        return bool(self._lines)

    def take(self) -> list[str]:
        """The lines that arrived since the last call, oldest first."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5 * _POLL)

    def _start(self, target, *args) -> None:
        thread = threading.Thread(target=target, args=args, name="trainloop-console", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _read_fd(self, fd: int, close: bool = False) -> None:
        buffer = LineBuffer()
        try:
            while not self._stop.is_set():
                if not _readable(fd):
                    continue
                data = os.read(fd, 4096)
                if not data:
                    self._lines.extend(buffer.flush())
                    return
                self._lines.extend(buffer.feed(data))
        except (OSError, ValueError):
            return  # closed underneath us: there is nothing more to read
        finally:
            if close:
                os.close(fd)

    def _follow(self, path: Path, offset: int) -> None:
        buffer = LineBuffer()
        while not self._stop.wait(_POLL):
            try:
                with path.open("rb") as f:
                    if os.fstat(f.fileno()).st_size < offset:
                        offset = 0  # truncated or replaced: it starts anew
                    f.seek(offset)
                    data = f.read()
            except OSError:
                continue
            offset += len(data)
            self._lines.extend(buffer.feed(data))


def _stdin_fd() -> int | None:
    try:
        fd = sys.stdin.fileno()
        os.fstat(fd)
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return None
    return fd


def _readable(fd: int) -> bool:
    """Whether a read would return at once; waits a moment when not."""
    if os.name == "nt":
        return True  # select() takes sockets alone there; the daemon thread simply blocks
    ready, _, _ = select.select([fd], [], [], _POLL)
    if not ready:
        return False
    if os.isatty(fd) and os.tcgetpgrp(fd) != os.getpgrp():
        threading.Event().wait(_POLL)
        return False
    return True
