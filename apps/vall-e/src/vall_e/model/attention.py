"""Which positions see which: packed sequences, each for itself, or rows that grow with a cache of keys and values.

Both are functions of queries, keys and values [..., H, E] whose leading dimensions they know, and the number of the
block that asks. The position-wise layers around them do not care how positions are arranged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor


class Packed:
    """Attention of sequences that lie one behind the other, N positions in all; none sees another's.

    Args:
        lengths: positions of each sequence.
        causal: whether it sees the past and the present only.
    """

    def __init__(self, lengths: Sequence[int], causal: Sequence[bool]) -> None:
        self.lengths, self.causal = list(lengths), list(causal)
        self._runs: dict[torch.device, list[_Run]] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Queries, keys and values [N, H, E] to values [N, H, E]."""
        if _takes_many_lengths(q):
            return self._at_once(q, k, v)
        parts = zip(*(x.split(self.lengths) for x in (q, k, v)), self.causal, strict=True)
        # On a CPU the fused kernel's backward takes four times as long as these products at bf16.
        attend = _attend if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled() else _fused
        return torch.cat([attend(*part) for part in parts])

    def _at_once(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """By a kernel that takes sequences of many lengths at once, if all look the same way."""
        runs = self._runs.get(q.device)
        if runs is None:  # the same for all blocks of a device
            together = groupby(zip(self.causal, self.lengths, strict=True), lambda pair: pair[0])
            runs = self._runs[q.device] = [_Run(way, [n for _, n in run], q.device) for way, run in together]
        parts = zip(*(x.split([run.size for run in runs]) for x in (q, k, v)), runs, strict=True)
        return torch.cat([run.attend(*part) for *part, run in parts])


class _Run:
    """Sequences that lie together and look the same way."""

    def __init__(self, causal: bool, lengths: list[int], device: torch.device) -> None:
        self.size, self.longest = sum(lengths), max(lengths)
        self.ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
        self.window = (-1, 0) if causal else (-1, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kernel = _varlen()
        assert kernel is not None
        return kernel(q, k, v, self.ends, self.ends, self.longest, self.longest, window_size=self.window)


def _takes_many_lengths(q: Tensor) -> bool:
    """Whether the kernel for sequences of many lengths, which is FlashAttention, takes these queries."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type != "cuda" or not half or q.shape[-1] % 8 or q.shape[-1] > 256:
        return False
    return torch.cuda.get_device_capability(q.device) >= (8, 0) and _varlen() is not None


@cache
def _varlen() -> Callable[..., Tensor] | None:
    """torch's attention of sequences of many lengths; None where this torch has none that takes a window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def leave_uncompiled() -> None:
    """Keep torch.compile out of packed attention, which it would compile anew for every batch's lengths."""
    Packed.__call__ = torch.compiler.disable(Packed.__call__)  # type: ignore[method-assign]


def _fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # 1, H, T, E
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)[0].transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # H, T, E
    bias = q.new_zeros(1, 1, 1)
    if causal:
        bias = q.new_full((q.shape[1], q.shape[1]), -torch.inf).triu(1)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).transpose(0, 1)


class KVCache:
    """Keys and values of all blocks for a batch of growing sequences, all rows of one length.

    Args:
        layers, rows, heads, head_dim: the shape.
        capacity: positions that fit.
        like: has the dtype and the device.
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


class Growing:
    """Causal attention of T new positions a row to those that a cache holds and to themselves.

    Args:
        cache: holds the past and takes the new keys and values.
        valid: [B, S] booleans, False at padding, S counting the positions in the cache and the new ones; None: no
            padding.
        count: T.
    """

    def __init__(self, cache: KVCache, valid: Tensor | None, count: int) -> None:
        self.cache, self.mask, self.causal = cache, None, False
        if valid is not None:
            self.mask = valid[:, None, None, :]  # B, 1, 1, S
            if count > 1:
                seen = torch.ones(count, valid.shape[1], dtype=torch.bool, device=valid.device).tril(cache.length)
                # A padded query must see something, or its softmax is NaN: it sees itself.
                itself = torch.eye(count, valid.shape[1], dtype=torch.bool, device=valid.device)
                self.mask = self.mask & seen | itself
        elif count > 1:
            assert not cache.length, "several positions at once are for an empty cache"
            self.causal = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Queries, keys and values [B, T, H, E] to values [B, T, H, E]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        k, v = self.cache.extend(layer, k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.causal).transpose(1, 2)
