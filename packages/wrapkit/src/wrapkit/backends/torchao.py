"""torchao: linear layers trained in float8, or stored in 8 or 4 bits."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import nn

from wrapkit._originals import Linear
from wrapkit.backends._probe import load

FLOAT8_CAPABILITY = (8, 9)  # the first CUDA devices that multiply in float8


def quantization() -> ModuleType:
    return load("torchao.quantization", "torchao", "torchao")


def refuses(old: nn.Module) -> str | None:
    quantization()
    return None


def refuses_float8(old: nn.Module) -> str | None:
    load("torchao.float8", "torchao", "torchao")
    if not emulated(old.weight) and (old.in_features % 16 or old.out_features % 16):
        return f"float8 needs sides divisible by 16, and it goes from {old.in_features} to {old.out_features}"
    return None


def emulated(weight: torch.Tensor) -> bool:
    """Whether float8 is rounded to but multiplied in float32, as on CPUs and older GPUs."""
    return weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < FLOAT8_CAPABILITY


def float8(old: Linear) -> nn.Module:
    """A `Float8Linear` with dynamic scales that holds the very parameters of the old layer."""
    module = load("torchao.float8.float8_linear", "torchao", "torchao")
    config = load("torchao.float8", "torchao", "torchao").Float8LinearConfig(emulate=emulated(old.weight))
    return module.Float8Linear.from_float(old, config=config)


def int8(old: Linear) -> nn.Module:
    """The weight in 8 bits, a scale for each output; multiplied in the input's type."""
    return _quantised(old, quantization().Int8WeightOnlyConfig())


def int8_dynamic(old: Linear) -> nn.Module:
    """Weight and inputs in 8 bits, multiplied as integers. For inference: no gradient passes through."""
    return _quantised(old, quantization().Int8DynamicActivationInt8WeightConfig())


GROUP = 32  # weights that share a scale in 4 bits


def refuses_int4(old: nn.Module) -> str | None:
    quantization()
    if old.in_features % GROUP:
        return f"4 bits need inputs divisible by {GROUP}, and it has {old.in_features}"
    return None


def int4(old: Linear) -> nn.Module:
    """The weight in 4 bits, a scale for each 32 weights; multiplied in the input's type."""
    module = quantization()
    granularity = load("torchao.quantization.granularity", "torchao", "torchao").PerGroup(GROUP)
    return _quantised(old, module.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity))


def _quantised(old: Linear, config: Any) -> nn.Module:
    """A layer of its own, so that the old one keeps its weight for undoing."""
    new = Linear(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    new.weight = nn.Parameter(old.weight.detach(), requires_grad=False)
    new.bias = old.bias
    quantization().quantize_(new, config)
    return new
