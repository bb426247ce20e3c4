"""The bytes of a model, and moving them to the exact bit between devices and a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainloop.manifest import CheckpointError


def modules_of(model: Any) -> list[nn.Module]:
    """The modules of a model: itself, or the components of a pipeline (diffusers) or the values of a mapping.

    Raises:
        TypeError: it is none of them.
    """
    if isinstance(model, nn.Module):
        return [model]
    parts = model if isinstance(model, Mapping) else getattr(model, "components", None)
    if isinstance(parts, Mapping):
        return [part for part in parts.values() if isinstance(part, nn.Module)]
    raise TypeError(
        f"a model is a torch module, a pipeline with `components` or a mapping of modules, found {type(model).__name__}"
    )


@dataclass(frozen=True)
class _View:
    """A tensor of the model as a window into one of its storages."""

    tensor: torch.Tensor
    storage: int
    offset: int
    size: torch.Size
    stride: tuple[int, ...]


class ModelMemory:
    """The storages behind a model's parameters, gradients and buffers.

    Moving replaces the storages underneath the tensors, which stay the objects they were: whatever was tied or
    viewed the same memory still does, and an optimizer or a closure that holds a parameter keeps it.

    Args:
        model: see `modules_of`. It must not gain or lose tensors afterwards.

    Raises:
        TypeError: a tensor has no storage of its own kind to move (sparse, or a subclass that wraps others).
    """

    def __init__(self, model: Any) -> None:
        self._views: list[_View] = []
        self._owners: list[torch.Tensor] = []  # for each storage, a tensor that views it
        numbers: dict[int, int] = {}
        for name, tensor in _tensors(model):
            if tensor.layout != torch.strided or type(tensor) not in (torch.Tensor, nn.Parameter):
                raise TypeError(
                    f"{name} is a {type(tensor).__name__} of layout {tensor.layout}, which cannot be moved to the "
                    "exact bit; keep this model outside the cache"
                )
            number = numbers.setdefault(tensor.untyped_storage()._cdata, len(numbers))
            if number == len(self._owners):
                self._owners.append(tensor)
            self._views.append(_View(tensor, number, tensor.storage_offset(), tensor.size(), tensor.stride()))
        self.nbytes = sum(s.nbytes() for s in self._storages())

    def to(self, device: torch.device | str) -> None:
        """Move to `device`, into memory that is nobody else's."""
        device = torch.device(device)
        self._put([_bytes(s).to(device, copy=True).untyped_storage() for s in self._settled()])

    def save(self, path: Path) -> None:
        """Write the bytes to `path` and leave the tensors empty until `load`; as they were, if writing fails."""
        try:
            torch.save([_bytes(s).cpu() for s in self._settled()], path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        for view in self._views:
            view.tensor.data = torch.empty(0, dtype=view.tensor.dtype)

    def load(self, path: Path, device: torch.device | str) -> None:
        """Bring the bytes back from `path` to `device`.

        Raises:
            CheckpointError: the file is gone, or not what `save` wrote.
        """
        try:
            held = torch.load(path, map_location=device, weights_only=True)
        except Exception as e:  # what a damaged archive raises is not documented
            raise CheckpointError(f"{path} cannot be read back: {type(e).__name__}: {e}") from e
        storages = [t.untyped_storage() for t in held]
        if sum(s.nbytes() for s in storages) != self.nbytes:
            raise CheckpointError(f"{path} has {sum(s.nbytes() for s in storages)} bytes, expected {self.nbytes}")
        self._put(storages)

    def _put(self, storages: list[torch.UntypedStorage]) -> None:
        for v in self._views:
            storage = storages[v.storage]
            moved = torch.empty(0, dtype=v.tensor.dtype, device=storage.device)
            v.tensor.data = moved.set_(storage, v.offset, v.size, v.stride)  # type: ignore[call-overload]

    def _storages(self) -> list[torch.UntypedStorage]:
        return [t.untyped_storage() for t in self._owners]

    def _settled(self) -> list[torch.UntypedStorage]:
        """The storages, once work on any stream of their device that reads them is done."""
        storages = self._storages()
        for device in {s.device for s in storages if s.device.type == "cuda"}:
            torch.cuda.synchronize(device)
        return storages


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()
    for module in modules_of(model):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield name, tensor
            if tensor.grad is not None:
                yield f"{name}.grad", tensor.grad


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload]
