"""Adapters as a parametrization of the weight itself, for layers whose weight is read and not only called."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wrapkit._handle import Handle
from wrapkit._originals import Embedding
from wrapkit.lora._layer import Adapter, delta, sides


class Delta(nn.Module):
    """weight -> weight + scale B A; with a magnitude, that direction at a trained length for each output.

    The second is DoRA (Liu et al., arXiv 2402.09353). As in section 4.3 there, the length that the direction is
    divided by counts as a constant in the backward pass.
    """

    def __init__(self, base: nn.Module, name: str, adapter: Adapter, dora: bool) -> None:
        super().__init__()
        out, into = sides(base)
        weight = base.weight
        a = torch.empty(adapter.rank, *into, dtype=weight.dtype, device=weight.device)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(torch.zeros(out, adapter.rank, dtype=weight.dtype, device=weight.device))
        self.magnitude = nn.Parameter(lengths(weight.detach())) if dora else None
        self.name, self.adapter = name, adapter
        self._embedding = isinstance(base, Embedding)

    def forward(self, weight: Tensor) -> Tensor:
        factor = self.adapter.scale * self.adapter.strength
        if not factor:
            return weight
        moved = weight + factor * delta(self.lora_A, self.lora_B, self._embedding)
        if self.magnitude is None:
            return moved
        factors = self.magnitude / lengths(moved.detach())  # out
        return moved * factors.view(-1, *[1] * (weight.ndim - 1))


def lengths(weight: Tensor) -> Tensor:
    """The norm of the weights of each output; out."""
    return weight.flatten(1).norm(dim=1)


def register(handle: Handle, base: nn.Module, change: Delta) -> None:
    """Put a parametrization on `base.weight`, and register how to take it off again."""
    kept = dict(base._parameters)
    parametrize.register_parametrization(base, "weight", change)

    def undo() -> None:
        parametrize.remove_parametrizations(base, "weight", leave_parametrized=False)
        base._parameters.clear()
        base._parameters.update(kept)  # the very objects, in their order

    def check() -> str | None:
        if parametrize.is_parametrized(base, "weight") and base.parametrizations.weight[-1] is change:
            return None
        return f"the weight of a {type(base).__name__} has been parametrized again"

    handle.on_undo(undo, check)
