"""Trains one engine on the micro-batches of one optimizer step, alike on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trainloop.agreement import Agreement
from trainloop.comm import RanksFailed
from trainloop.engine import Engine
from trainloop.engines import Engines
from trainloop.hooks.events import (
    AfterBackward,
    AfterForward,
    AfterOptimizerStep,
    BeforeBackward,
    BeforeForward,
    StepSkipped,
)
from trainloop.hooks.registry import Hooks
from trainloop.step import Feeder, StepContext, StepOutput, StepReport, Window


class OutOfMemoryInBackward(RuntimeError):
    """Memory ran out in a backward pass, which cannot be skipped without leaving other ranks behind."""


@dataclass(slots=True)
class Tally:
    """Loss and metrics of a window, averaged with the weights of its micro-batches."""

    losses: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    metrics: list[tuple[float, Mapping[str, Any]]] = field(default_factory=list)

    def add(self, out: StepOutput) -> None:
        weight = 1.0 if out.weight is None else float(out.weight)
        self.losses.append((weight, out.loss.detach()))
        if out.metrics:
            self.metrics.append((weight, out.metrics))

    def loss(self) -> float:
        if len(self.losses) == 1:
            return float(self.losses[0][1])
        total = sum(w for w, _ in self.losses)
        return sum(w * float(x) for w, x in self.losses) / total if total else math.nan

    def mean(self) -> dict[str, float]:
        if len(self.metrics) == 1:
            return {k: float(v) for k, v in self.metrics[0][1].items()}
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        for weight, metrics in self.metrics:
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + weight * float(value)
                weights[key] = weights.get(key, 0.0) + weight
        return {k: s / weights[k] if weights[k] else math.nan for k, s in sums.items()}


@dataclass(slots=True)
class WindowResult:
    """What became of a window. `report` is None when the feeder passed over all of it."""

    report: StepReport | None
    loss: float
    metrics: dict[str, float]


class WindowRunner:
    """Runs windows. Whether to step is decided on all ranks before any state is touched.

    - A feeder that raises stops every rank, with the first failing rank's message.
    - Out of memory in the forward pass, or a loss that is not finite, on any rank: skipped on all.
    - Out of memory in the backward pass: `OutOfMemoryInBackward`.
    """

    def __init__(self, engines: Engines, feeder: Feeder, agreement: Agreement, hooks: Hooks) -> None:
        self._engines, self._feeder, self._hooks = engines, feeder, hooks
        self._agreement = agreement

    def run(self, engine: Engine, batches: list[Any], step: int, epoch: int) -> WindowResult:
        comm, active = self._agreement.comm, self._hooks.active
        ranks = comm.world_size if engine.synchronised else 1
        window, tally = Window(len(batches), ranks), Tally()
        engine.begin()
        reason: str | None = None
        for micro, batch in enumerate(batches):
            ctx = StepContext(step, micro, len(batches), epoch, self._engines)
            last = micro == len(batches) - 1
            out, failure = self._forward(engine, batch, ctx, last)
            if comm.world_size > 1 and (last or failure is not None or engine.collective_backward):
                reason = self._agree(window, out, failure)
            elif failure is not None:
                reason = self._skippable(failure)
            if reason is not None:
                break
            if out is None:
                window.pass_over()
                continue
            tally.add(out)
            if BeforeBackward in active:
                self._hooks.emit(BeforeBackward(engine, out, ctx))
            try:
                engine.backward(out, window)
            except torch.OutOfMemoryError as e:
                engine.begin()
                raise OutOfMemoryInBackward(
                    f"out of memory in the backward pass of {engine.name!r} at step {step}: {e}"
                ) from e
            if AfterBackward in active:
                self._hooks.emit(AfterBackward(engine, out, ctx))
        if reason is None and not tally.losses:
            return WindowResult(None, math.nan, {})
        loss = tally.loss() if tally.losses else math.nan
        if reason is None and not math.isfinite(loss) and window.weight > 0:
            reason = f"loss is {loss}"
        report = engine.optim_step() if reason is None else engine.skip(reason)
        if report.skipped is None:
            if AfterOptimizerStep in active:
                self._hooks.emit(AfterOptimizerStep(engine, report, step))
        elif StepSkipped in active:
            self._hooks.emit(StepSkipped(engine, report, step))
        return WindowResult(report, loss, tally.mean())

    def _forward(
        self, engine: Engine, batch: Any, ctx: StepContext, last: bool
    ) -> tuple[StepOutput | None, Exception | None]:
        active = self._hooks.active
        try:
            if BeforeForward in active:
                self._hooks.emit(BeforeForward(engine, batch, ctx))
            with engine.forward_context(last=last):
                out = self._feeder(engine, batch, ctx)
            if out is not None and AfterForward in active:
                self._hooks.emit(AfterForward(engine, out, ctx))
        except Exception as e:
            if engine.collective_forward and self._agreement.comm.world_size > 1:
                raise  # the other ranks wait inside the forward pass and cannot be told
            return None, e
        return out, None

    @staticmethod
    def _skippable(failure: Exception) -> str:
        if isinstance(failure, torch.OutOfMemoryError):
            return "out of memory in the forward pass"
        raise failure

    def _agree(self, window: Window, out: StepOutput | None, failure: Exception | None) -> str | None:
        """Exchange how the forward passes went; the reason to skip, or None. Sets the window's total."""
        comm = self._agreement.comm
        weight = 0.0 if out is None else 1.0 if out.weight is None else float(out.weight)
        bad = out is not None and not math.isfinite(float(out.loss.detach()))
        total, failed, absent, not_finite = self._agreement.round(
            window.weight + weight, failure is not None, out is None, bad and weight > 0
        )
        if failed:
            errors = comm.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
            fatal = comm.gather(failure is not None and not isinstance(failure, torch.OutOfMemoryError))
            if not any(fatal):
                return "out of memory in the forward pass"
            if failure is not None and not isinstance(failure, torch.OutOfMemoryError):
                raise failure
            rank = fatal.index(True)
            raise RanksFailed(f"rank {rank} failed in the forward pass: {errors[rank]}")
        if not_finite:
            ranks = [r for r, b in enumerate(comm.gather(bad)) if b]
            return f"loss is not finite on rank {', '.join(map(str, ranks))}"
        if absent:
            return "the feeder passed over a batch on one of the ranks"
        window.total = total
        return None
