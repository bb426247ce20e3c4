"""The values that pass between the loop, the feeder and an engine during one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from trainloop.engine import Engine
    from trainloop.engines import Engines


@dataclass(slots=True)
class StepOutput:
    """What a feeder returns for one micro-batch.

    Attributes:
        loss: scalar tensor with a graph; the mean over `weight` items.
        weight: how many items (tokens, frames, samples) `loss` is the mean of. With it, the gradient of a
            window is the one of the concatenated batch: the denominator is summed over the micro-batches
            and the ranks. Without it every micro-batch counts the same.
        metrics: numbers to log beside the loss; averaged over the window with the same weights.
        samples, tokens: how much data this was, for `Every(samples=, tokens=)` and throughput.
    """

    loss: torch.Tensor
    weight: float | int | torch.Tensor | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0


@dataclass(slots=True)
class StepReport:
    """What an engine did with the gradients of one window.

    Attributes:
        grad_norm: total 2-norm of the gradients before clipping, in units of the unscaled loss.
        skipped: None, or why the optimizer did not step.
        lr: learning rate of the first parameter group during this step.
        loss_scale: scale the loss was multiplied by (1.0 without fp16).
    """

    grad_norm: float
    skipped: str | None
    lr: float
    loss_scale: float


@dataclass(slots=True)
class StepContext:
    """What a feeder may need to know beside the batch.

    Attributes:
        step: optimizer steps finished before this one, over all resumes.
        micro: index of this micro-batch in its window, from 0.
        window: micro-batches in this window.
        epoch: times the loader has been used up.
        engines: every engine of the run; `engines.teachers` are the frozen ones to learn from.
    """

    step: int
    micro: int
    window: int
    epoch: int
    engines: Engines


@dataclass(slots=True)
class Window:
    """The micro-batches of one optimizer step of one engine, and the denominator of their loss.

    Each micro-batch is back-propagated as `loss * weight`; the gradient is divided once, by `divisor()`,
    when the optimizer steps. A window of one micro-batch on one process is neither multiplied nor divided,
    so its gradient has the bits of a loop written by hand.

    Attributes:
        length: micro-batches expected.
        world_size: ranks whose gradients the engine averages.
        done: micro-batches added so far.
        weight: their summed weight on this rank.
        total: summed weight over all ranks; the loop sets it once the ranks agreed.
    """

    length: int
    world_size: int = 1
    done: int = 0
    weight: float = 0.0
    total: float | None = None
    weighted: bool | None = None

    @property
    def solo(self) -> bool:
        return self.length == 1 and self.world_size == 1

    @property
    def last(self) -> bool:
        """Whether every micro-batch of the window has been added."""
        return self.done >= self.length

    def add(self, out: StepOutput) -> float:
        """Count one micro-batch and return its weight (1.0 without one).

        Raises:
            ValueError: a weight that is negative or not finite, or given for only some micro-batches.
        """
        weighted = out.weight is not None
        if self.weighted is None:
            self.weighted = weighted
        elif self.weighted != weighted:
            raise ValueError(
                "StepOutput.weight was given for some micro-batches of a window and not for others; "
                "give it always or never"
            )
        weight = 1.0 if out.weight is None else float(out.weight)
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"StepOutput.weight must be finite and not negative, found {weight}")
        self.done += 1
        self.weight += weight
        return weight

    def pass_over(self) -> None:
        """Count a micro-batch for which the feeder returned None."""
        self.done += 1

    def divisor(self) -> float:
        """What the accumulated gradient is divided by; the ranks' average is undone here."""
        if self.solo:
            return 1.0
        total = self.weight if self.total is None else self.total
        return total / self.world_size


class Feeder(Protocol):
    """Turns a batch into a loss: the only part of a run the user has to write."""

    def __call__(self, engine: Engine, batch: Any, ctx: StepContext, /) -> StepOutput | None: ...
