"""The wrapper that adds low-rank adapters to what its base computes (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrapkit._originals import Conv1d, Conv2d, Embedding

CONVOLUTIONS = (Conv1d, Conv2d)


@dataclass
class Adapter:
    """What an adapter is beside its two matrices.

    Args:
        rank: of the change it makes to the weight.
        scale: of that change, alpha / rank.
        dropout: probability with which an input of the adapter is zeroed in training.
        strength: a factor set by the user, 0 while the adapter is disabled.
    """

    rank: int
    scale: float
    dropout: float = 0.0
    strength: float = 1.0


class Factors(nn.ParameterDict):
    """One matrix for each adapter, by its name."""


class LoRALayer(nn.Module):
    """A layer with adapters: base(x) + sum of strength x scale x B A x.

    The base may be anything linear in its input that has a forward: `nn.Linear` and its relatives, quantised ones
    included, `nn.Embedding`, convolutions without groups. It is never written to.

    Attributes:
        base: the layer wrapped.
        lora_A: name -> rank, in (for convolutions rank, in, kernel; for embeddings rank, entries)
        lora_B: name -> out, rank (for embeddings width, rank)
        adapters: name -> `Adapter`
        merged: the base's weight with all active adapters added, while they are merged.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        problem = unsupported(base)
        if problem:
            raise TypeError(problem)
        self.base = base
        self.lora_A, self.lora_B = Factors(), Factors()
        self.adapters: dict[str, Adapter] = {}
        self.register_buffer("merged", None, persistent=False)
        self.training = base.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)  # models read weight.dtype, in_features, …

    def add(self, name: str, adapter: Adapter) -> None:
        """A new adapter: A random, B zero, so that nothing changes yet."""
        out, into = sides(self.base)
        weight = self.base.weight
        dtype = weight.dtype if weight.dtype in (torch.bfloat16, torch.float16, torch.float64) else torch.float32
        a = torch.empty(adapter.rank, *into, dtype=dtype, device=weight.device)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        b = torch.zeros(out, adapter.rank, dtype=dtype, device=weight.device)
        self.lora_A[name], self.lora_B[name] = nn.Parameter(a), nn.Parameter(b)
        self.adapters[name] = adapter

    def remove(self, name: str) -> None:
        del self.adapters[name], self.lora_A[name], self.lora_B[name]

    def active(self) -> dict[str, float]:
        """The adapters that count, with the factor of each."""
        return {name: a.scale * a.strength for name, a in self.adapters.items() if a.strength}

    def delta(self, name: str) -> Tensor:
        """The change that an adapter makes to the weight, before scaling; of the weight's shape."""
        return delta(self.lora_A[name], self.lora_B[name], isinstance(self.base, Embedding))

    @torch.no_grad()
    def sum(self) -> Tensor:
        """The base's weight with all active adapters added, in the weight's type.

        Raises:
            ValueError: the weight is not made of numbers that can be added to.
        """
        weight = self.base.weight
        if not is_plain(self.base):
            raise ValueError(
                f"the weight of a {type(self.base).__name__} ({weight.dtype}) is quantised, and nothing can be added "
                "to it exactly: leave the adapters unmerged"
            )
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = weight.to(wide, copy=True)
        for name, factor in self.active().items():
            total.add_(self.delta(name).to(wide), alpha=factor)
        return total.to(weight.dtype)

    def unmerge(self) -> None:
        self.merged = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.merged is not None:
            return torch.func.functional_call(self.base, {"weight": self.merged}, (x, *args), kwargs)
        out = self.base(x, *args, **kwargs)
        for name, factor in self.active().items():
            change = self._change(x, self.lora_A[name], self.lora_B[name], self.adapters[name].dropout)
            out = out + (factor * change).to(out.dtype)
        return out

    def _change(self, x: Tensor, a: Tensor, b: Tensor, dropout: float) -> Tensor:
        if isinstance(self.base, Embedding):
            return F.linear(F.embedding(x, a.T, self.base.padding_idx), b)  # *, width
        x = F.dropout(x, dropout, self.training) if dropout else x
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            x = x.to(a.dtype)
        if isinstance(self.base, CONVOLUTIONS):
            low = self.base._conv_forward(x, a, None)  # *, rank, positions: padded and strided as the base does
            one = F.conv1d if isinstance(self.base, Conv1d) else F.conv2d
            return one(low, b.view(*b.shape, *[1] * (a.ndim - 2)))
        return F.linear(F.linear(x, a), b)  # *, out

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: rank {a.rank}" for name, a in self.adapters.items())


def unsupported(base: nn.Module) -> str | None:
    """Why a module cannot carry an adapter, or None."""
    kind = type(base).__name__
    if isinstance(base, CONVOLUTIONS):
        return f"{kind} has groups, which low-rank adapters do not fit" if base.groups > 1 else None
    if isinstance(base, Embedding) or (hasattr(base, "in_features") and hasattr(base, "out_features")):
        return None
    return f"{kind} is neither a linear layer, a convolution nor an embedding"


def sides(base: nn.Module) -> tuple[int, tuple[int, ...]]:
    """Outputs, and the shape of what each output sees: in; in, kernel; or the entries of an embedding."""
    if isinstance(base, Embedding):
        return base.embedding_dim, (base.num_embeddings,)
    if isinstance(base, CONVOLUTIONS):
        return base.out_channels, (base.in_channels, *base.kernel_size)
    return base.out_features, (base.in_features,)


def delta(a: Tensor, b: Tensor, embedding: bool) -> Tensor:
    """B A, of the shape of the weight it belongs to."""
    product = b @ a.flatten(1)  # out, in
    return product.T if embedding else product.view(b.size(0), *a.shape[1:])


def is_plain(base: nn.Module) -> bool:
    """Whether the weight holds floating-point numbers that can be added to, not a packed form."""
    weight = base.weight
    return weight.is_floating_point() and type(weight.data) is Tensor and weight.dtype.itemsize > 1
