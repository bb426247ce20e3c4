"""Attention without numbers keeps for the backward pass what the device's kernel will keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from wrapkit._bytes import storage_key


class AttentionAsOn(TorchFunctionMode):
    """On the meta device torch computes attention step by step and keeps its probabilities; a fused kernel does not.

    Within, `scaled_dot_product_attention` of meta tensors keeps what it would on `device`. Calls that torch makes
    inside another function of its own, such as those of `nn.MultiheadAttention`, are not seen.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args[:3], strict=False)) | kwargs
        query, key, value = named.pop("query"), named.pop("key"), named.pop("value")
        return _Attention.apply(self._device, args[3:], named, query, key, value)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, device: str, args: Any, kwargs: Any, *inputs: Tensor) -> Tensor:
        with FakeTensorMode():
            *fakes, args, kwargs = tree_map(lambda x: _on(device, x), (*inputs, args, kwargs))
            kept: dict[int, Tensor] = {}
            with (
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(storage_key(t), t), lambda t: t),
            ):
                fake = F.scaled_dot_product_attention(*fakes, *args, **kwargs)
        out = torch.empty_strided(fake.size(), fake.stride(), dtype=fake.dtype, device="meta")
        own = {storage_key(t) for t in fakes}
        more = [out if key == storage_key(fake) else _as_large(t) for key, t in kept.items() if key not in own]
        ctx.save_for_backward(*inputs, *more)
        return out


def _on(device: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    fake = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
    return fake.requires_grad_(value.requires_grad)


def _as_large(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.untyped_storage().nbytes(), dtype=torch.uint8, device="meta")
