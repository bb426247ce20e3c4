"""Read a state file back into the object that was saved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ._collect import as_dtype
from ._errors import TruncatedFileError
from ._garbage import no_collection
from ._layout import Layout, StoredTensor
from ._memory import memory_of
from ._open import Foreign, Opened, open_layout, rebuild
from ._stream import Progress, TensorReader


@no_collection()
def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    lazy: bool = False,
    verify: bool = True,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Load a state file: SafeTensors, a torch pickle or a shard index, told apart by content.

    Args:
        path: the file; of a sharded save, the name given to `save` or the index.
        device: where tensors go.
        dtype: what floating-point tensors become, by default what the file holds.
        lazy: map the file instead of reading it. A page is read when it is first used, so the file must not
            be truncated meanwhile (replacing it by a rename, as `save` does, is safe).
        verify: compare each tensor with the xxh3 recorded when it was written, where one was. With ``lazy``
            the header alone is checked, since the bytes are not read; `stateio.verify` reads them.
        unsafe: let a pickle that others wrote run whatever it names. Only for files you trust.
        progress: called with the bytes read, as they come; ``tqdm(...).update`` fits.

    Returns:
        the object that `save` was given. Of files that others wrote: a pickle's object as it is; a flat dict
        of tensors for SafeTensors, or ``{"module": tensors, **metadata}`` where the metadata holds JSON.

    Raises:
        OSError: the file is missing, a directory or not readable.
        StateFileError: or the subclass that says what is wrong with its contents.
    """
    opened = open_layout(path, verify=verify)
    cast = as_dtype(dtype)
    if isinstance(opened, Foreign):
        from ._torchpickle import load_foreign

        state = load_foreign(opened.path, unsafe=unsafe, lazy=lazy)
        return map_tensors(state, lambda tensor: convert(tensor, device, cast))
    place = _placement(opened, torch.device(device), cast)
    tensors: dict[str, torch.Tensor] = {}
    for part in opened.parts:
        tensors |= _mapped(part, place) if lazy else _read(part, place, verify, progress)
    return rebuild(opened.whole, tensors.__getitem__, lambda name: tensors[name].numpy())


_Place = Callable[[str, torch.Tensor], torch.Tensor]


def _placement(opened: Opened, device: torch.device, cast: torch.dtype | None) -> _Place | None:
    """What moves and casts a tensor once it is read; None where they stay as they are."""
    if device.type == "cpu" and cast is None:
        return None
    arrays: set[str] = set()  # stored like tensors, neither moved nor cast
    rebuild(opened.whole, lambda name: None, arrays.add)
    return lambda name, tensor: tensor if name in arrays else convert(tensor, device, cast)


def empty_like(stored: StoredTensor) -> torch.Tensor:
    """Uninitialised memory for a stored tensor."""
    return torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))


def convert(tensor: torch.Tensor, device: torch.device | str, cast: torch.dtype | None) -> torch.Tensor:
    """A tensor moved to a device, and cast if it is floating-point and ``cast`` is given."""
    return tensor.to(device=device, dtype=cast if cast is not None and tensor.is_floating_point() else None)


def map_tensors(state: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``state`` with each tensor changed; tensors that appear twice stay one."""
    changed: dict[int, torch.Tensor] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            return changed.setdefault(id(node), change(node))
        if isinstance(node, Mapping) and type(node).__module__ in ("builtins", "collections"):
            return {key: visit(value) for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(visit(item) for item in node)
        return node

    return visit(state)


def _read(layout: Layout, place: _Place | None, verify: bool, progress: Progress | None) -> dict[str, torch.Tensor]:
    """Read the tensors of one file."""
    with TensorReader(layout.path, verify=verify, progress=progress) as reader:
        if place is None:
            found = {name: empty_like(stored) for name, stored in layout.tensors.items()}
            reader.read((stored, memory_of(found[name])) for name, stored in layout.tensors.items())
            return found
        placed: dict[str, torch.Tensor] = {}
        for name, stored in layout.tensors.items():
            staging = empty_like(stored)  # one at a time
            reader.read([(stored, memory_of(staging))])
            placed[name] = place(name, staging)
        return placed


def _mapped(layout: Layout, place: _Place | None) -> dict[str, torch.Tensor]:
    """Tensors over a private mapping of one file: what is written to them stays in memory."""
    size = os.path.getsize(layout.path)
    storage = torch.UntypedStorage.from_file(layout.path, False, size)
    found = {}
    for stored in layout.tensors.values():
        if stored.offset + stored.nbytes > size:
            problem = f"expected {stored.offset + stored.nbytes} bytes, found {size}"
            raise TruncatedFileError(problem, path=layout.path, tensor=stored.name)
        dtype = getattr(torch, stored.dtype)
        raw = torch.empty(0, dtype=torch.uint8).set_(storage, stored.offset, (stored.nbytes,))
        if stored.offset % dtype.itemsize:
            raw = raw.clone()  # other writers need not align
        tensor = raw.view(dtype).reshape(stored.shape)
        found[stored.name] = tensor if place is None else place(stored.name, tensor)
    return found
