"""Saved-tensor hooks around torch's non-reentrant checkpoint, which move what it saves: the inputs of the block.

The idea is Unsloth's ("long context fine-tuning", unsloth.ai/blog/long-context, 2024). Written as hooks it needs no
autograd function of its own, so random numbers, autocast, keyword arguments, outputs of any structure and inputs
without gradient are torch's to get right.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from wrapkit._bytes import storage_key
from wrapkit._saved import observe

SMALL = 1 << 16  # bytes below which a tensor is not worth a copy, such as a mask's or a scalar's


class Offloader:
    """Where the inputs of checkpointed blocks wait for the backward pass.

    On an accelerator they are copied to pinned memory on a stream of their own while the block computes, and
    fetched back while the block after is recomputed. Elsewhere they stay where they are: there is nothing to gain.
    An input must not be changed in place after the block was entered, because the copy may still be under way.

    Args:
        kept: parameters, which stay on the device even where a block takes one as its input; told by their storage.
        small: bytes below which a tensor stays.
    """

    def __init__(self, kept: Iterable[Tensor] = (), small: int = SMALL) -> None:
        self._kept = {storage_key(p) for p in kept}
        self._small = small
        self._streams: dict[torch.device, Any] = {}
        self._last: weakref.ref[_Held] | None = None

    def pack(self, tensor: Tensor) -> Tensor | _Held:
        """What to keep for the backward pass instead of the tensor."""
        size = tensor.untyped_storage().nbytes()
        stays = size < self._small or storage_key(tensor) in self._kept
        observe(tensor, moved=not stays)
        if stays or tensor.device.type in ("cpu", "meta"):
            return tensor
        held = _Held(tensor, self._stream(tensor.device), self._last)
        self._last = weakref.ref(held)
        return held

    def unpack(self, packed: Tensor | _Held) -> Tensor:
        return packed.fetch() if isinstance(packed, _Held) else packed

    def _stream(self, device: torch.device) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.get_device_module(device).Stream(device)
        return self._streams[device]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take the settings: streams, and what is held, belong to this process's passes."""
        return {"_kept": set(), "_small": self._small, "_streams": {}, "_last": None}


class _Held:
    """A tensor in pinned memory, on its way there or back."""

    def __init__(self, tensor: Tensor, stream: Any, previous: weakref.ref[_Held] | None) -> None:
        self._device, self._stream, self._previous = tensor.device, stream, previous
        self._back: tuple[Tensor, Any] | None = None
        module = torch.get_device_module(tensor.device)
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        stream.wait_stream(module.current_stream(tensor.device))  # the tensor is computed
        with module.stream(stream):
            self._host.copy_(tensor.detach(), non_blocking=True)
        tensor.record_stream(stream)  # its memory is not given away before the copy is done

    def prefetch(self) -> None:
        """Start the copy back; the stream keeps it behind the copy there."""
        if self._back is None:
            with torch.get_device_module(self._device).stream(self._stream):
                self._back = self._host.to(self._device, non_blocking=True), self._stream.record_event()

    def fetch(self) -> Tensor:
        self.prefetch()
        assert self._back is not None
        (tensor, arrived), self._back = self._back, None
        current = torch.get_device_module(self._device).current_stream(self._device)
        current.wait_event(arrived)
        tensor.record_stream(current)
        before = self._previous() if self._previous is not None else None
        if before is not None:
            before.prefetch()  # the block before this one is the next to be asked for
        return tensor


def checkpoint(offloader: Offloader, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, computed again in the backward pass from inputs that the offloader keeps."""
    names, count = list(kwargs), len(args)

    def positional(*inputs: Any) -> Any:
        return function(*inputs[:count], **dict(zip(names, inputs[count:], strict=True)))

    with torch.autograd.graph.saved_tensors_hooks(offloader.pack, offloader.unpack):
        return torch_checkpoint(positional, *args, *kwargs.values(), use_reentrant=False)
