"""The words a person can type while training runs, parsed to values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

HELP = """\
save | eval | export | quit       do it after this step
lr 1e-4 | lr auto                 pin the learning rate, or give it back to the scheduler
loss_scale 1024                   set the fp16 loss scale
time | time to 5000               seconds a step, and when a step will be reached
status                            step, epoch, rates, what is scheduled
event show | event clear          list or forget scheduled commands
<command>@<step>                  the same, once that step is reached: eval@500, lr 1e-5@2000
help                              this text"""

_PLAIN = ("save", "eval", "export", "quit", "status", "help")


class CommandError(ValueError):
    """A line that is not a command; says what was expected."""


@dataclass(frozen=True, slots=True)
class Command:
    """One parsed command.

    Attributes:
        name: `save`, `eval`, `export`, `quit`, `lr`, `loss_scale`, `time`, `status`, `help`, `event show`
            or `event clear`.
        value: rate or scale; for `time` the step asked about; None for `lr auto` and for the rest.
        at: global step at which it takes effect, or None for now.
    """

    name: str
    value: float | int | None = None
    at: int | None = None

    def __str__(self) -> str:
        text = self.name
        if self.name == "lr":
            text += " auto" if self.value is None else f" {self.value:g}"
        elif self.name == "loss_scale":
            text += f" {self.value:g}"
        elif self.name == "time" and self.value is not None:
            text += f" to {self.value}"
        return text if self.at is None else f"{text}@{self.at}"

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "at": self.at}


def parse(line: str) -> Command:
    """The command on a line.

    Raises:
        CommandError: it is none; the message says what was expected.
    """
    text, sign, at_text = line.strip().partition("@")
    at = _step(at_text, line) if sign else None
    words = text.split()
    if not words:
        raise CommandError("an empty command; `help` lists them")
    name, rest = words[0].lower(), words[1:]
    if name in _PLAIN and not rest:
        return Command(name, at=at)
    if name == "lr":
        if rest == ["auto"]:
            return Command("lr", None, at)
        return Command("lr", _number(rest, "lr", "a learning rate of 0 or more, such as lr 1e-4", zero=True), at)
    if name == "loss_scale":
        return Command("loss_scale", _number(rest, name, "a positive scale, such as loss_scale 1024"), at)
    if name == "time" and not rest:
        return Command("time", at=at)
    if name == "time" and len(rest) == 2 and rest[0] == "to":
        return Command("time", _step(rest[1], line), at)
    if name == "event" and rest in (["show"], ["clear"]) and at is None:
        return Command(f"event {rest[0]}")
    raise CommandError(f"{line.strip()!r} is not a command; expected one of\n{HELP}")


def _number(words: list[str], name: str, expected: str, zero: bool = False) -> float:
    try:
        (word,) = words
        value = float(word)
    except ValueError:
        raise CommandError(f"{name}: expected {expected}; found {' '.join(words)!r}") from None
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise CommandError(f"{name}: expected {expected}; found {words[0]!r}")
    return value


def _step(word: str, line: str) -> int:
    word = word.strip()
    if not (word.isascii() and word.isdigit()):
        raise CommandError(f"{line.strip()!r}: expected a step, a whole number such as 500; found {word!r}")
    return int(word)


class Schedule:
    """Commands waiting for their step. Saved with the run; each fires once, when its step is crossed."""

    def __init__(self) -> None:
        self.waiting: list[Command] = []

    def add(self, command: Command) -> None:
        self.waiting.append(command)

    def take(self, step: int) -> list[Command]:
        """Remove and return the commands whose step has been reached, in the order of their steps."""
        if not self.waiting:
            return []
        due = [c for c in self.waiting if c.at is not None and c.at <= step]
        self.waiting = [c for c in self.waiting if c not in due]
        return sorted(due, key=lambda c: c.at or 0)

    def clear(self) -> None:
        self.waiting = []

    def __str__(self) -> str:
        return ", ".join(map(str, self.waiting)) or "nothing is scheduled"

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": [c.state_dict() for c in self.waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waiting = [Command(**c) for c in state["waiting"]]
