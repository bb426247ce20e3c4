"""Models from a local folder or a hub, loaded in five stages that hooks can watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from trainloop.hooks.events import ModelLoaded
from trainloop.hooks.extras import require
from trainloop.hooks.hub import Hub
from trainloop.hooks.model_memory import ModelMemory, modules_of
from trainloop.hooks.registry import Hooks

Stage = Literal["resolve", "download", "load", "place", "ready"]
T = TypeVar("T")

_NOT_FETCHED = (".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".gguf", ".mlmodel", ".py")  # other frameworks, code
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_RUNS_CODE = ("trust_remote_code", "custom_pipeline", "custom_revision")


class ModelLoadError(RuntimeError):
    """A model could not be built from its files; says which, and what was expected."""


@dataclass(frozen=True, slots=True)
class StageStart:
    """A stage of loading a model begins: `resolve` (local or hub?), `download`, `load` (onto the CPU), `place`
    (onto its device), `ready` (frozen, unless it is to train)."""

    name: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class StageEnd:
    """It ended after `seconds` with `result`: where the files are after the first two, then the model."""

    name: str
    stage: Stage
    result: Any
    seconds: float


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and what builds it. Made by `pretrained` or `state_dict`.

    Attributes:
        where: a local folder or file, or a hub repository (`organisation/name`).
        build: from the local path to the model, on the CPU.
        revision: branch, tag or commit of a repository.
        file: the one file of the folder or repository that is wanted; None for all that `build` may need.
    """

    where: str | Path
    build: Callable[[Path], Any]
    revision: str = "main"
    file: str | None = None

    @classmethod
    def pretrained(cls, where: str | Path, model: type | str, *, revision: str = "main", **options: Any) -> ModelSource:
        """What `model.from_pretrained` makes: a transformers model or auto class, a diffusers model or pipeline, or
        a class with huggingface_hub's `PyTorchModelHubMixin`.

        Args:
            where: see the class.
            model: the class, or its full name, such as `"transformers.AutoModelForCausalLM"` or
                `"diffusers.DiffusionPipeline"`, which is imported when it loads.
            revision: see the class.
            options: for `from_pretrained`: `dtype`, `variant`, …

        Raises:
            ValueError: an option would run code from the repository.
        """
        unsafe = [name for name in _RUNS_CODE if options.get(name)]
        if unsafe:
            raise ValueError(f"{unsafe[0]} would run code that comes with {where}; install that code as a package")
        return cls(where, lambda path: _from_pretrained(model, path, options), revision)

    @classmethod
    def state_dict(
        cls,
        where: str | Path,
        build: Callable[[], nn.Module],
        *,
        file: str | None = None,
        revision: str = "main",
    ) -> ModelSource:
        """A module made by `build`, with the weights of a file: `.safetensors`, or a torch pickle read with
        `weights_only` (`.bin`, `.pt`, `.pth`, `.ckpt`).

        Args:
            where: the file, or the folder or repository that has `file`.
            build: makes the module that the weights fit.
            file, revision: see the class.
        """
        return cls(where, lambda path: _with_state_dict(build(), path), revision, file)


