"""How fast a run is and how much memory it takes, in each metric line."""

from __future__ import annotations

import sys
import time

import torch

from trainloop.hooks.events import MetricsReady, RunStart
from trainloop.hooks.registry import Hooks


class Throughput:
    """A bundle that adds `steps_per_s`, `samples_per_s`, `tokens_per_s`, `mfu` and `memory_gib` to metrics.

    The rates are of this run since the last line it added them to, over all ranks. `mfu` is model FLOPs
    utilisation (Chowdhery et al. 2022, appendix B): the share of the hardware's peak that went into the
    model's own arithmetic.

    Args:
        every: steps between two measurements.
        flops_per_token, flops_per_sample: of a forward and backward pass; about 6 times the parameters per
            token for a transformer. Give one of them with `peak_flops` to get `mfu`.
        peak_flops: FLOP/s of one device.

    Raises:
        ValueError: `peak_flops` without work to divide by it, or the reverse.
    """

    def __init__(
        self,
        every: int = 10,
        *,
        flops_per_token: float | None = None,
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        if (flops_per_token is not None) + (flops_per_sample is not None) != (peak_flops is not None):
            raise ValueError("mfu needs peak_flops= and exactly one of flops_per_token= and flops_per_sample=")
        self._every, self._peak = every, peak_flops
        self._per_token, self._per_sample = flops_per_token, flops_per_sample
        self._mark = (0.0, 0, 0, 0)

    def attach(self, hooks: Hooks) -> None:
        hooks.on(RunStart, lambda e: self._restart(e))
        hooks.on(MetricsReady, self._measure, every=self._every)

    def _restart(self, event: RunStart) -> None:
        now = event.trainer.progressed
        self._mark = (time.perf_counter(), event.step, now.samples, now.tokens)

    def _measure(self, event: MetricsReady) -> None:
        then, step, samples, tokens = self._mark
        now = event.trainer.progressed
        self._mark = (time.perf_counter(), event.step, now.samples, now.tokens)
        seconds = self._mark[0] - then
        if seconds <= 0.0:
            return
        row = event.metrics
        row["steps_per_s"] = (event.step - step) / seconds
        row["samples_per_s"] = (now.samples - samples) / seconds
        row["tokens_per_s"] = (now.tokens - tokens) / seconds
        if self._peak is not None:
            done = row["tokens_per_s"] * (self._per_token or 0.0) + row["samples_per_s"] * (self._per_sample or 0.0)
            row["mfu"] = done / (self._peak * event.trainer.world_size)
        memory = memory_bytes()
        if memory is not None:
            row["memory_gib"] = memory / 2**30


def memory_bytes() -> int | None:
    """The most memory this process held so far: the device's with CUDA, else the resident set; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
