"""What autograd keeps for the backward pass, counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from wrapkit._bytes import module_tensors, storage_key

_observers: list[SavedTensors] = []


def observe(tensor: Tensor, moved: bool) -> None:
    """Tell whoever counts that a tensor is kept, by hooks that hide it from the counter's own."""
    if _observers:
        _observers[-1].add(tensor, moved)


class SavedTensors:
    """Counts the bytes that autograd holds on to for what is computed inside the `with` block.

    Storages are counted whole and once; those of parameters and buffers are left out.

    >>> layer = nn.Linear(8, 8)
    >>> with SavedTensors(layer) as saved:
    ...     y = layer(torch.ones(4, 8)).relu()
    >>> saved.bytes  # the input, and the output of relu
    256

    Args:
        model: whose parameters and buffers do not count; or those tensors themselves.
    """

    def __init__(self, model: nn.Module | Iterable[Tensor]) -> None:
        own = (t for m in model.modules() for t in module_tensors(m)) if isinstance(model, nn.Module) else model
        self._own = {storage_key(t) for t in own}
        self._here: dict[int, Tensor] = {}
        self._moved: dict[int, Tensor] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.here + self.moved

    @property
    def here(self) -> int:
        """What stays on the device."""
        return sum(t.untyped_storage().nbytes() for t in self._here.values())

    @property
    def moved(self) -> int:
        """What an offloader takes to the host, on an accelerator."""
        moved = self._moved.keys() - self._here.keys()
        return sum(self._moved[key].untyped_storage().nbytes() for key in moved)

    def add(self, tensor: Tensor, moved: bool = False) -> None:
        key = storage_key(tensor)
        if key not in self._own:
            (self._moved if moved else self._here).setdefault(key, tensor.detach())  # held, so that no key is reused

    def _pack(self, tensor: Tensor) -> Tensor:
        self.add(tensor)
        return tensor

    def __enter__(self) -> Self:
        _observers.append(self)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)
        _observers.remove(self)

