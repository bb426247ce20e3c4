"""One small all-reduce per step that carries everything the ranks have to decide alike."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NoReturn

from trainloop.cadence import Progressed
from trainloop.comm import Comm
from trainloop.signals import DataWaitInterrupted, StopSignals


class Agreement:
    """Carries a window's verdict and, in the same message, signals, commands, the clock and counts.

    On one process nothing is sent and the local values are returned.

    Args:
        comm: the control channel.
        signals: of this rank.
        commands_wait: whether a command waits on this rank.
        progressed: how far this rank has come (`samples` and `tokens` of its own data).
    """

    def __init__(
        self,
        comm: Comm,
        signals: StopSignals,
        commands_wait: Callable[[], bool],
        progressed: Callable[[], Progressed],
    ) -> None:
        self.comm = comm
        self._signals, self._commands_wait, self._progressed = signals, commands_wait, progressed
        self._fresh = False
        self.now = progressed()
        self.signal: int | None = None
        self.commands = False

    def round(
        self,
        weight: float = 0.0,
        failed: bool = False,
        absent: bool = False,
        not_finite: bool = False,
        *,
        broken_off: bool = False,
    ) -> list[float]:
        """The sums of the first four over the ranks; `now`, `signal` and `commands` are set on the way.

        Raises:
            DataWaitInterrupted: on every rank, when one broke its wait for data off.
        """
        verdict = [weight, float(failed), float(absent), float(not_finite)]
        mine, comm = self._progressed(), self.comm
        received = self._signals.received
        if comm.world_size == 1:
            self.now, self.signal, self.commands = mine, received, self._commands_wait()
            self._fresh = True
            return verdict
        *sums, broken, terms, interrupts, commands, elapsed, samples, tokens = comm.sum(
            [
                *verdict,
                float(broken_off),
                float(received == signal.SIGTERM),
                float(received == signal.SIGINT),
                float(comm.is_leader and self._commands_wait()),
                mine.elapsed if comm.is_leader else 0.0,
                mine.samples,
                mine.tokens,
            ]
        )
        self.now = Progressed(mine.step, elapsed, round(samples), round(tokens))
        self.signal = signal.SIGTERM if terms else signal.SIGINT if interrupts else None
        self.commands = commands > 0
        self._fresh = True
        if broken:
            raise DataWaitInterrupted
        return sums

    def break_off(self) -> NoReturn:
        """Tell the other ranks, which wait in their next round, that this one has no data."""
        self.round(broken_off=True)
        raise DataWaitInterrupted

    def settle(self, step: int) -> Progressed:
        """How far all ranks have come at the end of `step`, from this step's round or a new one."""
        if not self._fresh or self.comm.world_size == 1:
            self.round()
        self._fresh = False
        self.now = Progressed(step, self.now.elapsed, self.now.samples, self.now.tokens)
        return self.now
