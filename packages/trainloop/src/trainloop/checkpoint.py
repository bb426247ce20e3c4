"""Folders of checkpoints in which at least one is complete at any moment."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trainloop.failpoints import failpoint
from trainloop.manifest import NAME, CheckpointError, fsync, read_manifest, write_manifest


def torch_save(obj: Any, path: Path) -> None:
    torch.save(obj, path)


def torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True, slots=True)
class Best:
    """Which checkpoints are the best ones: by `metric`, where it was evaluated at the step of the save."""

    metric: str
    count: int = 1
    mode: Literal["min", "max"] = "min"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: every file listed in its manifest was there, with the right hash."""

    path: Path
    step: int
    manifest: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, `<dir>/<step>/`.

    A save writes `<step>.tmp-…/`, forces every file to the disk, writes `manifest.json` last, renames the
    folder and forces the rename to the disk; only then is an old one removed. A process killed at any
    point leaves every earlier checkpoint whole. `latest` is a hint for people: loading takes the newest
    folder that proves complete.

    Args:
        dir: folder of this run's checkpoints, made when missing.
        keep_last: how many of the newest to keep, at least 1; None keeps all.
        keep_best: further ones to keep, by an evaluation metric.
        save: `save(obj, path)` for an engine's module state (a flat dict of tensors).
        load: `load(path)` for it.
        suffix: of those files. Everything else is written with `torch.save` as `<name>.pth`.
    """

    def __init__(
        self,
        dir: str | Path,
        keep_last: int | None = 3,
        keep_best: Best | None = None,
        save: Callable[[Any, Path], Any] = torch_save,
        load: Callable[[Path], Any] = torch_load,
        suffix: str = ".pth",
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last must be 1 or more, or None for all; found {keep_last}")
        self.dir = Path(dir)
        self.keep_last, self.keep_best = keep_last, keep_best
        self.save, self.load, self.suffix = save, load, suffix
        self.rejected: list[tuple[Path, str]] = []

    def prepare(self) -> None:
        """Make the folder, prove it can be written, and remove what dead runs left half-written.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            probe = self.dir / f".probe-{secrets.token_hex(4)}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as e:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.dir}: {e}. "
                "Choose a folder this process may write, or checkpoints=None"
            ) from e
        for stale in (*self.dir.glob("*.tmp-*"), *self.dir.glob("*.trash-*")):
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Steps that have a folder, ascending, complete or not."""
        if not self.dir.is_dir():
            return []
        return sorted(int(p.name) for p in self.dir.iterdir() if p.name.isascii() and p.name.isdigit() and p.is_dir())

    def newest(self, step: int | None = None) -> Checkpoint | None:
        """The newest complete checkpoint, or None. `rejected` then lists newer folders and their faults.

        Args:
            step: take that one, and reject newer ones, whole or not.

        Raises:
            CheckpointError: the one of `step` is not there, or not complete.
        """
        self.rejected = []
        if step is not None:
            found = self.open(step)
            self.rejected = [(self.dir / str(s), f"step {step} is asked for") for s in self.steps() if s > step]
            return found
        for step in reversed(self.steps()):
            try:
                path = self.dir / str(step)
                return Checkpoint(path, step, read_manifest(path))
            except CheckpointError as e:
                self.rejected.append((path, str(e)))
        return None

    def open(self, step: int) -> Checkpoint:
        """The checkpoint of `step`.

        Raises:
            CheckpointError: it is not there, or not complete.
        """
        path = self.dir / str(step)
        try:
            return Checkpoint(path, step, read_manifest(path))
        except CheckpointError as e:
            raise CheckpointError(f"checkpoint {path} cannot be used: {e}") from None

    def set_aside(self) -> list[Path]:
        """Rename the folders `newest` rejected to `<step>.rejected-…`, so that they count for nothing."""
        moved = []
        for path, _ in self.rejected:
            aside = path.with_name(f"{path.name}.rejected-{secrets.token_hex(4)}")
            path.rename(aside)
            moved.append(aside)
        return moved

    def begin(self, step: int) -> Path:
        """Make the folder a save is written into."""
        path = self.dir / f"{step}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir(parents=True)
        return path

    def commit(self, tmp: Path, step: int, info: Mapping[str, Any]) -> Path:
        """Make `tmp` the checkpoint of `step`: sync, manifest, rename, sync, prune. Returns its path."""
        failpoint("after_tmp_write")
        for file in tmp.rglob("*"):
            fsync(file)
        failpoint("before_manifest")
        write_manifest(tmp, step, {"saved_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **info})
        fsync(tmp)
        failpoint("before_rename")
        final = self.dir / str(step)
        if final.exists():
            final.rename(self.dir / f"{step}.trash-{secrets.token_hex(4)}")
        tmp.rename(final)
        fsync(self.dir)
        self._hint(step)
        self.prune()
        return final

    def write(
        self,
        step: int,
        modules: Mapping[str, Any],
        others: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
        tmp: Path | None = None,
    ) -> Path:
        """Write a checkpoint and return its path.

        Args:
            step: its name.
            modules: name to module state; written by `save` to `<name><suffix>`.
            others: name to plain containers and tensors; written by `torch.save` to `<name>.pth`.
            info: further entries of the manifest.
            tmp: a folder from `begin` that holds files already (the shards of other ranks).

        Raises:
            CheckpointError: something could not be written; what was there before still is.
        """
        try:
            tmp = tmp or self.begin(step)
            for name, obj in modules.items():
                self.save(obj, tmp / f"{name}{self.suffix}")
            for name, obj in (others or {}).items():
                torch_save(obj, tmp / f"{name}.pth")
            return self.commit(tmp, step, info or {})
        except (OSError, RuntimeError) as e:  # torch.save reports a full disk as a RuntimeError
            raise CheckpointError(f"saving step {step} to {self.dir} failed: {e}") from e
        finally:
            if tmp is not None:
                shutil.rmtree(tmp, ignore_errors=True)

    def read_module(self, checkpoint: Checkpoint, name: str) -> Any:
        """Module state written under `name`."""
        return self.load(checkpoint.path / f"{name}{self.suffix}")

    def read(self, checkpoint: Checkpoint, name: str) -> Any:
        """Other state written under `name`, on the CPU."""
        return torch_load(checkpoint.path / f"{name}.pth")

    def prune(self) -> None:
        """Remove complete checkpoints beyond `keep_last` and `keep_best`, oldest first."""
        for trash in self.dir.glob("*.trash-*"):
            shutil.rmtree(trash, ignore_errors=True)
        if self.keep_last is None:
            return
        steps = self.steps()
        best = list(self.scores())[: self.keep_best.count] if self.keep_best else []
        keep = {*steps[-self.keep_last :], *best}
        for step in steps:
            if step not in keep:
                trash = self.dir / f"{step}.trash-{secrets.token_hex(4)}"
                (self.dir / str(step)).rename(trash)
                failpoint("mid_prune")
                shutil.rmtree(trash, ignore_errors=True)

    def scores(self) -> dict[int, float]:
        """The metric of `keep_best` by step, the best first: of the checkpoints that have it, as a finite number."""
        best = self.keep_best
        if best is None:
            return {}
        scored = []
        for step in self.steps():
            try:
                metrics = json.loads((self.dir / str(step) / NAME).read_text(encoding="utf-8"))["metrics"]
                scored.append((float(metrics[best.metric]), step))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        scored.sort(reverse=best.mode == "max")
        return {step: value for value, step in scored if math.isfinite(value)}

    def _hint(self, step: int) -> None:
        tmp = self.dir / f"latest.tmp-{secrets.token_hex(4)}"
        tmp.write_text(f"{step}\n", encoding="utf-8")
        os.replace(tmp, self.dir / "latest")
