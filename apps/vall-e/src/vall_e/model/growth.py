"""Rows that grow position by position, and what makes each step fast: a cache, compiled code, the weights' layout."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vall_e.model.attention import Growing, KVCache

if TYPE_CHECKING:
    from vall_e.model.model import VallE
    from vall_e.model.trunk import Trunk

_BUCKET = 256
"""Compiled steps see caches of multiples of so many positions, so that few sizes are compiled."""
_COMPILERS = ("g++", "clang++", "cl")
_SIZES = 64
"""Sizes (rows and positions) that are compiled at most."""


class Growth:
    """Rows of positions that are read a few at a time, each seeing those before it.

    Attributes:
        cache: the keys and values of what was read.
        valid: [B, T], False where a row is padding; None where there is none.
        state: [B, D], the last state of each row, which predicts what comes next.
    """

    state: Tensor

    def __init__(self, trunk: Trunk, cache: KVCache, valid: Tensor | None) -> None:
        self._trunk, self.cache, self.valid = trunk, cache, valid

    def read(self, x: Tensor, positions: Tensor) -> None:
        """Read embeddings [B, T, D] at positions [B, T]; `valid` says already which of the first are padding."""
        past, count = self.cache.length, x.shape[1]
        if past and self.valid is not None:
            self.valid = torch.cat([self.valid, self.valid.new_ones(len(x), count)], 1)
        self.state = self._trunk(x, positions, Growing(self.cache, self.valid, count))[:, -1]
        self.cache.length += count

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these, which may be repeated."""
        self.cache.keep(rows)
        self.state = self.state[rows]
        if self.valid is not None:
            self.valid = self.valid[rows]


class StaticGrowth:
    """A `Growth` that goes on by compiled steps, whose shapes never change: finished rows are computed on, unread."""

    def __init__(self, steps: CompiledSteps, growth: Growth, capacity: int) -> None:
        self._steps, self.state = steps, growth.state
        length, rows = growth.cache.length, len(growth.state)
        self._buffers = steps.buffers(rows, length + capacity, growth.cache.keys)
        self._rows = torch.arange(rows, device=self.state.device)
        keys, values, seen, at = self._buffers
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            key[:, :, :length] = growth.cache.keys[i, :, :, :length]
            value[:, :, :length] = growth.cache.values[i, :, :, :length]
        seen.zero_()
        seen[:, :length] = True if growth.valid is None else growth.valid
        at.fill_(length)

    def read(self, x: Tensor, positions: Tensor) -> None:
        """Read one position a row: embeddings [B, 1, D] at positions [B, 1]."""
        keys, values, seen, at = self._buffers
        seen[:, at] = True
        if len(self._rows) < len(seen):
            x = x.new_zeros(len(seen), *x.shape[1:]).index_copy(0, self._rows, x)
            positions = positions.new_zeros(len(seen), 1).index_copy(0, self._rows, positions)
        self.state = self._steps.step(x, positions, keys, values, seen, at)[self._rows]
        at += 1

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these, none of them repeated."""
        self._rows, self.state = self._rows[rows], self.state[rows]


class CompiledSteps:
    """The trunk's step over one position a row, compiled for each size of the cache that comes.

    On CUDA a step is recorded as a graph and replayed. The buffers of a size are made once: a graph is bound to
    their addresses. So one decoding at a time.

    Raises:
        ValueError: torch.compile needs a C++ compiler here, and there is none.
    """

    def __init__(self, trunk: Trunk) -> None:
        cuda = trunk.norm.weight.device.type == "cuda"
        if not cuda and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), *_COMPILERS)))):
            raise ValueError(
                f"compiled steps need a C++ compiler on a CPU, and none of {', '.join(_COMPILERS)} is on PATH: install "
                "one, name it in CXX, or do without them"
            )
        self._compiled = torch.compile(_step, fullgraph=True, dynamic=False, mode="reduce-overhead" if cuda else None)
        # Each size counts as a recompilation.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SIZES)
        self._trunk = trunk
        self._buffers: dict[tuple, tuple[list[Tensor], list[Tensor], Tensor, Tensor]] = {}

    def buffers(self, rows: int, positions: int, like: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Keys and values [B, H, S, E] of each block, the positions [B, S] that are seen, and the next one's index [1].

        Args:
            rows: B.
            positions: that have to fit, S or fewer.
            like: a cache [L, B, H, T, E] with the other sizes, the dtype and the device.
        """
        size = -(-positions // _BUCKET) * _BUCKET
        key = (rows, size, like.dtype, like.device)
        if key not in self._buffers:
            layers, _, heads, _, head_dim = like.shape
            tensors = [like.new_zeros(rows, heads, size, head_dim) for _ in range(2 * layers)]
            for tensor in tensors:  # written within the graph, so not to be copied into it
                torch._dynamo.mark_static_address(tensor)
            seen = torch.zeros(rows, size, dtype=torch.bool, device=like.device)
            at = torch.zeros(1, dtype=torch.long, device=like.device)
            self._buffers[key] = tensors[:layers], tensors[layers:], seen, at
        return self._buffers[key]

    def step(self, x: Tensor, positions: Tensor, keys: list, values: list, seen: Tensor, at: Tensor) -> Tensor:
        """The states [B, D] after embeddings [B, 1, D]."""
        return self._compiled(self._trunk, x, positions, keys, values, seen, at)


def _step(trunk: Trunk, x: Tensor, positions: Tensor, keys: list, values: list, seen: Tensor, at: Tensor) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = keys[layer].index_copy_(2, at, k), values[layer].index_copy_(2, at, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None]).transpose(1, 2)

    return trunk(x, positions, attend)[:, -1]


def lay_out_weights(model: VallE) -> None:
    """Lay matrices out so that a single row passes them fast on a CPU at fp32; their values and shapes stay.

    A product with one row or two reads all of a matrix. torch's does so at the memory's rate where the matrix lies
    in long runs, so those with more outputs than inputs are stored transposed. Training does not gain, and
    optimizers expect parameters as they are made: this is for speaking.
    """
    if model.device.type != "cpu" or model.sep.dtype != torch.float32:
        return
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()
