"""Replace a file in one step that survives a crash: the old content or the new, never a third thing.

Write to a temporary file beside the target, fsync it, rename it over the target, fsync the folder.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

_TEMP_NAME = re.compile(r"\.(?P<target>.+)\.(?P<host>[^~]+)~(?P<pid>\d+)~[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[FileIO]:
    """Open an unbuffered file that takes the place of ``path`` when the block ends without an error.

    A symbolic link at ``path`` is followed. The mode of the new file is 0o666 less the umask. Temporary
    files that dead writers left for the same target are removed first.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``path`` is untouched and the error
            names it.
    """
    target = Path(os.path.realpath(path))
    remove_stale_temporaries(target.parent, lambda name: name == target.name)
    temporary = temporary_path(target)
    try:
        with create_exclusive(temporary) as file:
            yield file
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename != os.fspath(target):
            raise type(error)(error.errno, error.strerror, os.fspath(target)) from error
        raise
    sync_folder(target.parent)


def create_exclusive(path: Path) -> FileIO:
    """Create ``path``, which must not exist, for reading and writing; its mode follows the umask."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return FileIO(os.open(path, flags, 0o666), "r+b")


def temporary_path(target: Path) -> Path:
    """A hidden name beside ``target`` that says which process on which host is writing it."""
    owner = f"{socket.gethostname()}~{os.getpid()}~{secrets.token_hex(4)}"
    return target.with_name(f".{target.name}.{owner}.tmp")


def remove_stale_temporaries(folder: Path, is_target: Callable[[str], object]) -> None:
    """Remove what writers left behind when they died.

    Args:
        folder: where to look.
        is_target: whether the file that a temporary one was to become is meant. Temporary files of other
            hosts are left alone.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return  # creating the temporary file reports the folder's problem
    for name in names:
        match = _TEMP_NAME.fullmatch(name)
        if match and is_target(match["target"]) and _writer_is_dead(match["host"], int(match["pid"])):
            with suppress(OSError):  # another process may be cleaning up as well
                (folder / name).unlink()


def _writer_is_dead(host: str, pid: int) -> bool:
    if host != socket.gethostname():
        return False
    if os.name == "nt":
        return pid != os.getpid()  # Windows refuses to remove a file that its writer holds open
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` durable. Windows offers no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
