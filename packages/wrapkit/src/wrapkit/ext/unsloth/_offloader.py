"""Saved-tensor hooks around torch's non-reentrant checkpoint, which move what it saves: the inputs of the block.

The idea is Unsloth's ("long context fine-tuning", unsloth.ai/blog/long-context, 2024). Written as hooks it needs no
autograd function of its own, so random numbers, autocast, keyword arguments, outputs of any structure and inputs
without gradient are torch's to get right.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from wrapkit._bytes import storage_key
from wrapkit._saved import observe

IN_FLIGHT = 2  # copies to the host that may be under way: one of the block before, one of this block
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
        self._leaving: deque[tuple[Tensor, Any]] = deque()

    def pack(self, tensor: Tensor) -> Tensor | _Held:
        """What to keep for the backward pass instead of the tensor."""
        size = tensor.untyped_storage().nbytes()
        stays = size < self._small or storage_key(tensor) in self._kept
        observe(tensor, moved=not stays)
        if stays or tensor.device.type in ("cpu", "meta"):
            return tensor
        held = _Held(tensor, self._stream(tensor.device), self._last)
        self._last = weakref.ref(held)
        self._leaving.append((tensor.detach(), held.copied))
        self._let_go(IN_FLIGHT)
        return held

    def unpack(self, packed: Tensor | _Held) -> Tensor:
        self._let_go(0)
        return packed.fetch() if isinstance(packed, _Held) else packed

    def _let_go(self, most: int) -> None:
        """Drop the tensors whose copies are done, waiting until no more than so many are under way.

        Python runs far ahead of the device: without the wait it would enter all blocks before the first copy is done,
        and the memory of every input would be taken at once.
        """
        while self._leaving and (len(self._leaving) > most or self._leaving[0][1].query()):
            self._leaving.popleft()[1].synchronize()

    def _stream(self, device: torch.device) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.get_device_module(device).Stream(device)
        return self._streams[device]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take the settings: streams, and what is held, belong to this process's passes."""
        return {"_kept": set(), "_small": self._small, "_streams": {}, "_last": None, "_leaving": deque()}


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
        self.copied = stream.record_event()

    def prefetch(self) -> None:
        """Start the copy back; the stream keeps it behind the copy there.

        The tensor is of the computing stream, so that its memory is used again as soon as that stream is done with
        it; it may have been used before, which is what the copy waits for.
        """
        if self._back is None:
            module = torch.get_device_module(self._device)
            tensor = torch.empty_like(self._host, device=self._device)
            self._stream.wait_stream(module.current_stream(self._device))
            with module.stream(self._stream):
                tensor.copy_(self._host, non_blocking=True)
            self._back = tensor, self._stream.record_event()

    def fetch(self) -> Tensor:
        self.prefetch()
        assert self._back is not None
        (tensor, arrived), self._back = self._back, None
        current = torch.get_device_module(self._device).current_stream(self._device)
        current.wait_event(arrived)
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
