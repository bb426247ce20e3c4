"""BitNet b1.58: ternary weights and 8-bit activations in training (Ma et al., arXiv 2402.17764)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from wrapkit._originals import Linear


def ternary(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Weights rounded to -s, 0 or s, where s is their mean magnitude."""
    scale = weight.abs().mean().clamp(min=eps)
    return (weight / scale).round().clamp(-1, 1) * scale


def eight_bit(activations: Tensor, eps: float = 1e-5) -> Tensor:
    """Each row (last dimension) rounded to 255 levels, by its largest magnitude."""
    scale = 127 / activations.abs().amax(dim=-1, keepdim=True).clamp(min=eps)
    return (activations * scale).round().clamp(-128, 127) / scale


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """The rounded value, with the gradient of the exact one (Bengio et al., arXiv 1308.3432)."""
    return exact + (rounded - exact).detach()


class BitLinear(Linear):
    """A linear layer that computes with ternary weights and 8-bit inputs, and trains full-precision ones.

    Same constructor, parameters and state dict as `nn.Linear`.
    """

    def forward(self, x: Tensor) -> Tensor:  # *, in -> *, out
        weight = straight_through(self.weight, ternary(self.weight))
        return F.linear(straight_through(x, eight_bit(x)), weight, self.bias)
