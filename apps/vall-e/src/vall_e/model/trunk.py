"""The transformer: pre-norm blocks with RMSNorm, rotary positions and a gated MLP, named as in llama files.

All layers but attention work on each position for itself: positions may be packed [N, D] or stand in rows [B, T, D].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vall_e.model.spec import ModelSpec

THETA = 10000.0
EPS = 1e-6

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From queries, keys and values [..., H, E] and the number of a block to values [..., H, E]: see `attention`."""


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, layer: int, kept: Tensor | None):
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))  # ..., H, E
        y = attend(_rotate(q, rotation), _rotate(k, rotation), v, layer).flatten(-2)
        return self.o_proj(y if kept is None else y[kept])


class MLP(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.self_attn = Attention(spec.dim, spec.heads)
        self.mlp = MLP(spec.dim, round(spec.dim * spec.ffn))
        self.input_layernorm = nn.RMSNorm(spec.dim, eps=EPS)
        self.post_attention_layernorm = nn.RMSNorm(spec.dim, eps=EPS)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, layer: int, kept: Tensor | None = None
    ) -> Tensor:
        attended = self.dropout(self.self_attn(self.input_layernorm(x), rotation, attend, layer, kept))
        x = (x if kept is None else x[kept]) + attended
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Trunk(nn.Module):
    """Embeddings to hidden states."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = nn.RMSNorm(spec.dim, eps=EPS)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend, *, kept: Tensor | None = None) -> Tensor:
        """Run the blocks.

        Args:
            x: [..., D].
            positions: [...] integers.
            attend: which positions see which.
            kept: indices [S] into the first dimension: the last block's output is computed for these alone.

        Returns:
            The states [..., D] of all positions, or of those kept.
        """
        rotation = _rotation(positions, self.spec.dim // self.spec.heads, x.dtype)
        for i, block in enumerate(self.layers):
            x = block(x, rotation, attend, i, kept if i == len(self.layers) - 1 else None)
        return self.norm(x)


def _rotation(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., 1, head_dim] of each position's angles, in the half-split layout."""
    frequencies = THETA ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[..., None, None].float() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al., 2021, arXiv 2104.09864) of x [..., H, E]."""
    cos, sin = rotation
    a, b = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], -1) * sin.to(x.dtype)
