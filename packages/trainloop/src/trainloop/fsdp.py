"""One process per device, parameters and optimizer sharded (FSDP2, `fully_shard`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainloop.nested import map_tensors
from trainloop.torch_engine import TorchEngine


class FSDPEngine(TorchEngine):
    """Trains a module of which every rank holds a part.

    Checkpoints hold the whole tensors, gathered on rank 0: they load into any number of ranks and into
    the other engines. Gradients are reduced in every micro-batch.

    Args:
        name, kwargs: as for `LocalEngine`.
        module: alike on all ranks; its parameters are sharded in place.
        optimizer: makes the optimizer from the sharded module: `lambda m: AdamW(m.parameters())`.
        scheduler: makes the scheduler from the optimizer, or None.
        layers: classes of submodules that are gathered one at a time.

    Raises:
        RuntimeError: there is no process group, or torch 2.6 on a CPU.
    """

    synchronised = True
    collective_forward = True
    collective_backward = True

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        layers: tuple[type[nn.Module], ...] = (),
        **kwargs: Any,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                f"engine {name!r}: FSDP needs a process group; start with torchrun and init_process_group"
            )
        device = torch.device(kwargs.get("device", "cpu"))
        if device.type == "cpu" and torch.__version__ < (2, 7):
            raise RuntimeError(
                f"engine {name!r}: FSDP on a CPU needs torch 2.7 or newer, found {torch.__version__}; use DDPEngine"
            )
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for child in list(module.modules()):
            if child is not module and isinstance(child, layers):
                fully_shard(child, mesh=self._mesh)
        fully_shard(module, mesh=self._mesh)
        made = optimizer(module)
        super().__init__(name, module, made, scheduler=scheduler(made) if scheduler else None, **kwargs)

    def load_module_state(self, state: dict[str, Any]) -> None:
        own = self.module.state_dict()
        sharded = {key: self._shard(value, own[key]) if key in own else value for key, value in state.items()}
        self.module.load_state_dict(sharded)

    def _norm(self, grads: list[torch.Tensor]) -> float:
        if not grads:
            return 0.0
        norm = torch.nn.utils.get_total_norm(grads)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _module_state(self) -> dict[str, Any]:
        return map_tensors(_whole, dict(self.module.state_dict()))

    def _optimizer_state(self) -> dict[str, Any]:
        return map_tensors(_whole, super()._optimizer_state())

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        sharded = {}
        for index, parameter in enumerate(self._parameters()):
            if index in state["state"]:
                sharded[index] = map_tensors(lambda t, p=parameter: self._shard(t, p), state["state"][index])
        super()._load_optimizer_state({**state, "state": sharded})

    def _shard(self, whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The part of `whole` this rank holds, where `like` is sharded and of the same shape."""
        if not isinstance(like, DTensor) or whole.shape != like.shape:
            return whole
        return distribute_tensor(whole.to(like.device), self._mesh, like.placements)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor on rank 0's CPU; an empty one elsewhere. Collective."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else full.new_empty(0)
