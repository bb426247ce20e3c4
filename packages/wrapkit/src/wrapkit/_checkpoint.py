"""`Checkpoint`: blocks that are computed again in the backward pass instead of remembered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wrapkit._handle import Handle
from wrapkit._policy import Policy

_SETTING = "_wrapkit_offloader"


@dataclass(frozen=True)
class Checkpoint:
    """Gradient checkpointing of the outermost modules that a policy covers.

    Args:
        policy: which blocks: `Policy(["layers"])` is every entry of a `ModuleList` of that name.
        offload: keep the blocks' inputs in the host's memory meanwhile (see `wrapkit.ext.unsloth`); on a CPU that
            changes nothing.
        skip_last: leave the last block as it is: its turn to be computed again would come at once.
    """

    policy: Policy
    offload: bool = False
    skip_last: bool = False

    def apply(self, model: nn.Module) -> Handle:
        """Checkpoint the blocks wherever gradients are computed. Names, parameters and results stay.

        Raises:
            PatternError: a pattern of the policy covers nothing.
            ValueError: no block, or one that is checkpointed already. The model is not changed then.
        """
        blocks = self.blocks(model)
        for name, block in blocks.items():
            if hasattr(type(block), _SETTING):
                raise ValueError(f"{name} is checkpointed already")
        offloader = None
        if self.offload:
            from wrapkit.ext.unsloth import Offloader

            offloader = Offloader(model.parameters())
        handle = Handle(model, list(blocks))
        for block in blocks.values():
            _wrap(handle, block, offloader)
        return handle

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        """The blocks by name; errors as for `apply`."""
        chosen: dict[str, nn.Module] = {}
        inside: set[nn.Module] = set()
        for name, module in self.policy.modules(model):
            if module in inside or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                continue  # those are never called themselves
            chosen[name] = module
            inside.update(module.modules())
        if self.skip_last:
            chosen.pop(next(reversed(chosen), ""), None)
        if not chosen:
            raise ValueError(f"no block to checkpoint: the policy chooses none in this {type(model).__name__}")
        return chosen


def _wrap(handle: Handle, block: nn.Module, offloader: Any) -> None:
    kind = type(block)
    wrapped = checkpointed(kind)

    def undo() -> None:
        block.__class__ = kind
        del block.__dict__[_SETTING]

    def check() -> str | None:
        return None if type(block) is wrapped else f"a block is a {type(block).__name__} now, not a {wrapped.__name__}"

    block.__dict__[_SETTING] = offloader
    block.__class__ = wrapped
    handle.on_undo(undo, check)


@cache
def checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass that differs in its forward. As a class, and not a patched method, it survives copies and pickles."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        function, offloader = partial(kind.forward, self), self.__dict__[_SETTING]
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        if offloader is None:
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        from wrapkit.ext.unsloth import checkpoint as offloaded

        return offloaded(offloader, function, *args, **kwargs)

    def reduce(self: Any, protocol: int) -> Any:
        return _rebuild, (kind,), self.__getstate__() if hasattr(kind, "__getstate__") else self.__dict__

    return type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward, "__reduce_ex__": reduce, _SETTING: None})


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    return object.__new__(checkpointed(kind))
