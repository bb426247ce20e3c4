"""Several ranks on this machine, for tests and notebooks."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import torch
import torch.distributed as dist

from distkit.session import session

Start = Literal["auto", "fork", "spawn"]


class LaunchError(RuntimeError):
    """A rank failed. The message ends with the traceback of the one that failed first.

    Attributes:
        rank: which one.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank


def launch(
    fn: Callable[..., Any],
    nprocs: int,
    args: Sequence[Any] = (),
    *,
    timeout: float = 600.0,
    start: Start = "auto",
) -> list[Any]:
    """Run `fn(*args)` on `nprocs` ranks, each in a gloo session of its own process.

    The ranks meet at a store this process holds, on a port the system chose, so that launches side by
    side never collide.

    Args:
        fn: with `spawn` it must be importable; with `fork` a closure will do.
        nprocs: ranks.
        args: for `fn`; with `spawn` they are pickled.
        timeout: seconds for the whole, and for each collective within.
        start: `auto` forks on Linux as long as CUDA is not in use, and spawns elsewhere.

    Returns:
        what each rank returned, in the order of the ranks; it is pickled.

    Raises:
        LaunchError: a rank raised, died or did not end in time. The other ranks are ended first.
        ValueError: `nprocs` below 1.
    """
    if nprocs < 1:
        raise ValueError(f"nprocs must be 1 or more, found {nprocs}")
    if start == "auto":
        start = "fork" if sys.platform == "linux" and not torch.cuda.is_initialized() else "spawn"
    context = multiprocessing.get_context(start)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout))
    ranks: list[tuple[Any, Connection]] = []
    try:
        for rank in range(nprocs):
            receive, send = context.Pipe(duplex=False)
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(nprocs),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 joins our store and opens none
            }
            process = context.Process(target=_rank_main, args=(fn, args, environment, timeout, send))
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
                ok, value = receive.recv()  # type: ignore[union-attr]
            except EOFError:
                ranks[rank][0].join()
                code = ranks[rank][0].exitcode
                raise LaunchError(rank, f"rank {rank} died with exit code {code} and no traceback") from None
            if not ok:
                raise LaunchError(rank, f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(ranks))]


def _rank_main(
    fn: Callable[..., Any],
    args: Sequence[Any],
    environment: dict[str, str],
    timeout: float,
    send: Connection,
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with session("gloo", timeout):
            try:
                result = fn(*args)
            except BaseException:
                send.send((False, traceback.format_exc()))  # before the group goes and others fail for it
                raise
        send.send((True, result))
    except BaseException:
        try:
            send.send((False, traceback.format_exc()))
        except OSError:
            os._exit(1)  # the caller is gone
        os._exit(1)
    finally:
        send.close()
