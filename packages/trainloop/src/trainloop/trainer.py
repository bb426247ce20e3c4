"""The loop: batches in, trained engines, metrics and checkpoints out."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from trainloop.agreement import Agreement
from trainloop.cadence import Every, Progressed
from trainloop.checkpoint import CheckpointStore
from trainloop.comm import Comm
from trainloop.commands import Schedule
from trainloop.console import Console
from trainloop.duties import Duties, Evaluate, Export
from trainloop.engine import Engine
from trainloop.engines import Engines
from trainloop.feed import Feed
from trainloop.hooks import events
from trainloop.hooks.registry import Hooks
from trainloop.metrics import JsonLines, Sink
from trainloop.orders import Orders
from trainloop.persist import Position, Resume, RunState, find_checkpoint
from trainloop.progress import Progress
from trainloop.result import Reason, RunResult, TooManySkips
from trainloop.rng import rng_state, seed_everything
from trainloop.saver import Saver
from trainloop.signals import DataWaitInterrupted, StopSignals
from trainloop.stateful import Stateful
from trainloop.step import Feeder
from trainloop.window import OutOfMemoryInBackward, WindowResult, WindowRunner


class Trainer:
    """Trains engines on a loader until a step, a time, a signal or a command says stop.

    A step takes `accumulate` batches (fewer at the end of an epoch), trains every engine that is due on
    them, in order, and then looks at commands, signals, evaluation, export and saving. Interrupted at any
    point and started again with the same arguments, it goes on from the newest complete checkpoint.

    Args:
        engines: what to train.
        loader: iterated again and again; see `Feed` for how its position is restored.
        feeder: `feeder(engine, batch, ctx) -> StepOutput | None`, called under the engine's autocast.
        until: optimizer steps in all, over every resume; None for no limit.
        time_budget: seconds of training in all, over every resume, evaluation and saving included.
        accumulate: batches in a step.
        checkpoints: where to save; None to save nothing.
        log_dir: `metrics.jsonl` is appended there.
        save_every, eval_every, export_every: how often; an int counts steps; None is never. The last state
            is saved whenever there are `checkpoints`.
        evaluate: returns metrics, which are logged. It runs without moving the random state, and modules
            come back in the mode they were in. A long one should poll `stop_requested` and return.
        eval_first: evaluate before the first step too.
        eval_last: evaluate when the steps or the time are used up too, so that the last checkpoint has its metrics.
        export: writes whatever is to be published.
        state: further objects stored in each checkpoint.
        hooks: typed listeners.
        commands: read commands from stdin.
        control: a file or FIFO to read commands from as well.
        progress: show a bar on stderr.
        seed: seeds python, numpy and torch at the start of a run, per rank.
        resume: where to start from; see `Resume`.
        log_every: steps between metric lines.
        max_skipped: `TooManySkips` after this many skipped steps in a row of one engine.
        sinks: further places for metrics.
        save_on_oom: out of memory in a backward pass on a single rank: skip the step, save, then raise.
        async_save: write checkpoints on a thread; training waits for the copy alone.

    Raises:
        ValueError: neither `until` nor `time_budget` and the like; see the message.
    """

    def __init__(
        self,
        engines: Engines,
        loader: Iterable[Any],
        feeder: Feeder,
        *,
        until: int | None = None,
        time_budget: float | None = None,
        accumulate: int = 1,
        checkpoints: CheckpointStore | None = None,
        log_dir: Path | str | None = None,
        save_every: Every | int | None = None,
        eval_every: Every | int | None = None,
        export_every: Every | int | None = None,
        evaluate: Evaluate | None = None,
        eval_first: bool = False,
        eval_last: bool = False,
        export: Export | None = None,
        state: Mapping[str, Stateful] | None = None,
        hooks: Hooks | None = None,
        commands: bool = True,
        control: Path | str | None = None,
        progress: bool = True,
        seed: int | None = None,
        resume: Resume | None = None,
        log_every: int = 1,
        max_skipped: int = 20,
        sinks: Sequence[Sink] = (),
        save_on_oom: bool = True,
        async_save: bool = False,
    ) -> None:
        for name, value in (("until", until), ("time_budget", time_budget)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None, found {value}")
        for name, value in (("accumulate", accumulate), ("log_every", log_every), ("max_skipped", max_skipped)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, found {value}")
        if eval_every is not None and evaluate is None:
            raise ValueError("eval_every is given and evaluate= is not")
        if export_every is not None and export is None:
            raise ValueError("export_every is given and export= is not")
        if save_every is not None and checkpoints is None:
            raise ValueError("save_every is given and checkpoints= is not")
        self.engines = engines if isinstance(engines, Engines) else Engines(engines)
        self.hooks = hooks or Hooks()
        self.checkpoints = checkpoints
        self.until, self.time_budget, self.accumulate = until, time_budget, accumulate
        self.schedule = Schedule()
        self.step = 0
        self.loader, self.feeder = loader, feeder
        self._eval_first, self._eval_last = eval_first, eval_last
        self._duties = Duties(self, evaluate, eval_every, export, export_every, save_every)
        self._state = dict(state or {})
        self._commands, self._control, self._progress_on = commands, control, progress
        self._seed, self._resume = seed, resume or Resume()
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._log_every, self._max_skipped = log_every, max_skipped
        self._extra_sinks = list(sinks)
        self._past = 0.0  # seconds of training before `_started`
        self._started: float | None = None
        self.wanted: set[str] = set()
        self._save_on_oom, self._async_save = save_on_oom, async_save
        self._failure: Exception | None = None
        self._before_window: Position | None = None
        self._skips: dict[str, int] = {}

    # What user code may ask.

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over every resume, evaluation and saving included."""
        return self._past + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def stop_requested(self) -> bool:
        """Whether this rank has received a stop signal; cheap and without communication.

        A long `evaluate` polls it and returns early; its result is then dropped and the evaluation is run
        again after the resume.
        """
        return self._started is not None and self._signals.received is not None

    @property
    def epoch(self) -> int:
        return self._feed.epoch if self._started is not None else 0

    @property
    def steps_this_run(self) -> int:
        """Steps since this process started."""
        return self.step - self._first_step

    @property
    def seconds_this_run(self) -> float:
        """Seconds since this process started to train."""
        return self.elapsed - self._first_elapsed

    @property
    def progressed(self) -> Progressed:
        """How far all ranks together have come, as of their last agreement."""
        return self._agreement.now

    @property
    def world_size(self) -> int:
        return self._comm.world_size

    def end_epoch(self) -> None:
        """Leave what is left of this pass over the loader; the next step begins another."""
        self._feed.end_epoch()

    def log(self, metrics: Mapping[str, Any], kind: str = "log") -> None:
        """Write a line of metrics for the current step to every sink."""
        for sink in self._sinks:
            sink.write(kind, self.step, metrics)

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar, on rank 0 alone."""
        if self._comm.is_leader:
            self._bar.say(text)

    # The loop.

    def run(self) -> RunResult:
        """Train; see the class.

        Raises:
            CheckpointError: checkpoints cannot be written, or the last one could not.
            CheckpointMismatch: the checkpoint found is of something else.
            TooManySkips: an engine does not get a finite gradient any more.
            OutOfMemoryInBackward: on a single rank after saving.
        """
        with ExitStack() as stack:
            resumed_from = self._open(stack)
            try:
                if events.RunStart in self.hooks.active:
                    self.hooks.emit(events.RunStart(self, self.step))
                reason = self._loop()
                if events.RunEnd in self.hooks.active:
                    self.hooks.emit(events.RunEnd(self, self.step, reason))
            except BaseException as e:
                if events.RunFailed in self.hooks.active:
                    self.hooks.emit(events.RunFailed(self, self.step, e))
                raise
            code = 128 + (self._agreement.signal or 0) if reason == "signal" else 0
            return RunResult(self.step, reason, code, resumed_from)

    def _loop(self) -> Reason:
        if self._eval_first and self.step == 0:
            self._duties.evaluate(self._agreement.settle(0))
        reason = self._boundary()  # what was due when the checkpoint was made is made up for
        while reason is None:
            try:
                self._train_step()
            except DataWaitInterrupted:
                return self._stop_in_data_wait()
            reason = self._boundary()
        if self._failure is not None:
            raise self._failure
        self._comm.barrier()  # a rank that leaves early resets connections another still reads from
        return reason

    def _train_step(self) -> None:
        started = time.perf_counter()
        batches = self._fetch()
        row: dict[str, Any] = {"epoch": self._feed.epoch}
        for engine in self.engines.trained:
            if self.step % engine.every:
                continue
            try:
                result = self._runner.run(engine, batches, self.step, self._feed.epoch)
            except OutOfMemoryInBackward as e:
                if self._comm.world_size > 1 or not self._save_on_oom:
                    raise
                self._failure = e
                result = WindowResult(engine.skip("out of memory in the backward pass"), math.nan, {})
            self._account(engine, result, row)
        self.step += 1
        row["seconds"] = time.perf_counter() - started
        if events.MetricsReady in self.hooks.active:
            self.hooks.emit(events.MetricsReady(self, self.step, row))
        if self.step % self._log_every == 0:
            row["elapsed"] = self.elapsed
            self.log(row, "step")
        if self._bar.wanted:
            self._bar.update(self.step, _shown(row), self.elapsed)
        if events.StepEnd in self.hooks.active:
            self.hooks.emit(events.StepEnd(self, self.step))

    def _fetch(self) -> list[Any]:
        """The batches of this step; every rank gets equally many."""
        if self.accumulate > 1:
            self._before_window = (self._feed.state_dict(), rng_state())
        if self._comm.world_size == 1:
            return self._feed.window(self.accumulate)
        batches: list[Any] = []
        broken = False
        with self._comm.together("fetching data") if self.accumulate > 1 else nullcontext():
            try:
                batches = self._feed.window(self.accumulate)
            except DataWaitInterrupted:
                broken = True
        if self.accumulate == 1:
            if broken:
                self._agreement.break_off()
            return batches
        most, broken_anywhere = self._comm.max([len(batches), broken])
        if broken_anywhere:
            raise DataWaitInterrupted
        while len(batches) < most:
            batches += self._feed.window(int(most) - len(batches))
        return batches

    def _account(self, engine: Engine, result: WindowResult, row: dict[str, Any]) -> None:
        """Add an engine's numbers to the row, and count what it skipped."""
        name, report = engine.name, result.report
        if report is None:
            return
        row[f"{name}.loss"] = result.loss
        row[f"{name}.grad_norm"] = report.grad_norm
        row[f"{name}.lr"] = report.lr
        if report.loss_scale != 1.0:
            row[f"{name}.loss_scale"] = report.loss_scale
        for key, value in result.metrics.items():
            row[f"{name}.{key}"] = value
        if report.skipped is None:
            self._skips[name] = 0
            return
        row[f"{name}.skipped"] = report.skipped
        self._skips[name] = self._skips.get(name, 0) + 1
        self.say(f"step {self.step}: {name} skipped: {report.skipped}")
        if self._skips[name] >= self._max_skipped:
            raise TooManySkips(
                f"{name} skipped {self._skips[name]} steps in a row, the last one, step {self.step}, "
                f"because {report.skipped}",
                "Lower the learning rate, look at the data of these steps, or raise max_skipped",
            )

    def _boundary(self) -> Reason | None:
        """Everything that happens between two steps; why to stop, or None."""
        now = self._agreement.settle(self.step)
        self._orders.obey(now.step, self._agreement.commands)
        reason = self._reason(now)
        if self._eval_last and reason in ("finished", "time") and self._duties.evaluated_at != now.step:
            self.wanted.add("eval")
        if self._duties.work(now, self.wanted, orderly=reason in (None, "finished")):
            now = self._agreement.settle(self.step)
            reason = self._reason(now)
        self._duties.save_if_due(now, self.wanted, final=reason is not None)
        self.wanted.clear()
        if reason is not None and events.StopRequested in self.hooks.active:
            self.hooks.emit(events.StopRequested(self, self.step, reason))
        return reason

    def _reason(self, now: Progressed) -> Reason | None:
        if self._agreement.signal is not None:
            return "signal"
        if self.until is not None and now.step >= self.until:
            return "finished"
        if "quit" in self.wanted or self._failure is not None:
            return "quit"
        if self.time_budget is not None and now.elapsed >= self.time_budget:
            return "time"
        return None

    def _stop_in_data_wait(self) -> Reason:
        """Stop although the loader does not deliver: the position of this window's start is saved."""
        self.say(f"step {self.step}: the loader did not deliver while a stop was asked for")
        if self._comm.world_size > 1:
            self.say("the ranks are at different batches; the last checkpoint stands")
        else:
            now = self._agreement.settle(self.step)
            self._duties.save(now, final=True, position=self._before_window)
        return "signal"

    # Setting up and taking down.

    def _open(self, stack: ExitStack) -> int | None:
        """Make what a run needs and load its checkpoint; returns the step of that, or None."""
        self._comm = Comm()
        stack.callback(self._comm.close)
        leader = self._comm.is_leader
        for engine in self.engines.values():
            engine.hooks = self.hooks
            if self._comm.world_size > 1 and engine.role == "train" and not engine.synchronised:
                raise ValueError(
                    f"engine {engine.name!r} does not average its gradients, and {self._comm.world_size} "
                    "ranks train: its copies would drift apart. Use DDPEngine, FSDPEngine or DeepSpeedEngine"
                )
        self._failure, self._before_window = None, None
        self.wanted = set()
        if self._seed is not None:
            seed_everything(self._seed, self._comm.rank)
        self._signals = stack.enter_context(StopSignals(on_first=self._announce_stop))
        self._feed = Feed(self.loader, self.hooks, self._signals)
        stack.callback(self._feed.close)
        self._console = Console(self._commands, self._control) if leader else Console(stdin=False)
        stack.callback(self._console.close)
        self._orders = Orders(self, self._console, self._comm)
        self._agreement = Agreement(self._comm, self._signals, lambda: bool(self._console), self._progressed)
        self._runner = WindowRunner(self.engines, self.feeder, self._agreement, self.hooks)
        self._bar = Progress(False, None)
        parts: dict[str, Stateful] = {
            "run": _Counters(self),
            "duties": self._duties,
            "schedule": self.schedule,
            "hooks": self.hooks,
        }
        self._run_state = RunState(self.engines, self._comm, parts, self._feed, self._state)
        saver = None
        if self.checkpoints is not None:
            with self._comm.together("preparing the checkpoint folder"):
                if leader:
                    self.checkpoints.prepare()
            saver = Saver(self.checkpoints, self._comm, asynchronous=self._async_save)
            stack.callback(saver.close)
        self._duties.open(saver, self._run_state)
        resumed_from = self._load()
        self._started = time.monotonic()
        self._first_step, self._first_elapsed = self.step, self._past
        stack.callback(self._stop_clock)
        self._sinks = list(self._extra_sinks) if leader else []
        if leader and self._log_dir is not None:
            self._sinks.append(JsonLines(self._log_dir / "metrics.jsonl"))
        for sink in self._sinks:
            stack.callback(sink.close)
        self._bar = Progress(self._progress_on and leader, self.until, self.step, self.time_budget)
        stack.callback(self._bar.close)
        return resumed_from

    def _load(self) -> int | None:
        found = find_checkpoint(self.checkpoints, self._comm, self._resume, self.say)
        if found is None:
            return None
        store, checkpoint, own = found
        if events.BeforeLoad in self.hooks.active:
            self.hooks.emit(events.BeforeLoad(self, checkpoint.step, checkpoint.path))
        with self._comm.together(f"loading {checkpoint.path}"):
            self._run_state.restore(store, checkpoint, self._resume, own=own)
        self.say(f"{'resumed' if own else 'started'} from {checkpoint.path}")
        self._duties.saved_at = self.step if own else None
        if events.AfterLoad in self.hooks.active:
            self.hooks.emit(events.AfterLoad(self, self.step, checkpoint.path))
        return checkpoint.step if own else None

    def _progressed(self) -> Progressed:
        clocks = [e.clock for e in self.engines.values()]
        return Progressed(self.step, self.elapsed, max(c.samples for c in clocks), max(c.tokens for c in clocks))

    def _announce_stop(self, number: int) -> None:
        """Runs inside the signal handler, where printing through a buffer could re-enter it."""
        text = f"\n{signal.Signals(number).name}: stopping after this step; a second one stops at once\n"
        with suppress(OSError):
            os.write(2, text.encode())

    def _stop_clock(self) -> None:
        self._past, self._started = self.elapsed, None


class _Counters:
    """The trainer's own numbers, as a part of its state."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        t = self._trainer
        return {"step": t.step, "elapsed": t.elapsed, "skips": dict(t._skips)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        t = self._trainer
        t.step, t._past = int(state["step"]), float(state["elapsed"])
        t._skips = dict(state["skips"])


def _shown(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers a progress bar has room for."""
    return {k: v for k, v in row.items() if k.endswith((".loss", ".lr", ".grad_norm"))}
