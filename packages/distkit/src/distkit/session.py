"""A process group for the length of a `with` block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from distkit.attempt import fresh_store
from distkit.control import DEFAULT_TIMEOUT, barrier, close_control, open_control
from distkit.environment import DistEnv

Backend = Literal["auto", "gloo", "nccl"]


@contextmanager
def session(backend: Backend = "auto", timeout: float = DEFAULT_TIMEOUT) -> Iterator[DistEnv]:
    """Join the ranks the environment describes, and leave them at the end.

    A single process gets a group of one, which needs no port and no environment. At the end of the block
    the ranks wait for each other and the group is destroyed; when the block raises it is destroyed without
    waiting, so that a failing rank does not hang on the others. A process group that is up already is used
    and left alone.

    Args:
        backend: for tensors; `auto` is nccl where CUDA is, gloo elsewhere. With nccl the process's
            device becomes that of its local rank.
        timeout: seconds after which a collective without all ranks is an error.

    Yields:
        who this process is.

    Raises:
        EnvironmentIncomplete: see `DistEnv.read`.
        ValueError: another backend, or nccl without CUDA.
    """
    if backend not in ("auto", "gloo", "nccl"):
        raise ValueError(f"backend must be auto, gloo or nccl, found {backend!r}")
    if backend == "nccl" and not torch.cuda.is_available():
        raise ValueError("backend 'nccl' needs CUDA, which this machine has not; use gloo or auto")
    env = DistEnv.read()
    if dist.is_initialized():
        yield env
        return
    if torch.cuda.is_available() and backend != "gloo":
        torch.cuda.set_device(env.local_rank)
    _join(env, _resolve(backend), timedelta(seconds=timeout))
    try:
        open_control(timeout)
        yield env
        barrier()
    finally:
        close_control()
        dist.destroy_process_group()


def _resolve(backend: Backend) -> str:
    if backend == "auto":
        return "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    return backend


def _join(env: DistEnv, backend: str, timeout: timedelta) -> None:
    if env.world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env.source == "torchrun":
        store = dist.TCPStore(env.master_addr, env.master_port, is_master=False, timeout=timeout)
        store = fresh_store(store, env.rank, env.world_size, timeout)
        dist.init_process_group(backend, store=store, rank=env.rank, world_size=env.world_size, timeout=timeout)
        return
    dist.init_process_group(
        backend,
        init_method="env://" if env.source == "torchrun" else f"tcp://{env.master_addr}:{env.master_port}",
        rank=env.rank,
        world_size=env.world_size,
        timeout=timeout,
    )
