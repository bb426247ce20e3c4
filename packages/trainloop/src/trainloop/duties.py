"""What a run does between steps every so often: evaluate, export and save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainloop.cadence import Cadence, Every, Progressed
from trainloop.failpoints import failpoint
from trainloop.hooks.events import (
    AfterEval,
    AfterExport,
    AfterSave,
    BeforeEval,
    BeforeExport,
    BeforeSave,
)
from trainloop.manifest import CheckpointError
from trainloop.metrics import plain
from trainloop.modes import modes_untouched
from trainloop.persist import Position, RunState
from trainloop.rng import rng_untouched
from trainloop.saver import SaveOutcome, Saver

if TYPE_CHECKING:
    from trainloop.trainer import Trainer

Evaluate = Callable[["Trainer"], Mapping[str, float]]
Export = Callable[["Trainer"], object]


class Duties:
    """Evaluation, export and saving of one trainer, with their cadences.

    Args:
        trainer: whose.
        evaluate, export: the user's functions, or None.
        eval_every, export_every, save_every: how often; None is never.
    """

    def __init__(
        self,
        trainer: Trainer,
        evaluate: Evaluate | None,
        eval_every: Every | int | None,
        export: Export | None,
        export_every: Every | int | None,
        save_every: Every | int | None,
    ) -> None:
        self._trainer, self._evaluate, self._export = trainer, evaluate, export
        self._eval, self._exports, self._saves = (
            Cadence(eval_every),
            Cadence(export_every),
            Cadence(save_every),
        )
        self._saver: Saver | None = None
        self._state: RunState | None = None
        self.saved_at: int | None = None
        self.evaluated_at: int | None = None
        self._last_eval: dict[str, Any] = {}

    def open(self, saver: Saver | None, state: RunState) -> None:
        """Begin a run that saves `state` through `saver`, or nothing without one."""
        self._saver, self._state = saver, state
        self.saved_at = None

    def work(self, now: Progressed, wanted: set[str], *, orderly: bool) -> bool:
        """Evaluate and export what is due (only while `orderly`) or was typed; whether time passed."""
        worked = False
        if "eval" in wanted or (orderly and self._eval.due(now)):
            self.evaluate(now)
            worked = True
        if "export" in wanted or (orderly and self._exports.due(now)):
            if not self._trainer.stop_requested:
                self.export(now)
            worked = True
        return worked

    def evaluate(self, now: Progressed) -> None:
        """Evaluate, log the result, and keep it for the manifest of this step's checkpoint."""
        trainer = self._trainer
        if self._evaluate is None:
            trainer.say("there is nothing to evaluate: the trainer has no evaluate=")
            return
        if BeforeEval in trainer.hooks.active:
            trainer.hooks.emit(BeforeEval(trainer, now.step))
        with rng_untouched(), modes_untouched(trainer.engines):
            failpoint("mid_eval")
            metrics = {k: plain(v) for k, v in self._evaluate(trainer).items()}
        if trainer.stop_requested:
            trainer.say("the evaluation was interrupted; it is run again after the resume")
            return
        self._eval.mark(now)
        self.evaluated_at, self._last_eval = now.step, metrics
        trainer.log(metrics, "eval")
        if AfterEval in trainer.hooks.active:
            trainer.hooks.emit(AfterEval(trainer, now.step, metrics))

    def export(self, now: Progressed) -> None:
        trainer = self._trainer
        if self._export is None:
            trainer.say("there is nothing to export with: the trainer has no export=")
            return
        if BeforeExport in trainer.hooks.active:
            trainer.hooks.emit(BeforeExport(trainer, now.step))
        with rng_untouched(), modes_untouched(trainer.engines):
            self._export(trainer)
        self._exports.mark(now)
        if AfterExport in trainer.hooks.active:
            trainer.hooks.emit(AfterExport(trainer, now.step))

    def save_if_due(self, now: Progressed, wanted: set[str], *, final: bool) -> None:
        """Save when it is time, was typed or the run ends; collect what a thread saved meanwhile."""
        if self._saver is None:
            if "save" in wanted:
                self._trainer.say("there is nowhere to save: the trainer has no checkpoints=")
            return
        self._report(self._saver.poll())
        if final or "save" in wanted or self._saves.due(now):
            self.save(now, final=final)

    def save(self, now: Progressed, *, final: bool, position: Position | None = None) -> None:
        """Save this step, unless it has been.

        Raises:
            CheckpointError: it failed and is the `final` one; any other failure is said and training
                goes on.
        """
        if self._saver is None or self._state is None:
            return
        trainer = self._trainer
        if self.saved_at != now.step:
            if BeforeSave in trainer.hooks.active:
                trainer.hooks.emit(BeforeSave(trainer, now.step))
            self._saves.mark(now)
            # What was measured at another step says nothing of this one's weights.
            metrics = self._last_eval if self.evaluated_at == now.step else {}
            try:
                saved = self._saver.save(now.step, self._state, {"metrics": metrics}, position)
                self.saved_at = now.step
                self._report(saved)
            except CheckpointError as e:
                if final:
                    raise
                trainer.say(f"step {now.step} was not saved, training goes on: {e}")
        if final:
            self._report(self._saver.finish(), final=True)

    def _report(self, saved: Iterable[SaveOutcome], *, final: bool = False) -> None:
        trainer = self._trainer
        for step, outcome in saved:
            if isinstance(outcome, Path):
                if AfterSave in trainer.hooks.active:
                    trainer.hooks.emit(AfterSave(trainer, step, outcome))
                continue
            self.saved_at = None
            if final:
                raise outcome
            trainer.say(f"step {step} was not saved, training goes on: {outcome}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "eval": self._eval.state_dict(),
            "export": self._exports.state_dict(),
            "save": self._saves.state_dict(),
            "last_eval": {"step": self.evaluated_at, "metrics": self._last_eval},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._eval.load_state_dict(state["eval"])
        self._exports.load_state_dict(state["export"])
        self._saves.load_state_dict(state["save"])
        last = state["last_eval"]
        self.evaluated_at, self._last_eval = last.get("step"), dict(last.get("metrics", {}))
