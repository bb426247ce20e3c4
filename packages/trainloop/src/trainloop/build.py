"""The same model on another backend, by one word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from trainloop.engine import Engine

Backend = Literal["local", "ddp", "fsdp2", "deepspeed", "accelerate"]


def build_engine(
    backend: Backend,
    name: str,
    module: nn.Module,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    **kwargs: Any,
) -> Engine:
    """An engine of `backend`. The optimizer and the scheduler are given as functions that make them,
    because sharding backends replace the parameters first.

    Args:
        backend: `local`, `ddp`, `fsdp2`, `deepspeed` or `accelerate`.
        name, module, kwargs: as for `LocalEngine`, and what the backend's engine takes besides.
        optimizer: module to optimizer.
        scheduler: optimizer to scheduler, or None.

    Raises:
        ValueError: no such backend.
        ImportError: the backend's package is not installed.
    """
    if backend == "fsdp2":
        from trainloop.fsdp import FSDPEngine

        return FSDPEngine(name, module, optimizer, scheduler=scheduler, **kwargs)
    made = optimizer(module)
    schedule = scheduler(made) if scheduler is not None else None
    if backend == "local":
        from trainloop.local import LocalEngine

        return LocalEngine(name, module, made, scheduler=schedule, **kwargs)
    if backend == "ddp":
        from trainloop.ddp import DDPEngine

        return DDPEngine(name, module, made, scheduler=schedule, **kwargs)
    if backend == "deepspeed":
        from trainloop.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(name, module, made, scheduler=schedule, **kwargs)
    if backend == "accelerate":
        from trainloop.accelerate_engine import AccelerateEngine

        return AccelerateEngine(name, module, made, scheduler=schedule, **kwargs)
    raise ValueError(f"backend must be local, ddp, fsdp2, deepspeed or accelerate, found {backend!r}")
