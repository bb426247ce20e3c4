"""What can happen during a run: one frozen dataclass per event.

`step` is the number of finished optimizer steps at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainloop.commands import Command
    from trainloop.engine import Engine
    from trainloop.step import StepContext, StepOutput, StepReport
    from trainloop.trainer import Trainer


@dataclass(frozen=True, slots=True)
class RunStart:
    """Training is about to begin; what was resumed is loaded."""

    trainer: Trainer
    step: int


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Training ended in an orderly way and its last checkpoint is written."""

    trainer: Trainer
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunFailed:
    """An exception is leaving the loop."""

    trainer: Trainer
    step: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class StopRequested:
    """All ranks agreed to stop after this step."""

    trainer: Trainer
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """A prepared hook loaded a model."""

    name: str
    model: Any


@dataclass(frozen=True, slots=True)
class ModelOffloaded:
    """A prepared hook moved a model away."""

    name: str
    model: Any


@dataclass(frozen=True, slots=True)
class EpochStart:
    """An iterator over the loader was made."""

    epoch: int


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """The loader is used up."""

    epoch: int


@dataclass(frozen=True, slots=True)
class BatchFetched:
    """A micro-batch arrived from the loader."""

    batch: Any
    epoch: int


@dataclass(frozen=True, slots=True)
class BeforeForward:
    engine: Engine
    batch: Any
    ctx: StepContext


@dataclass(frozen=True, slots=True)
class AfterForward:
    engine: Engine
    out: StepOutput
    ctx: StepContext


@dataclass(frozen=True, slots=True)
class BeforeBackward:
    engine: Engine
    out: StepOutput
    ctx: StepContext


@dataclass(frozen=True, slots=True)
class AfterBackward:
    engine: Engine
    out: StepOutput
    ctx: StepContext


@dataclass(frozen=True, slots=True)
class BeforeClip:
    """The gradients of a window are complete and unscaled."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class BeforeOptimizerStep:
    """The gradients are clipped."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class AfterOptimizerStep:
    engine: Engine
    report: StepReport
    step: int


@dataclass(frozen=True, slots=True)
class StepSkipped:
    """The optimizer did not step; `report.skipped` says why."""

    engine: Engine
    report: StepReport
    step: int


@dataclass(frozen=True, slots=True)
class StepEnd:
    """Every engine that was due has been trained; `step` counts this step."""

    trainer: Trainer
    step: int


@dataclass(frozen=True, slots=True)
class MetricsReady:
    """The line about to be logged; a hook may add to `metrics`."""

    trainer: Trainer
    step: int
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BeforeSave:
    trainer: Trainer
    step: int


@dataclass(frozen=True, slots=True)
class AfterSave:
    """The checkpoint is complete under its final name."""

    trainer: Trainer
    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class BeforeLoad:
    """A checkpoint of `step` is about to be loaded; what its states depend on can be made ready."""

    trainer: Trainer
    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class AfterLoad:
    trainer: Trainer
    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class BeforeEval:
    trainer: Trainer
    step: int


@dataclass(frozen=True, slots=True)
class AfterEval:
    trainer: Trainer
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class BeforeExport:
    trainer: Trainer
    step: int


@dataclass(frozen=True, slots=True)
class AfterExport:
    trainer: Trainer
    step: int


@dataclass(frozen=True, slots=True)
class CommandRun:
    """A command is about to take effect."""

    trainer: Trainer
    step: int
    command: Command
