"""Thin wrappers that pick the arguments most people want."""

from __future__ import annotations

from typing import Any

from torch import nn

from distkit.ranks import is_distributed


def wrap_ddp(module: nn.Module, *, find_unused_parameters: bool = False, **kwargs: Any) -> nn.Module:
    """`DistributedDataParallel` over the module's device; on one process the module itself.

    Args:
        module: on its device.
        find_unused_parameters: off, because it costs a walk of the graph each step; a parameter without a
            gradient is then an error of DDP's.
        kwargs: further ones for DDP.

    Raises:
        ValueError: the module has nothing to train, which DDP cannot wrap.
    """
    if not is_distributed():
        return module
    from torch.nn.parallel import DistributedDataParallel

    device = next((p.device for p in module.parameters() if p.requires_grad), None)
    if device is None:
        raise ValueError("wrap_ddp: the module has no parameter that requires a gradient")
    if device.type == "cuda":
        kwargs.setdefault("device_ids", [device.index])
    return DistributedDataParallel(module, find_unused_parameters=find_unused_parameters, **kwargs)


def wrap_fsdp2(module: nn.Module, *, layers: tuple[type[nn.Module], ...] = (), **kwargs: Any) -> nn.Module:
    """Shard a module's parameters in place over all ranks (`fully_shard`); on one process do nothing.

    Make the optimizer afterwards: the parameters are replaced.

    Args:
        module: on its device.
        layers: classes whose instances are sharded on their own first, so that one is gathered at a time.
        kwargs: for `fully_shard` (`mp_policy`, `mesh`, `reshard_after_forward`, …).

    Raises:
        RuntimeError: the module is on the CPU, where torch 2.6 cannot run it.
    """
    if not is_distributed():
        return module
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(module.parameters()).device.type
    if device == "cpu" and torch.__version__ < (2, 7):
        raise RuntimeError(f"wrap_fsdp2: on a CPU it needs torch 2.7 or newer, found {torch.__version__}; use wrap_ddp")
    if "mesh" not in kwargs:
        kwargs["mesh"] = init_device_mesh(device, (dist.get_world_size(),))
    for child in list(module.modules()):
        if child is not module and isinstance(child, layers):
            fully_shard(child, **kwargs)
    return fully_shard(module, **kwargs)
