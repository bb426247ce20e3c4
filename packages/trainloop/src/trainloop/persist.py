"""The whole state of a run: gathered into one checkpoint, and put back from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trainloop.checkpoint import Checkpoint, CheckpointStore
from trainloop.comm import Comm
from trainloop.engine import Engine
from trainloop.engines import Engines
from trainloop.manifest import CheckpointError
from trainloop.nested import map_tensors
from trainloop.rng import rng_state, set_rng_state
from trainloop.stateful import Stateful

Position = tuple[dict[str, Any], dict[str, Any]]  # of the loader, and the random state


class CheckpointMismatch(CheckpointError):
    """A complete checkpoint of something else: another model, other engines, another number of ranks."""


@dataclass(frozen=True, slots=True)
class Resume:
    """How a run starts.

    A run continues from the newest complete checkpoint of its own store whenever there is one. The other
    fields say what to do at the very first start.

    Attributes:
        enabled: False: never load anything, not even the run's own checkpoints.
        init_from: a checkpoint folder, or a store's folder, to start from when the run's own store is empty.
        step: of the store that `init_from` names, or without it of the run's own, the checkpoint to take; None for
            the newest. Newer ones of the run's own are set aside.
        module_only: of `init_from` take the modules' weights alone.
        states: False: of `init_from` take weights, step count and data position, and start the optimizers anew.
        restart_step_count: of `init_from` take weights and optimizers, and count steps and time from 0.
        strict_world: False: accept a checkpoint of another number of ranks. Weights and optimizers are
            loaded and the random state is this process's own. A loader that says so (`elastic = True`: its state is
            the same on all ranks and fits any number of them) goes on where it was, another starts a new epoch.
    """

    enabled: bool = True
    init_from: Path | str | None = None
    step: int | None = None
    module_only: bool = False
    states: bool = True
    restart_step_count: bool = False
    strict_world: bool = True


class RunState:
    """What a checkpoint holds, by file.

    `<engine><suffix>` module, `<engine>.optim.pth` optimizer, rates, scaler and clock, `trainer.pth` step,
    time, cadences, schedule and hooks, `rng.pth` and `loader.pth` one entry per rank, `state.pth` the
    user's objects.

    Args:
        engines: teachers are left out.
        comm: the control channel.
        parts: stateful parts of the trainer, by name.
        loader: the position in the data, one per rank.
        state: the user's objects.
    """

    def __init__(
        self,
        engines: Engines,
        comm: Comm,
        parts: Mapping[str, Stateful],
        loader: Stateful,
        state: Mapping[str, Stateful],
    ) -> None:
        self._engines = [e for e in engines.values() if e.role != "teacher"]
        self._comm, self._parts, self._loader, self._state = comm, parts, loader, state

    def collect(self, position: Position | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Module states and other states, by file name. Collective; only the leader's result is whole.

        `position` is saved in place of the present one.
        """
        loader, rng = position or (self._loader.state_dict(), rng_state())
        modules: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for engine in self._engines:
            whole = dict(engine.state_dict())
            modules[engine.name] = whole.pop("module")
            others[f"{engine.name}.optim"] = whole
        others["trainer"] = {name: part.state_dict() for name, part in self._parts.items()}
        others["rng"] = self._comm.gather(rng)
        others["loader"] = self._comm.gather(loader)
        if self._state:
            others["state"] = {name: obj.state_dict() for name, obj in self._state.items()}
        return modules, others

    @property
    def sharded(self) -> list[Engine]:
        """Engines whose every rank writes a part."""
        return [e for e in self._engines if e.sharded]

    def info(self) -> dict[str, Any]:
        """Manifest entries that say what the checkpoint is of."""
        return {"world_size": self._comm.world_size, "engines": [e.name for e in self._engines]}

    def restore(self, store: CheckpointStore, found: Checkpoint, resume: Resume, *, own: bool) -> None:
        """Put a checkpoint back; `own` when it is the run's, and not one to start from.

        Raises:
            CheckpointMismatch: it is of other engines, another model or another number of ranks.
        """
        names = self._check(found, resume, own)
        module_only = resume.module_only and not own
        for engine in self._engines:
            module = store.read_module(found, names[engine.name])
            try:
                if module_only or not (resume.states or own):
                    engine.load_module_state(module)
                else:
                    engine.load_state_dict({"module": module, **store.read(found, f"{names[engine.name]}.optim")})
                    if engine.sharded:
                        engine.read_shards(found.path)
            except (RuntimeError, ValueError, KeyError) as e:
                why = _differences(module, engine.bare_module) or str(e) or type(e).__name__
                raise CheckpointMismatch(
                    f"engine {engine.name!r} cannot load {found.path}: {why}",
                    "The checkpoint is of another model or optimizer: train with the configuration it was "
                    "made with, or into an empty folder (Resume(init_from=…, module_only=True) takes weights)",
                ) from e
        if module_only or (resume.restart_step_count and not own):
            for engine in self._engines:
                engine.clock.load_state_dict(type(engine.clock)().state_dict())
            return
        trainer = store.read(found, "trainer")
        for name, part in self._parts.items():
            part.load_state_dict(trainer[name])
        if self._state:
            saved = store.read(found, "state") if (found.path / "state.pth").exists() else {}
            for name, obj in self._state.items():
                if name not in saved:
                    raise CheckpointMismatch(f"{found.path} holds no state for {name!r}")
                obj.load_state_dict(saved[name])
        if found.manifest["world_size"] == self._comm.world_size:
            self._loader.load_state_dict(store.read(found, "loader")[self._comm.rank])
            set_rng_state(store.read(found, "rng")[self._comm.rank])
        elif getattr(self._loader, "elastic", False):
            self._loader.load_state_dict(store.read(found, "loader")[0])

    def _check(self, found: Checkpoint, resume: Resume, own: bool) -> dict[str, str]:
        """The name in the checkpoint of each engine: its own, or whatever it is where both have but one."""
        names, held = [e.name for e in self._engines], found.manifest["engines"]
        missing = set(names) - set(held)
        if missing and not len(names) == len(held) == 1:
            raise CheckpointMismatch(
                f"{found.path} is of the engines {', '.join(held)}; this run also has {', '.join(sorted(missing))}",
                "Give the engines the names that they have there",
            )
        world = found.manifest["world_size"]
        if world != self._comm.world_size and resume.strict_world and (own or not resume.module_only):
            raise CheckpointMismatch(
                f"{found.path} was saved by {world} ranks, this run has {self._comm.world_size}: the data "
                "position and random state of each rank cannot be restored",
                "Run with as many ranks, or accept that with Resume(strict_world=False)",
            )
        return dict(zip(names, held, strict=True)) if missing else {name: name for name in names}


