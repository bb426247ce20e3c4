"""`Checkpoint`: blocks that are computed again in the backward pass instead of remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wrapkit._around import around_of, surround
from wrapkit._handle import Handle
from wrapkit._policy import Policy


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
            if any(isinstance(around, Recompute) for around in around_of(block)):
                raise ValueError(f"{name} is checkpointed already")
        offloader = None
        if self.offload:
            from wrapkit.ext.unsloth import Offloader

            offloader = Offloader(model.parameters())
        handle = Handle(model, list(blocks))
        for block in blocks.values():
            surround(handle, block, Recompute(offloader))
        return handle

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        """The blocks by name; errors as for `apply`."""
        chosen = self.policy.blocks(model)
        if self.skip_last:
            chosen.pop(next(reversed(chosen), ""), None)
        if not chosen:
            raise ValueError(f"no block to checkpoint: the policy chooses none in this {type(model).__name__}")
        return chosen


class Recompute:
    """A forward that is computed again in the backward pass; with an offloader, from inputs that it keeps."""

    def __init__(self, offloader: Any = None) -> None:
        self.offloader = offloader

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if self.offloader is None:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        from wrapkit.ext.unsloth import checkpoint as offloaded

        return offloaded(self.offloader, forward, *args, **kwargs)
