"""Does a training resume exactly? Runs it both ways and names the first part that differs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from trainloop.checkpoint import Checkpoint, CheckpointStore
from trainloop.trainer import Trainer
from trainloop.tree import first_difference

Build = Callable[[Path, int], Trainer]


def verify_resume(build: Build, steps: int = 5) -> str | None:
    """Train `2 * steps` steps once in one go and once interrupted in the middle, and compare.

    Args:
        build: `build(dir, until)` makes a trainer that stops at step `until` and saves in `dir`. It must
            not depend on how often it is called.
        steps: steps before and after the interruption.

    Returns:
        None when the two last checkpoints are alike bit for bit (times aside), else a sentence that names
        the first component that differs: module, optimizer, rates, scaler, clock, trainer, rng, loader
        or state.

    Raises:
        ValueError: the trainer saves nothing, or not at the last step.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        build(whole, 2 * steps).run()
        build(parts, steps).run()
        trainer = build(parts, 2 * steps)
        resumed = trainer.run()
        if resumed.resumed_from != steps:
            raise ValueError(
                f"the second run did not resume from step {steps} but from {resumed.resumed_from}; "
                "build(dir, until) must save in dir and stop at until"
            )
        reference = build(whole, 2 * steps)
        if reference.checkpoints is None or trainer.checkpoints is None:
            raise ValueError("the trainer has no checkpoints= and so cannot resume")
        return _compare(reference.checkpoints, trainer.checkpoints, 2 * steps, list(trainer.engines))


def _compare(a: CheckpointStore, b: CheckpointStore, step: int, engines: list[str]) -> str | None:
    one, two = a.open(step), b.open(step)
    for name, (x, y) in _components(a, one, b, two, engines):
        found = first_difference(x, y)
        if found is not None:
            return f"{name} differs after the resume, first at {found}"
    return None


def _components(
    a: CheckpointStore, one: Checkpoint, b: CheckpointStore, two: Checkpoint, engines: list[str]
) -> list[tuple[str, tuple[Any, Any]]]:
    parts: list[tuple[str, tuple[Any, Any]]] = [
        ("loader", (a.read(one, "loader"), b.read(two, "loader"))),
        ("rng", (a.read(one, "rng"), b.read(two, "rng"))),
    ]
    for engine in engines:
        if not (one.path / f"{engine}.optim.pth").exists():
            continue  # a teacher
        x, y = a.read(one, f"{engine}.optim"), b.read(two, f"{engine}.optim")
        parts += [(f"engine {engine}: {k}", (x[k], y[k])) for k in ("clock", "rates", "scaler", "optimizer")]
        modules = a.read_module(one, engine), b.read_module(two, engine)
        parts.append((f"engine {engine}: module", modules))
    if (one.path / "state.pth").exists():
        parts.append(("state", (a.read(one, "state"), b.read(two, "state"))))
    x, y = a.read(one, "trainer"), b.read(two, "trainer")
    for trainer in (x, y):
        trainer["run"].pop("elapsed")
        trainer["duties"].pop("last_eval")
        for cadence in trainer["duties"].values():
            cadence.pop("elapsed")
    parts += [(f"trainer: {k}", (x[k], y[k])) for k in ("run", "schedule", "hooks")]
    return parts


def locate(target: str) -> Build:
    """The function a `module:function` names.

    Raises:
        ValueError: it has another form, or there is no such function.
    """
    module, _, name = target.partition(":")
    if not name:
        raise ValueError(f"expected module:function, found {target!r}")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"{target}: {e}") from e
    if not callable(found):
        raise ValueError(f"{target} is not a function")
    return found
