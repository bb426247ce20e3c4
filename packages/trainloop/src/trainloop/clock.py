"""What an engine has done so far, counted in units that survive a restart."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Clock:
    """Counters of one engine.

    Attributes:
        micro: micro-batches that went through a backward pass.
        step: optimizer steps taken (skipped ones are not counted here).
        skipped: steps not taken: a non-finite gradient, no memory, a window without weight.
        samples: samples reported by the feeder (`StepOutput.samples`).
        tokens: tokens reported by the feeder (`StepOutput.tokens`).
    """

    micro: int = 0
    step: int = 0
    skipped: int = 0
    samples: int = 0
    tokens: int = 0

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name in ("micro", "step", "skipped", "samples", "tokens"):
            setattr(self, name, int(state[name]))
