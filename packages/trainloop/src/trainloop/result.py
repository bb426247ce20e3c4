"""How a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["finished", "quit", "signal", "time"]


class TooManySkips(RuntimeError):
    """An engine skipped `max_skipped` steps in a row.

    Args:
        why: which one, where and why; kept as an attribute, for an application with advice of its own.
        remedy: what to do, in terms of this library.
    """

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(f"{why}. {remedy}" if remedy else why)
        self.why = why


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done in all.
        reason: `finished` (`until` reached), `time` (budget used up), `quit` (typed), `signal`.
        exit_code: 0, or 128 + the signal's number.
        resumed_from: the step of the checkpoint it continued, or None.
    """

    step: int
    reason: Reason
    exit_code: int
    resumed_from: int | None