class ModelLoader:
    """A bundle of hooks that loads models by name.

    ```python
    loader = ModelLoader({"teacher": ModelSource.pretrained("org/name", "transformers.AutoModelForCausalLM")})
    loader.hooks.on(StageEnd, lambda e: print(e.name, e.stage, e.seconds))
    teacher = loader.load("teacher")
    ```

    Attached with `hooks.attach(loader)` it tells the run's listeners instead: `StageStart` and `StageEnd` around each
    stage, then `ModelLoaded`, on the thread that loads.

    Args:
        models: name to source, or to a function that makes the model on the CPU, which has no `resolve` or `download`.
        device: where models are placed.
        frozen: put them in evaluation mode without gradients.
        hub: where repositories come from; the public hub when None.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSource | Callable[[], Any]],
        *,
        device: torch.device | str = "cpu",
        frozen: bool = True,
        hub: Hub | None = None,
    ) -> None:
        self.models = dict(models)
        self.device = torch.device(device)
        self.hooks = Hooks()
        self._frozen, self._hub = frozen, hub

    def attach(self, hooks: Hooks) -> None:
        self.hooks = hooks

    def load(self, name: str) -> Any:
        """The model, through all stages.

        Raises:
            KeyError: no such name.
            DownloadError: its repository cannot be had.
            FileNotFoundError: its local path is not there.
            ModelLoadError: its files do not make the model.
        """
        return self.place(name, self.fetch(name))

    def fetch(self, name: str) -> Any:
        """The stages `resolve`, `download` and `load`: the model on the CPU."""
        if name not in self.models:
            raise KeyError(f"no model {name!r}; there are {', '.join(self.models) or 'none'}")
        source = self.models[name]
        if not isinstance(source, ModelSource):
            return self._stage(name, "load", source)
        found = self._stage(name, "resolve", lambda: _resolve(source.where))
        path = self._stage(name, "download", lambda: self._download(source, found))
        return self._stage(name, "load", lambda: source.build(path))

    def place(self, name: str, model: Any, memory: ModelMemory | None = None) -> Any:
        """The stages `place` and `ready` of a model that `fetch` gave; `memory` is its own, where it is known."""

        def place() -> Any:
            if self.device.type != "cpu" and memory is not None:
                memory.to(self.device)
            elif self.device.type != "cpu":
                for module in modules_of(model):
                    module.to(self.device)
            return model

        def ready() -> Any:
            for module in modules_of(model) if self._frozen else ():
                module.eval().requires_grad_(False)
            return model

        self._stage(name, "place", place)
        self._stage(name, "ready", ready)
        if ModelLoaded in self.hooks:
            self.hooks.emit(ModelLoaded(name, model))
        return model

    def _stage(self, name: str, stage: Stage, do: Callable[[], T]) -> T:
        if StageStart in self.hooks:
            self.hooks.emit(StageStart(name, stage))
        started = time.perf_counter()
        try:
            result = do()
        except Exception as e:
            e.add_note(f"in stage {stage!r} of model {name!r}")
            raise
        if StageEnd in self.hooks:
            self.hooks.emit(StageEnd(name, stage, result, time.perf_counter() - started))
        return result

    def _download(self, source: ModelSource, found: Path | str) -> Path:
        if isinstance(found, str):
            wanted = source.file
            choose = _without_extras if wanted is None else lambda paths: [p for p in paths if p == wanted]
            found = (self._hub or Hub()).snapshot(found, source.revision, choose=choose)
        path = found if source.file is None else found / source.file
        if not path.exists():
            there = ", ".join(sorted(p.name for p in found.iterdir())) if found.is_dir() else "nothing"
            raise FileNotFoundError(f"{source.where} has no {source.file}; there is {there}")
        return path


def _resolve(where: str | Path) -> Path | str:
    """A local path that exists, or the name of a repository."""
    path = Path(where).expanduser()
    if path.exists():
        return path
    text = str(where)
    if isinstance(where, Path) or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise FileNotFoundError(f"{text} is not there, and is no repository's name (organisation/name) either")
    return text


def _without_extras(paths: list[str]) -> list[str]:
    """Without code, weights for other frameworks, and pickles where the same folder has safetensors."""
    safe = {p.rpartition("/")[0] for p in paths if p.endswith(".safetensors")}

    def wanted(path: str) -> bool:
        if path.endswith(_PICKLED) or path.endswith(".bin.index.json"):
            return path.rpartition("/")[0] not in safe
        return not path.endswith(_NOT_FETCHED)

    return [p for p in paths if wanted(p)]


def _from_pretrained(model: type | str, path: Path, options: Mapping[str, Any]) -> Any:
    if isinstance(model, str):
        module, _, name = model.rpartition(".")
        loaded = require(module, f"ModelSource.pretrained(…, {model!r})")
        if not hasattr(loaded, name):
            raise ModelLoadError(f"{module} has no {name}")
        model = getattr(loaded, name)
    if not hasattr(model, "from_pretrained"):
        raise ModelLoadError(f"{model!r} has no from_pretrained; use ModelSource.state_dict for a plain module")
    options = {**options, "local_files_only": True}
    if "transformers" not in {base.__module__.partition(".")[0] for base in model.__mro__}:
        return model.from_pretrained(str(path), **options)  # type: ignore[attr-defined]
    # transformers makes up what the files lack, with a warning; a teacher of random weights is no teacher.
    built, info = model.from_pretrained(str(path), **options, output_loading_info=True)  # type: ignore[attr-defined]
    missing = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if missing:
        raise ModelLoadError(
            f"{path} does not have all weights of {type(built).__name__}: missing or of another shape: "
            f"{', '.join(missing)}. Name the class that was saved, and add new layers afterwards"
        )
    return built


def _with_state_dict(module: nn.Module, path: Path) -> nn.Module:
    state = _read_state_dict(path)
    own = module.state_dict()
    # A tensor that is tied to one that is there needs no entry of its own: safetensors writes each once.
    given = {own[key].untyped_storage()._cdata for key in state if key in own}
    missing = [key for key, t in own.items() if key not in state and t.untyped_storage()._cdata not in given]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} (expected {tuple(own[key].shape)}, found {tuple(t.shape)})"
        for key, t in state.items()
        if key in own and t.shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        said = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in wrong.items() if keys)
        raise ModelLoadError(f"{path} does not fit {type(module).__name__}: {said}")
    module.load_state_dict(state, strict=False)
    return module


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = require("safetensors.torch", f"reading {path.name}").load_file(path)
        elif path.suffix in _PICKLED:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            known = ", ".join((".safetensors", *_PICKLED))
            raise ModelLoadError(f"{path} is of a kind that is not known; expected a file ending in {known}")
    except (ModelLoadError, ImportError, FileNotFoundError):
        raise
    except Exception as e:  # each format and version raises its own on a damaged file
        raise ModelLoadError(
            f"{path} cannot be read as a state dict: {type(e).__name__}: {e}. A pickle that holds more than tensors "
            "and plain containers is not loaded: it could run code"
        ) from e
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        found = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ModelLoadError(f"{path} is no mapping from name to tensor; found {found}")
    return state
