"""Gradients with inf or NaN are found before an optimizer touches its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from wrapkit._errors import NonFiniteGradient

NonFinite = Literal["raise", "skip", "ignore"]


def guard(optimizer: Optimizer, action: NonFinite, names: dict[Tensor, str]) -> None:
    """Check the gradients before every step of `optimizer`.

    One inf in one gradient would stay in the moments for ever. "raise" raises `NonFiniteGradient`; "skip"
    drops all gradients of the step, so that no optimizer changes anything, and counts it in
    `optimizer.skipped_steps`; "ignore" checks nothing. On an accelerator the check waits for the gradients.
    """
    if action not in ("raise", "skip", "ignore"):
        raise ValueError(f"nonfinite must be raise, skip or ignore, got {action!r}")
    if action == "ignore":
        return
    optimizer.skipped_steps = 0  # type: ignore[attr-defined]

    def check() -> None:
        if getattr(optimizer, "found_inf", None) is not None:
            return  # a GradScaler found out by itself and the fused step obeys it
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = non_finite(parameters)
        if not bad:
            return
        if action == "raise":
            raise NonFiniteGradient([names.get(p, f"<{tuple(p.shape)}>") for p in bad])
        for parameter in parameters:
            parameter.grad = None
        optimizer.skipped_steps += 1  # type: ignore[attr-defined]

    def before_step(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            check()
            return None

        def checked() -> Any:
            loss = closure()
            check()
            return loss

        return (args[:1], {**kwargs, "closure": checked})

    optimizer.register_step_pre_hook(before_step)


def non_finite(parameters: list[Tensor]) -> list[Tensor]:
    """The parameters whose gradients hold an inf or NaN."""
    gradients = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in parameters]
    if not gradients:
        return []
    # A finite norm needs finite values. The squares may overflow where the values do not, so what is not finite is
    # looked at again by its largest magnitude, which is ten times as slow on a CPU.
    suspects = _not_finite(torch._foreach_norm(gradients))
    if not suspects:
        return []
    largest = torch._foreach_norm([gradients[i] for i in suspects], float("inf"))
    return [parameters[suspects[i]] for i in _not_finite(largest)]


def _not_finite(numbers: Sequence[Tensor]) -> list[int]:
    gathered = torch.stack([number.float().cpu() for number in numbers])
    return (~torch.isfinite(gathered)).nonzero().flatten().tolist()
