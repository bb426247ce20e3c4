"""Metrics to TensorBoard and Weights & Biases, each loaded when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainloop.metrics import plain


class TensorBoard:
    """Writes every number as a scalar `<kind>/<name>` to event files.

    Args:
        folder: of the event files. A resumed run goes on in a file of its own, from the step it resumed at,
            which hides what the lost steps had written.

    Raises:
        ImportError: tensorboard is not installed (`pip install trainloop[tensorboard]`).
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise ImportError("TensorBoard needs tensorboard: pip install trainloop[tensorboard]") from e
        self._folder, self._make = folder, SummaryWriter
        self._writer: Any = None

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=step)
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB:
    """Logs every number as `<kind>/<name>` to a Weights & Biases run.

    Args:
        options: for `wandb.init`: `project`, `name`, `config`, `mode`, `dir`, `id` with `resume="allow"` …

    Raises:
        ImportError: wandb is not installed (`pip install trainloop[wandb]`).
    """

    def __init__(self, **options: Any) -> None:
        try:
            import wandb
        except ImportError as e:
            raise ImportError("WandB needs wandb: pip install trainloop[wandb]") from e
        self._run = wandb.init(**options)

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in _numbers(metrics).items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    values = {name: plain(value) for name, value in metrics.items()}
    return {n: float(v) for n, v in values.items() if isinstance(v, bool | int | float)}
