"""What tells one run from another: its start time, and the state of the repository."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import time
from pathlib import Path

_VARIABLE = "BASECFG_START_TIME"


def start_time() -> str:
    """When this run started, such as ``2026-05-01_13-37-59_a1b2c3``; equal in all processes of one run.

    The first process that asks decides and exports ``BASECFG_START_TIME``, which its children inherit. The
    ranks of a ``torchrun`` on one host agree through the start of the process that launched them, those of a
    Slurm step through the job's start. Set the variable in the launcher for anything else that spans hosts;
    remove it from the environment of a child that is a new run. The last part keeps apart two runs that start
    in the same second.
    """
    known = os.environ.get(_VARIABLE)
    if known is None:
        known = _launcher_start() or _stamp(time.time(), secrets.token_hex(3))
        os.environ[_VARIABLE] = known
    return known


def _stamp(seconds: float, suffix: str) -> str:
    return time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(seconds)) + f"_{suffix}"


def _launcher_start() -> str | None:
    """A start time that every rank can derive by itself, or None outside of known launchers."""
    env = os.environ
    if "SLURM_JOB_START_TIME" in env and "SLURM_JOB_ID" in env:
        identity = f"{env['SLURM_JOB_ID']}.{env.get('SLURM_STEP_ID', '')}"
        return _stamp(float(env["SLURM_JOB_START_TIME"]), _digest(identity))
    if "TORCHELASTIC_RUN_ID" in env:
        started = _process_start(os.getppid())
        if started is not None:
            return _stamp(started, _digest(f"{socket.gethostname()} {os.getppid()} {started}"))
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _process_start(pid: int) -> float | None:
    """When a process of this host started, in seconds since the epoch; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return None
    return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command in a folder; empty outside a repository or without git."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
