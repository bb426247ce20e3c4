"""The optimizer of algorithm 1 in Zhu et al., "APOLLO: SGD-like memory, AdamW-level performance" (arXiv 2412.05270).

AdamW keeps two numbers for each weight to find each weight's step size. APOLLO steps along the plain gradient and
asks AdamW only how long the step should be, for each channel (or for the whole matrix), and that question is put to
the moments of a random projection, r times n numbers instead of m times n.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

Scaling = Literal["channel", "tensor"]

SMALL_MODEL = 350_000_000  # parameters up to which the rank is a quarter of the width (paper, section 5.1)
LARGE_MODEL_RANK = 256
CACHED = 1 << 16  # numbers that fit into a core's cache with room to spare


class Apollo(Optimizer):
    """For hidden matrices only; the factory gives the other parameters to AdamW.

    A matrix counts as m, n with m <= n; convolutions are flattened to (out, rest). Its state is `exp_avg` and
    `exp_avg_sq` (r, n), the number of its `step`, and the last update's `norm`: 2nr + 2 numbers, float32 whatever
    the weight's type, because an average over a thousand steps does not move in bfloat16. The projection is drawn
    from a seed that follows from the step, so it is not stored; with scaling "channel", matrices of one m share it.

    Args:
        params: parameters of two or more dimensions, or groups of them.
        lr: learning rate.
        rank: rows of the projection, at most m; None is a quarter of m, and 256 above 350 million parameters.
        scaling: "channel" scales each of the n channels by itself, "tensor" the matrix as a whole.
        scale: updates are multiplied by its root; 128 makes up for a tensor scaling of rank 1.
        scale_front: multiply before the limiter takes the norm, not after.
        period: steps after which another projection is drawn.
        limit: factor by which an update's norm may exceed that of the one before; None lifts the limit.
        betas, eps: of the moments of the projected gradient.
        weight_decay: decoupled.
        seed: of the projections.

    Raises:
        ValueError: a parameter with fewer than two dimensions, or an option out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rank: int | None = None,
        scaling: Scaling = "channel",
        scale: float = 1.0,
        scale_front: bool = False,
        period: int = 200,
        limit: float | None = 1.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "rank": rank,
                "scaling": scaling,
                "scale": scale,
                "scale_front": scale_front,
                "period": period,
                "limit": limit,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "seed": seed,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        problem = _problem(self.param_groups[-1])
        if problem:
            self.param_groups.pop()
            raise ValueError(problem)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        projections: dict[tuple[Any, ...], Tensor] = {}
        before = 0  # parameters in earlier groups
        for group in self.param_groups:
            members = [(before + i, p) for i, p in enumerate(group["params"]) if p.grad is not None]
            before += len(group["params"])
            if members:
                self._update(*map(list, zip(*members, strict=True)), group, projections)
        return loss

    def _update(
        self,
        numbers: list[int],
        parameters: list[Tensor],
        group: dict[str, Any],
        drawn: dict[tuple[Any, ...], Tensor],
    ) -> None:
        gradients = [_wide(p.grad).float() for p in parameters]  # m, n
        states = [self._state(p, group, g) for p, g in zip(parameters, gradients, strict=True)]
        torch._foreach_add_([state["step"] for state in states], 1)
        steps = [state["step"].item() for state in states]
        reduced: list[Tensor] = []  # r, n
        for number, state, step, gradient in zip(numbers, states, steps, gradients, strict=True):
            period = (int(step) - 1) // group["period"]
            # One scale for a whole matrix is a noisy guess; with a projection in common all of them would err together.
            stream = number if group["scaling"] == "tensor" else 0
            key = (group["seed"], stream, gradient.size(0), state["exp_avg"].size(0), period, gradient.device)
            if key not in drawn:
                drawn[key] = projection(*key)
            reduced.append(drawn[key] @ gradient)
        directions = _adam(reduced, states, steps, group["betas"], group["eps"])  # r, n
        if group["scaling"] == "channel":
            ratios = _ratio(_channel_norms(directions), _channel_norms(reduced))
            channels = [gradient.size(1) for gradient in gradients]
            norms = _norms((ratios * _channel_norms(gradients)).split(channels))
            scales = ratios.split(channels)  # n
        else:
            whole = _ratio(_norms(directions), _norms(reduced))
            norms = whole * _norms(gradients)
            scales = whole.unbind()
        root = math.sqrt(group["scale"])
        factors = _limit(norms * root if group["scale_front"] else norms, states, group["limit"]) * root
        scales = [s * f for s, f in zip(scales, factors.unbind(), strict=True)]
        _apply(parameters, scales, float(group["lr"]), group["weight_decay"])

    def _state(self, parameter: Tensor, group: dict[str, Any], gradient: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            m, n = gradient.shape
            rank = self._rank(group, m)
            state["step"] = torch.zeros(())  # on the CPU, as torch's optimizers keep it: reading it must not wait
            state["norm"] = gradient.new_zeros(())
            state["exp_avg"] = gradient.new_zeros(rank, n)
            state["exp_avg_sq"] = gradient.new_zeros(rank, n)
        return state

    def predict(self, parameter: Tensor, group: dict[str, Any]) -> int:
        """Bytes of state that a parameter will have: four for each of 2nr + 2 numbers."""
        m, n = sorted((parameter.size(0), parameter.numel() // parameter.size(0)))
        return 4 * (2 * n * self._rank(group, m) + 2)

    def _rank(self, group: dict[str, Any], m: int) -> int:
        return min(group["rank"] or self._default_rank(m), m)

    def _default_rank(self, m: int) -> int:
        total = sum(p.numel() for group in self.param_groups for p in group["params"])
        return max(1, m // 4) if total <= SMALL_MODEL else LARGE_MODEL_RANK

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the state stays float32: torch would cast it to the type of the weights."""
        super().load_state_dict(state_dict)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(numbers, own, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                device = "cpu" if key == "step" else parameter.device
                self.state[parameter][key] = value.to(device, torch.float32, copy=True)


def projection(seed: int, stream: int, m: int, rank: int, period: int, device: torch.device) -> Tensor:
    """The r, m matrix of one period, entries N(0, 1/r). The same arguments give the same matrix."""
    digest = hashlib.blake2b(repr((seed, stream, m, rank, period)).encode(), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(rank, m, generator=generator, device=device).div_(math.sqrt(rank))


def _problem(group: dict[str, Any]) -> str | None:
    for parameter in group["params"]:
        if parameter.ndim < 2:
            return f"APOLLO takes matrices, got a parameter of shape {tuple(parameter.shape)}"
    if group["rank"] is not None and group["rank"] < 1:
        return f"rank must be at least 1, got {group['rank']}"
    if group["scaling"] not in ("channel", "tensor"):
        return f"scaling must be channel or tensor, got {group['scaling']!r}"
    if group["period"] < 1:
        return f"period must be at least 1 step, got {group['period']}"
    if group["limit"] is not None and group["limit"] <= 1:
        return f"limit must be above 1, got {group['limit']}: the norm could never grow"
    return None


def _wide(tensor: Tensor) -> Tensor:
    """As a matrix m, n with m <= n."""
    if tensor.is_sparse:
        raise ValueError("APOLLO takes dense gradients; give layers with sparse ones to another optimizer")
    matrix = tensor.flatten(1)
    return matrix.T if matrix.size(0) > matrix.size(1) else matrix


def _adam(
    gradients: list[Tensor],
    states: list[dict[str, Any]],
    steps: list[float],
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """Update the moments, and return the steps that Adam would make."""
    first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
    torch._foreach_lerp_(first, gradients, 1 - betas[0])
    torch._foreach_mul_(second, betas[1])
    torch._foreach_addcmul_(second, gradients, gradients, 1 - betas[1])
    spread = torch._foreach_sqrt(second)
    torch._foreach_div_(spread, [math.sqrt(1 - betas[1] ** step) for step in steps])
    torch._foreach_add_(spread, eps)
    torch._foreach_mul_(spread, [1 - betas[0] ** step for step in steps])
    return torch._foreach_div(first, spread)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def _channel_norms(matrices: list[Tensor]) -> Tensor:
    """The norms of the columns of all matrices, one after the other."""
    return torch.cat([_column_norms(matrix) for matrix in matrices])


def _column_norms(matrix: Tensor) -> Tensor:
    """The norm of each column, n."""
    if matrix.device.type != "cpu" or matrix.stride(0) == 1:
        return matrix.norm(dim=0)
    # On a CPU that takes ten times as long where rows are contiguous; squares of a few rows stay in its cache.
    if matrix.numel() <= CACHED:
        return matrix.square().sum(dim=0).sqrt_()
    parts = [rows.square().sum(dim=0) for rows in matrix.split(max(1, CACHED // matrix.size(1)))]
    return sum(parts[1:], start=parts[0]).sqrt_()


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where below is 0: what has no gradient is not moved, and 0/0 must not become NaN."""
    return torch.where(below > 0, above / below, 0.0)


def _limit(norms: Tensor, states: list[dict[str, Any]], limit: float | None) -> Tensor:
    """Factors that keep each update's norm below `limit` times the last one's, which they replace.

    After an update of exactly zero there is no limit: it would hold the weight at zero for ever.
    """
    last = torch.stack([s["norm"] for s in states])
    factors = torch.ones_like(norms)
    if limit is not None:
        factors = torch.where((last > 0) & (norms > limit * last), limit * last / norms, factors)
    torch._foreach_copy_([s["norm"] for s in states], list((norms * factors).unbind()))
    return factors


def _apply(parameters: list[Tensor], scales: list[Tensor], lr: float, weight_decay: float) -> None:
    """W -= lr (scales G + wd W), a scale for each channel along the larger dimension, or one."""
    shaped = [_along(s, p) for s, p in zip(scales, parameters, strict=True)]
    full = [(p, s) for p, s in zip(parameters, shaped, strict=True) if p.dtype == torch.float32]
    if full:
        weights = [p for p, _ in full]
        if weight_decay:
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_addcmul_(weights, [p.grad for p in weights], [s for _, s in full], -lr)
    for parameter, scale in zip(parameters, shaped, strict=True):
        if parameter.dtype != torch.float32:  # round once, at the end
            weight = parameter.float().mul_(1 - lr * weight_decay)
            parameter.copy_(weight.addcmul_(parameter.grad.float(), scale, value=-lr))


def _along(scale: Tensor, parameter: Tensor) -> Tensor:
    """A scale per channel, shaped to multiply the parameter."""
    if scale.ndim == 0:
        return scale
    out = parameter.size(0)
    tall = out > parameter.numel() // out
    return scale.view(out, *[1] * (parameter.ndim - 1)) if tall else scale.view(1, *parameter.shape[1:])
