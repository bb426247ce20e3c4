"""From logits to tokens: temperature, truncation and repetition control, deterministic with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely; 0 for all.
        top_p: draw among the most likely tokens that hold this share of the probability; 1 for all.
        min_p: leave out tokens less likely than this share of the most likely one; 0 for none.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens drawn in the last
            `repetition_window` frames; 1 for none (Keskar et al., 2019, arXiv 1909.05858).
        repetition_window: frames.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 32

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], found {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must lie in [0, 1), found {self.min_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0, found {self.repetition_penalty}")

    def draw(self, logits: Tensor, generator: torch.Generator, history: Tensor | None = None) -> Tensor:
        """Draw one token a row.

        Args:
            logits: [B, C].
            generator: the source of randomness, on the logits' device.
            history: [B, T] tokens drawn so far.

        Returns:
            [B] tokens.
        """
        logits = logits.float()
        if self.repetition_penalty != 1 and history is not None and history.shape[1]:
            recent = history[:, -self.repetition_window :]
            seen = logits.gather(1, recent)
            changed = torch.where(seen > 0, seen / self.repetition_penalty, seen * self.repetition_penalty)
            logits = logits.scatter(1, recent, changed)
        if self.temperature == 0:
            return logits.argmax(-1)
        probability = self._truncated((logits / self.temperature).softmax(-1))
        return torch.multinomial(probability, 1, generator=generator).flatten()

    def _truncated(self, probability: Tensor) -> Tensor:
        """Probabilities [B, C] with the tokens that may not be drawn at zero (not renormalised)."""
        if self.min_p:
            floor = self.min_p * probability.amax(-1, keepdim=True)
            probability = probability.where(probability >= floor, 0)
        if self.top_k and self.top_k < probability.shape[-1]:
            kth = probability.topk(self.top_k, -1).values[:, -1:]
            probability = probability.where(probability >= kth, 0)
        if self.top_p < 1:
            ordered, index = probability.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # the mass of the more likely tokens
            ordered = ordered.where(before < self.top_p * probability.sum(-1, keepdim=True), 0)
            probability = torch.zeros_like(probability).scatter(1, index, ordered)
        return probability


def guided(positive: Tensor, null: Tensor, strength: float, rescale: float) -> Tensor:
    """Classifier-free guidance of logits [..., C], rescaled to the conditioned spread.

    Source: Lin et al., 2023, arXiv 2305.08891, equations 15 and 16.
    """
    z = null + (positive - null) * strength
    spread = positive.std(-1, keepdim=True) / z.std(-1, keepdim=True)
    return z * (rescale * spread + 1 - rescale)
