"""A small, safe surface over torch.distributed. Everything is a no-op on one process."""

from importlib.metadata import version

from distkit.control import CollectiveError, LeaderOnlyError, barrier
from distkit.environment import DistEnv, EnvironmentIncomplete, fill_env
from distkit.launch import LaunchError, launch
from distkit.leader import leader_first, leader_only
from distkit.port import free_port
from distkit.ranks import is_distributed, is_leader, is_local_leader, local_rank, rank, world_size
from distkit.same import RanksDiffer, check_same
from distkit.seed import seed_all
from distkit.session import session
from distkit.together import RankFailed, raise_together
from distkit.words import agree, all_reduce_mean, broadcast_object, gather_objects
from distkit.wrap import wrap_ddp, wrap_fsdp2

__version__ = version("distkit")
__all__ = [
    "CollectiveError",
    "DistEnv",
    "EnvironmentIncomplete",
    "LaunchError",
    "LeaderOnlyError",
    "RankFailed",
    "RanksDiffer",
    "__version__",
    "agree",
    "all_reduce_mean",
    "barrier",
    "broadcast_object",
    "check_same",
    "fill_env",
    "free_port",
    "gather_objects",
    "is_distributed",
    "is_leader",
    "is_local_leader",
    "launch",
    "leader_first",
    "leader_only",
    "local_rank",
    "raise_together",
    "rank",
    "seed_all",
    "session",
    "world_size",
    "wrap_ddp",
    "wrap_fsdp2",
]
