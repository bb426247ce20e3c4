"""An engine whose module is placed and wrapped by Hugging Face accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from trainloop.torch_engine import TorchEngine

if TYPE_CHECKING:
    from accelerate import Accelerator


class AccelerateEngine(TorchEngine):
    """Trains a module that `Accelerator.prepare_model` put on its device and wrapped for its ranks.

    Accumulation, clipping, autocast and loss scaling are the trainer's, so they mean the same as on every
    other backend; the accelerator places, wraps and back-propagates.

    Args:
        name, module, optimizer, kwargs: as for `LocalEngine`, without `device`.
        accelerator: one with `mixed_precision="no"` and no accumulation of its own; made when None.

    Raises:
        ImportError: accelerate is not installed (`pip install trainloop[accelerate]`).
        ValueError: the accelerator accumulates or casts itself, or shards (FSDP, DeepSpeed).
    """

    synchronised = True

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        accelerator: Accelerator | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            from accelerate import Accelerator, DistributedType
        except ImportError as e:
            raise ImportError("AccelerateEngine needs accelerate: pip install trainloop[accelerate]") from e
        if accelerator is None:
            accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if accelerator.num_processes != ranks:
            raise ValueError(
                f"engine {name!r}: the accelerator counts {accelerator.num_processes} processes and the "
                f"process group {ranks}; on CPUs make it with Accelerator(cpu=True)"
            )
        if accelerator.mixed_precision != "no" or accelerator.gradient_accumulation_steps != 1:
            raise ValueError(
                f"engine {name!r}: give precision= to the engine and accumulate= to the trainer, and the "
                f"accelerator neither; it has mixed_precision={accelerator.mixed_precision!r} and "
                f"gradient_accumulation_steps={accelerator.gradient_accumulation_steps}"
            )
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"engine {name!r}: an accelerator of type {accelerator.distributed_type} shards; "
                "use FSDPEngine or DeepSpeedEngine"
            )
        super().__init__(name, module, optimizer, device=accelerator.device, **kwargs)
        self.accelerator = accelerator
        self.module = accelerator.prepare_model(module) if self.role == "train" else module

    @property
    def bare_module(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.module)

    def set_trainable(self, by: str, allowed: Mapping[str, bool]) -> None:
        if self.accelerator.num_processes > 1:
            raise ValueError(
                f"engine {self.name!r}: on several ranks accelerate wraps once for what is trained, and {by} would "
                "change that. Freeze before making the engine, or use DDPEngine, which is wrapped anew"
            )
        super().set_trainable(by, allowed)

    def forward_context(self, *, last: bool = True) -> AbstractContextManager[Any]:
        autocast = super().forward_context(last=last)
        if last:
            return autocast
        stack = ExitStack()
        stack.enter_context(self.accelerator.no_sync(self.module))
        stack.enter_context(autocast)
        return stack

    def _backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)
