"""Which rank this is: the process group's answer once there is one, the environment's before."""

from __future__ import annotations

import torch.distributed as dist

from distkit.environment import DistEnv


def is_distributed() -> bool:
    """Whether a process group of more than one rank is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process among all, from 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return DistEnv.read().rank


def world_size() -> int:
    """Processes in all."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return DistEnv.read().world_size


def local_rank() -> int:
    """This process on its machine, from 0."""
    return DistEnv.read().local_rank


def is_leader() -> bool:
    """Whether this is rank 0 of all."""
    return rank() == 0


def is_local_leader() -> bool:
    """Whether this is rank 0 of its machine."""
    return local_rank() == 0
