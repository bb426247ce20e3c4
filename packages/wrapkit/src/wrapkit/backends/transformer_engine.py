"""TransformerEngine: linear layers in float8, with its autocast entered around each of them."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from wrapkit._errors import BackendUnavailable
from wrapkit._originals import Linear
from wrapkit.backends._probe import load

FLOAT8_CAPABILITY = (8, 9)
INSTEAD = "Use torchao.float8, which can emulate"


def te() -> ModuleType:
    """The package, probed: it loads, and there is a device that multiplies in float8."""
    module = load("transformer_engine.pytorch", "transformer-engine", "transformer-engine")
    if not torch.cuda.is_available():
        raise BackendUnavailable("transformer-engine", "there is no CUDA device", INSTEAD)
    capability = torch.cuda.get_device_capability()
    if capability < FLOAT8_CAPABILITY:
        raise BackendUnavailable(
            "transformer-engine",
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, float8 needs 8.9",
            INSTEAD,
        )
    return module


def refuses(old: nn.Module) -> str | None:
    te()
    if old.in_features % 16 or old.out_features % 16:
        return f"float8 needs sides divisible by 16, and it goes from {old.in_features} to {old.out_features}"
    if old.weight.device.type not in ("cuda", "meta"):
        return f"its weight is on {old.weight.device}: move the model to a CUDA device first"
    return None


def linear(old: Linear) -> nn.Module:
    """A `te.Linear` of the same shape, type and device; it adopts the old parameters."""
    return fp8_linear()(
        old.in_features,
        old.out_features,
        bias=old.bias is not None,
        params_dtype=old.weight.dtype,
        device=old.weight.device,
    )


def fp8_linear() -> type:
    """The class that computes in float8 by itself, whether or not the caller enters an autocast."""
    return _fp8_linear(te())


@cache
def _fp8_linear(module: ModuleType) -> type:
    class Fp8Linear(module.Linear):  # type: ignore[name-defined, misc]
        """`te.Linear` with float8 switched on. The inputs' leading dimensions must multiply to a multiple of 8."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:  # *, in -> *, out
            with autocast(module):
                return super().forward(x, *args, **kwargs)

    return Fp8Linear


def autocast(module: ModuleType) -> Any:
    """Its float8 context, under the name that this version has for it."""
    return module.autocast(enabled=True) if hasattr(module, "autocast") else module.fp8_autocast(enabled=True)