def find_checkpoint(
    store: CheckpointStore | None, comm: Comm, resume: Resume, say: Callable[[str], None]
) -> tuple[CheckpointStore, Checkpoint, bool] | None:
    """The checkpoint all ranks start from, where it lies and whether it is the run's own; or None.

    The leader looks and proves it; the others take its word. Folders newer than it are said and set aside.

    Raises:
        CheckpointError: there are checkpoints and none can be used: to start anew would in time remove them.
    """
    if not resume.enabled:
        return None
    found: Checkpoint | None = None
    with comm.together("looking for a checkpoint"):
        if comm.is_leader and store is not None:
            found = store.newest(None if resume.init_from is not None else resume.step)
            if found is None and store.rejected:
                listed = "\n".join(f"  {path}: {why}" for path, why in store.rejected)
                raise CheckpointError(
                    f"none of the checkpoints in {store.dir} can be used:\n{listed}",
                    "Delete that folder to start anew, save to another one (Resume(init_from=…) says what to start "
                    "from), or put back what is missing",
                )
            for path, why in store.rejected:
                say(f"checkpoint {path} is not used: {why}")
            store.set_aside()
    found = comm.broadcast(found)
    if found is not None:
        assert store is not None
        return store, found, True
    if resume.init_from is None:
        return None
    with comm.together("looking for a checkpoint to start from"):
        folder = Path(resume.init_from) / ("" if resume.step is None else str(resume.step))
        inside = folder.name.isdigit()
        place = folder.parent if inside else folder
        source = CheckpointStore(place)
        if store is not None:
            source = CheckpointStore(place, save=store.save, load=store.load, suffix=store.suffix)
        found = source.newest() if not inside else source.open(int(folder.name))
        if found is None:
            listed = "".join(f"\n  {path}: {why}" for path, why in source.rejected)
            raise CheckpointError(f"{folder} holds no complete checkpoint to start from{listed}")
    assert found is not None
    return source, found, False


def _differences(state: Mapping[str, Any], module: nn.Module) -> str:
    """How the tensors of a checkpoint differ from a module's by name and shape, an example of each kind; or nothing."""
    own = module.state_dict()
    # ZeRO-3 leaves a placeholder without elements where a parameter is in parts.
    whole = [n for n, t in state.items() if n in own and hasattr(t, "shape") and own[n].numel()]
    other = [
        f"{n} is {list(state[n].shape)} in the checkpoint and {list(own[n].shape)} here"
        for n in whole
        if state[n].shape != own[n].shape
    ]
    kinds = (
        ("of another shape", other),
        ("missing in it", sorted(own.keys() - state.keys())),
        ("unknown here", sorted(state.keys() - own.keys())),
    )
    return ", ".join(f"{len(found)} tensors are {kind} ({found[0]})" for kind, found in kinds if found)


def detached_copy(tree: Any) -> Any:
    """A copy of a state on the CPU that training no longer changes."""
    return map_tensors(lambda t: t.detach().to("cpu", copy=True), tree)
