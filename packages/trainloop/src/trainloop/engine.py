"""What the loop asks of an engine: a module with the means to train it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from trainloop.clock import Clock
    from trainloop.hooks.registry import Hooks
    from trainloop.rates import Factor, Scheduler
    from trainloop.step import StepOutput, StepReport, Window

Role = Literal["train", "frozen", "teacher"]


@runtime_checkable
class Engine(Protocol):
    """A module with its optimizer, on some backend.

    Attributes:
        name: what it is called in logs, metrics and file names.
        role: `train`; `frozen` (saved, not trained); `teacher` (neither, its gradients are off).
        every: trained on the global steps that are a multiple of this.
        module: what the feeder calls; a wrapper where the backend has one.
        optimizer: None for an engine that is never trained.
        clock: what it did so far.
        hooks: set by the trainer, for the events inside a step.
        exact_resume: whether interrupted and resumed equals uninterrupted, bit for bit.
        synchronised: whether gradients are averaged over the ranks.
        collective_forward: whether the ranks wait for each other in the forward pass, so that one rank's
            failure there cannot be skipped on all.
        collective_backward: whether the ranks reduce gradients in each backward pass of a window, so that
            they agree before each and not before the last alone.
        sharded: whether every rank writes its own part of a checkpoint (`write_shards`).
    """

    name: str
    role: Role
    every: int
    module: nn.Module
    optimizer: Optimizer | None
    clock: Clock
    hooks: Hooks
    exact_resume: bool
    synchronised: bool
    collective_forward: bool
    collective_backward: bool
    sharded: bool

    @property
    def bare_module(self) -> nn.Module:
        """The module itself, without the wrapper of a backend."""
        ...

    @property
    def device(self) -> Any: ...

    @property
    def lr(self) -> float: ...

    @property
    def loss_scale(self) -> float: ...

    def begin(self) -> None:
        """Forget gradients left from before a window."""
        ...

    def forward_context(self, *, last: bool) -> AbstractContextManager[Any]:
        """Autocast, and gradient synchronisation off except for the last micro-batch of a window."""
        ...

    def backward(self, out: StepOutput, window: Window) -> None: ...

    def optim_step(self) -> StepReport: ...

    def skip(self, reason: str) -> StepReport:
        """Drop the gradients of the window and count the step as skipped."""
        ...

    def set_lr(self, lr: float | None) -> None:
        """Pin the learning rate, or let go."""
        ...

    def scale_lr(self, by: str, factor: Factor | None) -> None:
        """Multiply the planned learning rates; several factors multiply."""
        ...

    def set_scheduler(self, scheduler: Scheduler) -> None: ...

    def set_optimizer(self, optimizer: Optimizer) -> None: ...

    def set_trainable(self, by: str, allowed: Mapping[str, bool]) -> None:
        """Say of parameters whether they may be trained, from the next window on."""
        ...

    def set_loss_scale(self, scale: float) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def load_module_state(self, state: dict[str, Any]) -> None:
        """Load the module alone, the optimizer untouched."""
        ...

    def write_shards(self, folder: Path) -> None: ...

    def read_shards(self, folder: Path) -> None: ...
