"""From logits to tokens: penalties, temperature, truncation, mirostat; deterministic with a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, in the order in which the steps are taken.

    Attributes:
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens drawn in the last
            `repetition_window` frames; 1 for none (Keskar et al., 2019, arXiv 1909.05858).
        repetition_window: frames.
        dry_multiplier: of the penalty on tokens that would go on with a repeated sequence; 0 for none ("don't
            repeat yourself"). A token that would make a repeat of n + 1 tokens loses
            `dry_multiplier * dry_base ** (n - dry_allowed_length)` for n of `dry_allowed_length` or more.
        dry_base, dry_allowed_length: see there.
        length_penalty: added to the stop token's logit for each frame drawn: above 0 ends earlier.
        top_n_sigma: leave out tokens more than so many standard deviations of the logits below the largest one;
            0 for none (Tang et al., 2024, arXiv 2411.07641).
        temperature: divides the logits; 0 takes the most likely token.
        min_temperature: with 0 or more, the temperature lies between it and `temperature`, in proportion to the
            entropy of the distribution (dynamic temperature).
        mirostat_tau: surprise in bits to aim at; 0 for none. Replaces the truncations below (version 2 of Basu et
            al., 2021, arXiv 2007.14966).
        mirostat_eta: how fast it is approached.
        min_p: leave out tokens less likely than this share of the most likely one; 0 for none.
        top_k: draw among the k most likely; 0 for all.
        top_p: draw among the most likely tokens that hold this share of the probability; 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_n_sigma: float = 0.0
    min_temperature: float = -1.0
    repetition_penalty: float = 1.0
    repetition_window: int = 32
    length_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p < 1, "in [0, 1)"),
            ("top_n_sigma", self.top_n_sigma >= 0, "0 or more"),
            ("min_temperature", self.min_temperature <= self.temperature, "at most temperature"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("repetition_window", self.repetition_window >= 1, "1 or more"),
            ("dry_multiplier", self.dry_multiplier >= 0, "0 or more"),
            ("dry_base", self.dry_base >= 1, "1 or more"),
            ("dry_allowed_length", self.dry_allowed_length >= 1, "1 or more"),
            ("mirostat_tau", self.mirostat_tau >= 0, "0 or more"),
            ("mirostat_eta", self.mirostat_eta > 0, "above 0"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {expected}, found {getattr(self, name)}")

    def surprise(self, rows: int, like: Tensor) -> Tensor | None:
        """The state of mirostat for so many rows: the largest surprise [rows] allowed, in bits."""
        if not self.mirostat_tau:
            return None
        return torch.full((rows,), 2 * self.mirostat_tau, device=like.device)

    def draw(
        self,
        logits: Tensor,
        generator: torch.Generator,
        history: Tensor | None = None,
        *,
        stop: int | None = None,
        surprise: Tensor | None = None,
    ) -> Tensor:
        """Draw one token a row.

        Args:
            logits: [B, C].
            generator: the source of randomness, on the logits' device.
            history: [B, T] tokens drawn so far.
            stop: the stop token, for `length_penalty`.
            surprise: [B], from `surprise()`; brought up to date in place.

        Returns:
            [B] tokens.
        """
        logits = self.penalised(logits.float(), history, stop)
        if self.temperature == 0:
            return logits.argmax(-1)
        if self.top_n_sigma:
            least = logits.amax(-1, keepdim=True) - self.top_n_sigma * logits.std(-1, keepdim=True)
            logits = logits.masked_fill(logits < least, -torch.inf)
        probability = (logits / self._temperature(logits)).softmax(-1)
        if surprise is None:
            return torch.multinomial(self.truncated(probability), 1, generator=generator).flatten()
        # Never fewer than the most likely token.
        allowed = (-probability.log2() <= surprise[:, None]) | (probability == probability.amax(-1, keepdim=True))
        kept = probability.where(allowed, 0)
        token = torch.multinomial(kept, 1, generator=generator)
        found = -(kept / kept.sum(-1, keepdim=True)).gather(1, token).log2().flatten()
        surprise -= self.mirostat_eta * (found - self.mirostat_tau)
        return token.flatten()

    def penalised(self, logits: Tensor, history: Tensor | None, stop: int | None = None) -> Tensor:
        """Logits [B, C] after the penalties for what was drawn before, [B, T]."""
        if history is None or not history.shape[1]:
            return logits
        if self.repetition_penalty != 1:
            recent = history[:, -self.repetition_window :]
            seen = logits.gather(1, recent)
            changed = torch.where(seen > 0, seen / self.repetition_penalty, seen * self.repetition_penalty)
            logits = logits.scatter(1, recent, changed)
        if self.dry_multiplier:
            logits = logits - torch.stack([self._dry(row, logits.shape[-1]) for row in history.cpu()]).to(logits)
        if self.length_penalty and stop is not None:
            logits = logits.clone()
            logits[:, stop] += self.length_penalty * history.shape[1]
        return logits

    def _dry(self, history: Tensor, classes: int) -> Tensor:
        """The penalty [C] of each token for the repeat of history [T] that it would go on with."""
        past = history.tolist()
        longest: dict[int, int] = {}
        for end in range(len(past) - 1):  # past[end + 1] followed what ends at `end`
            length = 0
            while length <= end and past[end - length] == past[-1 - length]:
                length += 1
            if length >= self.dry_allowed_length:
                token = past[end + 1]
                longest[token] = max(longest.get(token, 0), length)
        penalty = torch.zeros(classes)
        for token, length in longest.items():
            penalty[token] = self.dry_multiplier * self.dry_base ** (length - self.dry_allowed_length)
        return penalty

    def _temperature(self, logits: Tensor) -> float | Tensor:
        if self.min_temperature < 0:
            return self.temperature
        probability = logits.softmax(-1)
        entropy = -torch.special.xlogy(probability, probability).sum(-1, keepdim=True)
        share = entropy / torch.tensor(float(logits.shape[-1])).log()
        return (self.min_temperature + (self.temperature - self.min_temperature) * share).clamp_min(1e-4)

    def truncated(self, probability: Tensor) -> Tensor:
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
