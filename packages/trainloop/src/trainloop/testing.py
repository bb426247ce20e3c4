"""For putting a training under faults: a record of every step, a process to kill, a comparison.

A *golden* run records what happened at each step. A *victim* is the same training in a process that is
killed again and again and started anew until it ends; whatever it replays has to be what the golden run
did, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainloop.failpoints import NAMES as FAILPOINTS
from trainloop.failpoints import VARIABLE
from trainloop.hooks.events import AfterForward, BatchFetched, StepEnd
from trainloop.hooks.registry import Hooks
from trainloop.rng import rng_state

__all__ = ["FAILPOINTS", "Divergence", "Recorder", "Victim", "compare", "fingerprint"]


def fingerprint(tree: Any) -> str:
    """A short hash of nested containers of tensors and plain values, by their bits."""
    digest = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            if tensor.numel():
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key in value:
                digest.update(repr(key).encode())
                feed(value[key])
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}".encode())
            for item in value:
                feed(item)
        else:
            digest.update(repr(value).encode())

    feed(tree)
    return digest.hexdigest()[:16]


class Recorder:
    """A bundle that appends one line per step: data, losses, rates, scales, parameters, random state.

    Attach it with `hooks.attach(Recorder(path))`. Every number is recorded by its bits.

    Args:
        path: a JSON lines file; each rank needs its own.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._batches: list[str] = []
        self._losses: list[str] = []

    def attach(self, hooks: Hooks) -> None:
        hooks.on(BatchFetched, lambda e: self._batches.append(fingerprint(e.batch)))
        hooks.on(AfterForward, lambda e: self._losses.append(float(e.out.loss.detach()).hex()))
        hooks.on(StepEnd, self._write)

    def _write(self, event: StepEnd) -> None:
        engines = event.trainer.engines.values()
        row = {
            "step": event.step,
            "batches": self._batches,
            "losses": self._losses,
            "lr": {e.name: e.lr.hex() for e in engines},
            "scale": {e.name: e.loss_scale for e in engines},
            "clock": {e.name: e.clock.state_dict() for e in engines},
            "parameters": {e.name: fingerprint(dict(e.module.state_dict())) for e in engines},
            "rng": fingerprint(rng_state()),
        }
        self._batches, self._losses = [], []
        with self._path.open("ab", buffering=0) as f:
            f.write(json.dumps(row).encode() + b"\n")


class Divergence(AssertionError):
    """A replayed step is not the golden one. Names the step and the field."""


def compare(golden: str | Path, victim: str | Path) -> int:
    """Prove that every step the victim recorded, however often, equals the golden one.

    A torn line, where the victim died, is passed over.

    Returns:
        how many steps were compared, repetitions counted.

    Raises:
        Divergence: names the first step and field that differ, or the first golden step that is missing.
    """
    expected = {row["step"]: row for row in _rows(golden)}
    seen: set[int] = set()
    count = 0
    for row in _rows(victim):
        step = row["step"]
        if step not in expected:
            raise Divergence(f"step {step} is not in the golden run")
        for name, value in expected[step].items():
            if row.get(name) != value:
                raise Divergence(f"step {step}: {name} is {row.get(name)}, in the golden run {value}")
        seen.add(step)
        count += 1
    missing = sorted(expected.keys() - seen)
    if missing:
        raise Divergence(f"step {missing[0]} was never recorded")
    return count


def _rows(path: str | Path) -> list[dict[str, Any]]:
    rows = []
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


@dataclass
class Victim:
    """A training command that is killed and started again until it ends by itself.

    Args:
        command: what to run; it must resume by itself when run again.
        env: variables added to this process's.
        timeout: seconds one start may take before it counts as hanging.

    Attributes:
        output: what each start printed, both streams together.
    """

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 120.0
    output: list[str] = field(default_factory=list)

    def start(
        self,
        *,
        failpoint: str | None = None,
        after: float | None = None,
        sign: int = signal.SIGKILL,
        group: bool = True,
    ) -> int:
        """Run once and return the exit code (negative for a signal).

        Args:
            failpoint: die there, see `FAILPOINTS`; `name:3` at the third time.
            after: send `sign` after so many seconds, if it still runs.
            sign: which signal.
            group: to the process and its children, and not to the process alone.

        Raises:
            TimeoutError: it did not end within `timeout`.
        """
        env = {**os.environ, **self.env}
        if failpoint is not None:
            env[VARIABLE] = failpoint
        process = subprocess.Popen(
            self.command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + self.timeout
        try:
            if after is not None:
                try:
                    process.wait(after)
                except subprocess.TimeoutExpired:
                    if group:
                        os.killpg(process.pid, sign)
                    else:
                        process.send_signal(sign)
            out, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            self.output.append(out.decode(errors="replace"))
            raise TimeoutError(f"still running after {self.timeout:g} s:\n{self.output[-1]}") from None
        self.output.append(out.decode(errors="replace"))
        return process.returncode

    def torment(self, times: int, shortest: float, longest: float, seed: int = 0) -> int:
        """Kill it `times` times after random waits, in seconds, then let it end; the number of starts.

        Raises:
            RuntimeError: a start failed by itself, so the fault is not the kill's.
        """
        draw = random.Random(seed)
        for n in range(times):
            code = self.start(after=draw.uniform(shortest, longest))
            if code == 0:
                return n + 1
            if code != -signal.SIGKILL:
                raise RuntimeError(f"start {n} ended with {code}:\n{self.output[-1]}")
        code = self.start()
        if code != 0:
            raise RuntimeError(f"the last start ended with {code}:\n{self.output[-1]}")
        return times + 1
