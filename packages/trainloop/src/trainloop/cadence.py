"""When something that happens every so often is due."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Every:
    """A period in one or several units; whichever is used up first counts.

    Attributes:
        steps: optimizer steps; due when a multiple of it is reached or passed.
        minutes: minutes of training since the last time.
        samples, tokens: data seen (as the feeder reports it); due when a multiple is reached or passed.

    Raises:
        ValueError: no unit given, or one that is not positive.
    """

    steps: int | None = None
    minutes: float | None = None
    samples: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = {n: getattr(self, n) for n in self.__slots__ if getattr(self, n) is not None}
        if not given:
            raise ValueError("Every() needs at least one of steps=, minutes=, samples=, tokens=")
        for name, value in given.items():
            if value <= 0:
                raise ValueError(f"Every({name}=) must be positive, found {value}")


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a run has come, on all ranks together; `elapsed` is in seconds of training."""

    step: int = 0
    elapsed: float = 0.0
    samples: int = 0
    tokens: int = 0


class Cadence:
    """Remembers when it was last due. Without a period it never is.

    Crossing counts, not equality: a run resumed at step 105 with a period of 100 is next due at 200.
    """

    def __init__(self, every: Every | int | None) -> None:
        self.every = Every(steps=every) if isinstance(every, int) else every
        self._last = Progressed()

    def due(self, now: Progressed) -> bool:
        """Whether the period is used up. Stays true until `mark`."""
        every = self.every
        if every is None:
            return False
        last = self._last
        return bool(
            (every.steps is not None and now.step // every.steps > last.step // every.steps)
            or (every.minutes is not None and now.elapsed - last.elapsed >= every.minutes * 60.0)
            or (every.samples is not None and now.samples // every.samples > last.samples // every.samples)
            or (every.tokens is not None and now.tokens // every.tokens > last.tokens // every.tokens)
        )

    def mark(self, now: Progressed) -> None:
        """Start the period anew here."""
        self._last = now

    def state_dict(self) -> dict[str, float]:
        return asdict(self._last)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._last = Progressed(
            int(state["step"]), float(state["elapsed"]), int(state["samples"]), int(state["tokens"])
        )
