"""One process per device, gradients averaged (DistributedDataParallel)."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainloop.step import StepReport
from trainloop.torch_engine import TorchEngine


class DDPEngine(TorchEngine):
    """Trains a module on every rank, each with its own data, as if on all of it at once.

    Gradients travel once per window, in the last micro-batch. Buffers (running statistics) follow rank 0
    after every window. Without a process group, or alone in it, it is a `LocalEngine`.

    Args:
        name, module, optimizer, kwargs: as for `LocalEngine`; the module and the optimizer's state are alike
            on all ranks.
        ddp: further arguments for `DistributedDataParallel`.
    """

    synchronised = True

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        ddp: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, module, optimizer, **kwargs)
        self._bare = module
        self._options: dict[str, Any] = {"broadcast_buffers": False}
        if self.device.type == "cuda":
            self._options["device_ids"] = [self.device.index]
        self._options |= ddp or {}
        self._wrapped: DistributedDataParallel | None = None
        if self.role == "train" and dist.is_initialized() and dist.get_world_size() > 1:
            self._wrap()

    def _wrap(self) -> None:
        self.module = self._wrapped = DistributedDataParallel(self._bare, **self._options)
        self._reduced = {n for n, p in self._bare.named_parameters() if p.requires_grad}

    @property
    def bare_module(self) -> nn.Module:
        return self._bare

    def forward_context(self, *, last: bool = True) -> AbstractContextManager[Any]:
        autocast = super().forward_context(last=last)
        if last or self._wrapped is None:
            return autocast
        stack = ExitStack()
        stack.enter_context(self._wrapped.no_sync())
        stack.enter_context(autocast)
        return stack

    def skip(self, reason: str, norm: float = math.nan) -> StepReport:
        if self._wrapped is not None:
            # A rank whose forward pass was the last of the window already told DDP to expect its backward.
            self._wrapped.reducer._reset_state()
        return super().skip(reason, norm)

    def _prepare_for(self, trained: set[str]) -> None:
        """DDP reduces what took gradients when it was made and waits for all of it: make it anew. Collective."""
        if self._wrapped is None or trained == self._reduced:
            return
        del self._wrapped.reducer, self._wrapped.logger  # the last references: its hooks leave the parameters
        self._wrap()

    def _after_window(self) -> None:
        if self._wrapped is None:
            return
        # DDP reorders its buckets once, by a collective inside the forward pass after the first backward.
        # Done here, where all ranks are, a rank that fails before that forward leaves nobody waiting.
        self._wrapped.reducer._rebuild_buckets()
        for buffer in self._bare.buffers():
            dist.broadcast(buffer, 0)
