"""Carries out commands, the same ones on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainloop.comm import Comm
from trainloop.commands import HELP, Command, CommandError, parse
from trainloop.console import Console
from trainloop.hooks.events import CommandRun
from trainloop.progress import hms

if TYPE_CHECKING:
    from trainloop.trainer import Trainer


class Orders:
    """Takes lines from the console and commands from the schedule to the trainer.

    A line that is no command is answered with what was expected, and changes nothing.
    """

    def __init__(self, trainer: Trainer, console: Console, comm: Comm) -> None:
        self._trainer, self._console, self._comm = trainer, console, comm

    def obey(self, step: int, typed: bool) -> None:
        """Carry out what was typed (`typed`: agreed that something was) and what `step` is due for."""
        schedule = self._trainer.schedule
        for command in self._typed() if typed else ():
            if command.at is None:
                self._run(command, step)
            elif command.at <= step:
                self._trainer.say(f"{command}: step {step} is past that already")
            else:
                schedule.add(command)
                self._trainer.say(f"scheduled {command}")
        for command in schedule.take(step):
            self._run(command, step)

    def _typed(self) -> list[Command]:
        commands: list[Command] = []
        for line in self._console.take():
            try:
                commands.append(parse(line))
            except CommandError as e:
                self._trainer.say(str(e))
        return self._comm.broadcast(commands)

    def _run(self, command: Command, step: int) -> None:
        trainer = self._trainer
        if CommandRun in trainer.hooks.active:
            trainer.hooks.emit(CommandRun(trainer, step, command))
        match command.name:
            case "save" | "eval" | "export" | "quit":
                trainer.wanted.add(command.name)
            case "lr" | "loss_scale":
                self._set(command)
            case "time":
                trainer.say(self._time(command.value))
            case "status":
                trainer.say(self._status())
            case "event show":
                trainer.say(str(trainer.schedule))
            case "event clear":
                trainer.schedule.clear()
            case "help":
                trainer.say(HELP)

    def _set(self, command: Command) -> None:
        for engine in self._trainer.engines.values():
            if engine.role == "teacher" or engine.optimizer is None:
                continue  # one that rests for now is told too
            try:
                if command.name == "lr":
                    engine.set_lr(command.value)
                    self._trainer.say(f"{engine.name}: learning rate {engine.lr:g}")
                else:
                    engine.set_loss_scale(float(command.value or 0))
                    self._trainer.say(f"{engine.name}: loss scale {engine.loss_scale:g}")
            except ValueError as e:
                self._trainer.say(str(e))

    def _time(self, to: float | int | None) -> str:
        trainer = self._trainer
        done = trainer.steps_this_run
        if done == 0:
            return "no step was done yet"
        pace = trainer.seconds_this_run / done
        text = f"{pace:.3g} s a step over {done} steps, {hms(trainer.elapsed)} of training in all"
        target = trainer.until if to is None else int(to)
        if target is not None:
            text += f"; step {target} in {hms(max(0, target - trainer.step) * pace)}"
        return text

    def _status(self) -> str:
        trainer = self._trainer
        lines = [f"step {trainer.step}, epoch {trainer.epoch}, {hms(trainer.elapsed)} of training"]
        for engine in trainer.engines.values():
            clock = engine.clock
            lines.append(
                f"{engine.name} ({engine.role}): {clock.step} steps, {clock.skipped} skipped, lr {engine.lr:g}"
            )
        lines.append(f"scheduled: {trainer.schedule}")
        return "\n".join(lines)
