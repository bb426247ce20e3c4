"""Several ranks on this machine, for tests and notebooks."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from distkit.session import session

Start = Literal["auto", "forkserver", "spawn"]
T = TypeVar("T")


class LaunchError(RuntimeError):
    """A rank failed. The message ends with the traceback of the one that failed first.

    Attributes:
        rank: which one.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank


def launch(
    fn: Callable[..., T],
    nprocs: int,
    args: Sequence[Any] = (),
    *,
    timeout: float = 600.0,
    start: Start = "auto",
) -> list[T]:
    """Run `fn(*args)` on `nprocs` ranks, each in a gloo session of its own process.

    The ranks meet at a store this process holds, on a port the system chose, so that launches side by
    side never collide. They are never forked from this process: torch may have started threads in it, and a
    lock that one of them held at that moment would stay locked in the rank for ever.

    Args:
        fn: importable; with cloudpickle installed (`distkit[closures]`) also a closure or a notebook's
            function. A script calls `launch` under `if __name__ == "__main__":`.
        nprocs: ranks.
        args: for `fn`; pickled.
        timeout: seconds for the whole, and for each collective within.
        start: `forkserver` forks the ranks from a clean process that has loaded torch, so that only the
            first launch waits for that; `spawn` starts each anew; `auto` is the first where it exists.

    Returns:
        what each rank returned, in the order of the ranks; it is pickled.

    Raises:
        LaunchError: a rank raised, died or did not end in time. The other ranks are ended first.
        ValueError: `nprocs` below 1.
        TypeError: `fn` or `args` cannot be pickled.
    """
    if nprocs < 1:
        raise ValueError(f"nprocs must be 1 or more, found {nprocs}")
    work = _pickled((fn, tuple(args)))
    context = _context(start)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout))
    ranks: list[tuple[Any, Connection]] = []
    try:
        for rank in range(nprocs):
            receive, send = context.Pipe(duplex=False)
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(nprocs),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 joins our store and opens none
            }
            process = context.Process(target=_rank_main, args=(work, environment, timeout, send))
            process.start()
            send.close()
            ranks.append((process, receive))
        return _collect(ranks, timeout)
    finally:
        for process, receive in ranks:
            if process.is_alive():
                process.kill()
            process.join()
            receive.close()


def _context(start: Start) -> Any:
    if start == "auto":
        start = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload([__name__])  # heeded when the server is not up yet
    return context


def _pickled(work: tuple[Callable[..., Any], tuple[Any, ...]]) -> bytes:
    try:
        pickler = importlib.import_module("cloudpickle")
    except ImportError:
        pickler = pickle
    try:
        return pickler.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as e:
        raise TypeError(
            f"launch: {work[0]!r} or its arguments cannot be pickled ({e}). Pass a function of a module; closures "
            "and a notebook's functions need cloudpickle: pip install distkit[closures]"
        ) from e


def _collect(ranks: list[tuple[Any, Connection]], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    pending = {receive: rank for rank, (_, receive) in enumerate(ranks)}
    end = time.monotonic() + timeout
    while pending:
        ready = wait(list(pending), timeout=max(0.0, end - time.monotonic()))
        if not ready:
            late = ", ".join(str(r) for r in sorted(pending.values()))
            raise LaunchError(min(pending.values()), f"rank {late} did not end within {timeout:g} s")
        for receive in ready:
            rank = pending.pop(receive)  # type: ignore[index]
            try:
                ok, value = pickle.loads(receive.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                ranks[rank][0].join()
                code = ranks[rank][0].exitcode
                raise LaunchError(rank, f"rank {rank} died with exit code {code} and no traceback") from None
            if not ok:
                raise LaunchError(rank, f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(ranks))]


def _rank_main(work: bytes, environment: dict[str, str], timeout: float, send: Connection) -> None:
    def tell(ok: bool, value: Any) -> None:
        send.send_bytes(pickle.dumps((ok, value)))  # send() would pass tensors as memory that ends with us

    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # a loader's workers start as they would anywhere
    torch.set_num_threads(1)
    try:
        fn, args = pickle.loads(work)
        with session("gloo", timeout):
            try:
                result = fn(*args)
            except BaseException:
                tell(False, traceback.format_exc())  # before the group goes and others fail for it
                raise
        tell(True, result)
    except BaseException:
        try:
            tell(False, traceback.format_exc())
        except OSError:
            os._exit(1)  # the caller is gone
        os._exit(1)
    finally:
        send.close()
