"""bitsandbytes: linear layers in 8 bits (Dettmers et al., arXiv 2208.07339), and its stable embedding."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from wrapkit._originals import Embedding, Linear
from wrapkit.backends._probe import load


def bnb() -> ModuleType:
    return load("bitsandbytes", "bitsandbytes", "bitsandbytes")


def refuses(old: nn.Module) -> str | None:
    bnb()
    if old.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {old.weight.dtype}, not a floating-point type that can be quantised"
    return None


def int8(old: Linear) -> nn.Module:
    """A `Linear8bitLt` with the weight stored in 8 bits, for inference or below an adapter: it takes no gradient.

    The bias is copied: the layer casts it to the type of its input.
    """
    nn_ = bnb().nn
    new = nn_.Linear8bitLt(
        old.in_features, old.out_features, bias=old.bias is not None, has_fp16_weights=False, device="meta"
    )
    if old.weight.is_meta:  # a dry run: shapes alone
        new.weight = nn_.Int8Params(torch.empty_like(old.weight, dtype=torch.int8), requires_grad=False)
        new.weight.CB, new.weight.SCB = new.weight.data, torch.empty(old.out_features, device="meta")
    else:
        # bitsandbytes quantises on the way from the CPU, to wherever it goes
        weight = nn_.Int8Params(old.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
        new.weight = weight.to(old.weight.device)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.detach().clone(), requires_grad=old.bias.requires_grad)
    return new


class Int8Linear(Linear):
    """Trains full-precision weights, and multiplies by their 8-bit form, made anew in each forward.

    Same constructor, parameters and state dict as `nn.Linear`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bnb()
        super().__init__(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:  # *, in -> *, out
        # A state kept from the last step would still hold the weights as they were then: bitsandbytes quantises
        # again only in training and without a gradient. In training always, as it has CPU kernels for that alone;
        # in two dimensions, as its backward on the CPU takes no more.
        state = bnb().MatmulLtState()
        state.has_fp16_weights = state.is_training = True
        flat = bnb().matmul(x.flatten(0, -2), self.weight, bias=self.bias, state=state)
        return flat.unflatten(0, x.shape[:-1]) if x.ndim != 2 else flat


def stable_embedding_class() -> type:
    return bnb().nn.StableEmbedding


def stable_embedding(old: Embedding) -> nn.Module:
    """A `StableEmbedding`: a layer norm after the table, and 32-bit states in 8-bit optimizers."""
    # bitsandbytes hands its device and dtype arguments to the wrong places of nn.Embedding, so they stay out
    with old.weight.device:
        new = stable_embedding_class()(
            old.num_embeddings,
            old.embedding_dim,
            old.padding_idx,
            old.max_norm,
            old.norm_type,
            old.scale_grad_by_freq,
            old.sparse,
        )
    return new.to(old.weight.dtype)
