"""The transformer: pre-norm blocks with RMSNorm, rotary positions and a gated MLP, named as in llama files."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vall_e.model.spec import ModelSpec

THETA = 10000.0
EPS = 1e-6


class KVCache:
    """Keys and values of all blocks for a batch of growing sequences, all rows of one length.

    Args:
        layers, rows, heads, head_dim: the shape.
        capacity: positions that fit.
    """

    def __init__(self, layers: int, rows: int, heads: int, capacity: int, head_dim: int, like: Tensor) -> None:
        shape = (layers, rows, heads, capacity, head_dim)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, T, E] behind those held; return all [B, H, length + T, E]."""
        end = self.length + key.shape[2]
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (p(x).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))  # B, H, T, E
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        # On a CPU the fused kernel's backward takes six times as long as these two products at bf16
        # (10 x 4 heads x 138 positions: 30 against 7 ms forward and backward).
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
            y = _attend(q, k, v, mask, causal)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Softmax attention of q, k, v [B, H, T, E] by batched matrix products."""
    batch, heads, length, width = q.shape
    bias = q.new_zeros(1, 1, 1, 1)
    if mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf)
    elif causal:
        bias = q.new_full((length, length), -torch.inf).triu(1)
    bias = bias.expand(batch, heads, length, length).reshape(-1, length, length)
    q, k, v = (x.reshape(batch * heads, length, width) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), v).view(batch, heads, length, width)


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

    def forward(self, x: Tensor, rotation, mask, causal, cache, layer) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotation, mask, causal, cache, layer))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Trunk(nn.Module):
    """Embeddings [B, T, D] to hidden states [B, T, D]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = nn.RMSNorm(spec.dim, eps=EPS)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        *,
        valid: Tensor | None,
        causal: bool,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run the blocks.

        Args:
            x: [B, T, D].
            positions: [B, T] integers.
            valid: [B, S] booleans, keys that may be attended to, S counting those in the cache; None: all.
            causal: attend to the past and the present only. Padding on the right then needs no `valid`.
            cache: holds the past and takes the new keys and values.
        """
        past = cache.length if cache is not None else 0
        mask = None
        if valid is not None:
            mask = valid[:, None, None, :]  # B, 1, 1, S
            if causal and x.shape[1] > 1:
                mask = mask & torch.ones(x.shape[1], valid.shape[1], dtype=torch.bool, device=x.device).tril(past)
                # A padded query must see something, or its softmax is NaN: it sees itself.
                mask = mask | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        elif causal and past and x.shape[1] > 1:
            mask = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device).tril(past)
        is_causal = causal and mask is None and x.shape[1] > 1
        rotation = _rotation(positions, self.spec.dim // self.spec.heads, x.dtype)
        for i, block in enumerate(self.layers):
            x = block(x, rotation, mask, is_causal, cache, i)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)


def _rotation(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, head_dim] of each position's angles, in the half-split layout."""
    frequencies = THETA ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al., 2021, arXiv 2104.09864) of x [B, H, T, E]."""
    cos, sin = rotation
    a, b = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], -1) * sin.to(x.dtype)
