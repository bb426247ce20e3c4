"""Who this process is among the ranks, read from the environment each time it is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

from distkit.port import free_port

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
)


class EnvironmentIncomplete(RuntimeError):
    """The environment describes several ranks, but not fully. Names the variables that are missing."""


@dataclass(frozen=True, slots=True)
class DistEnv:
    """One process among several.

    Attributes:
        rank: of this process among all, from 0.
        local_rank: of this process on its machine, from 0.
        world_size: processes in all.
        master_addr, master_port: where rank 0 can be reached; None on a single process.
        source: what described it: `torchrun` (or anything that sets the same variables), `slurm`, `mpi`,
            or `single`.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    master_addr: str | None = None
    master_port: int | None = None
    source: Literal["torchrun", "slurm", "mpi", "single"] = "single"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size} ranks")
        if self.local_rank < 0:
            raise ValueError(f"local rank {self.local_rank} is negative")

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> DistEnv:
        """Read it from `environ` (`os.environ`): torchrun's variables, then SLURM's, then MPI's.

        Under SLURM only a step (`srun`) counts: the batch script itself runs once, whatever the number of
        tasks it asked for.

        Raises:
            EnvironmentIncomplete: some of torchrun's variables are set and others are not, or several
                ranks have no address to meet at.
            ValueError: a variable is not the number it has to be.
        """
        env = os.environ if environ is None else environ
        if any(name in env for name in _TORCHRUN[:3]):
            return cls._torchrun(env)
        if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
            return cls._slurm(env)
        for names in _MPI:
            if names[0] in env and names[1] in env:
                return cls._mpi(env, *names)
        return cls()

    @classmethod
    def _torchrun(cls, env: Mapping[str, str]) -> DistEnv:
        missing = [name for name in _TORCHRUN if name not in env]
        if missing:
            raise EnvironmentIncomplete(
                f"{', '.join(n for n in _TORCHRUN if n in env)} set, but not {', '.join(missing)}. Start the "
                "ranks with torchrun, set all five, or unset them for a single process (fill_env() sets the "
                "missing ones)"
            )
        return cls(
            _number(env, "RANK"),
            _number(env, "LOCAL_RANK"),
            _number(env, "WORLD_SIZE"),
            env["MASTER_ADDR"],
            _number(env, "MASTER_PORT"),
            "torchrun",
        )

    @classmethod
    def _slurm(cls, env: Mapping[str, str]) -> DistEnv:
        world = _number(env, "SLURM_STEP_NUM_TASKS")
        if "SLURM_LOCALID" not in env:
            raise EnvironmentIncomplete("SLURM_PROCID set, but not SLURM_LOCALID; start the ranks with srun")
        address, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT")
        if address is None:
            nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
            if nodes is None and world > 1:
                raise EnvironmentIncomplete("several SLURM tasks, but neither MASTER_ADDR nor SLURM_STEP_NODELIST")
            address = first_host(nodes) if nodes else "127.0.0.1"
        if port is None:
            # The same on every rank, and seldom the same for two jobs that share a machine.
            port = str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)
        rank, local = _number(env, "SLURM_PROCID"), _number(env, "SLURM_LOCALID")
        return cls(rank, local, world, address, _number({"MASTER_PORT": port}, "MASTER_PORT"), "slurm")

    @classmethod
    def _mpi(cls, env: Mapping[str, str], rank: str, size: str, local: str) -> DistEnv:
        world = _number(env, size)
        missing = [n for n in (local, "MASTER_ADDR", "MASTER_PORT") if n not in env]
        if world > 1 and missing:
            raise EnvironmentIncomplete(
                f"{world} MPI ranks, but {', '.join(missing)} not set; pass them on with "
                "mpirun -x MASTER_ADDR -x MASTER_PORT"
            )
        return cls(
            _number(env, rank),
            _number(env, local) if local in env else 0,
            world,
            env.get("MASTER_ADDR"),
            _number(env, "MASTER_PORT") if "MASTER_PORT" in env else None,
            "mpi",
        )


def fill_env(environ: MutableMapping[str, str] | None = None) -> DistEnv:
    """Set those of torchrun's five variables that are missing, each on its own, and return the result.

    For libraries that read the environment themselves. A single process gets rank 0 of 1, `127.0.0.1` and
    a free port; what SLURM or MPI say is translated.

    Raises:
        EnvironmentIncomplete: what is set describes several ranks, whose numbers cannot be guessed.
    """
    env = os.environ if environ is None else environ
    try:
        found = DistEnv.read(env)
    except EnvironmentIncomplete:
        if int(env.get("WORLD_SIZE", "1")) != 1 or int(env.get("RANK", "0")) != 0:
            raise
        found = DistEnv(master_addr=env.get("MASTER_ADDR"))
    values = {
        "RANK": found.rank,
        "WORLD_SIZE": found.world_size,
        "LOCAL_RANK": found.local_rank,
        "MASTER_ADDR": found.master_addr or "127.0.0.1",
    }
    for name, value in values.items():
        env.setdefault(name, str(value))
    if "MASTER_PORT" not in env:
        env["MASTER_PORT"] = str(found.master_port or free_port())
    return DistEnv.read(env)


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: `gpu[03-05,9],x1` is `gpu03`.

    Raises:
        ValueError: the list has another form.
    """
    match = re.match(r"([A-Za-z0-9_.-]+?)(?:\[(\d+)[^\]]*\])?([A-Za-z0-9_.-]*?)(?:,|$)", nodelist)
    if not match:
        raise ValueError(f"not a SLURM node list: {nodelist!r}")
    head, number, tail = match.groups()
    return f"{head}{number or ''}{tail}"


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        value = int(env[name])
    except ValueError:
        raise ValueError(f"{name} must be a whole number, found {env[name]!r}") from None
    if value < 0:
        raise ValueError(f"{name} must not be negative, found {value}")
    return value
