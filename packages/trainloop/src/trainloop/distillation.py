"""Learning from teachers: the loss of a student against one or several weighted teachers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

from trainloop.engine import Engine
from trainloop.engines import Engines
from trainloop.nested import to_device


@dataclass(frozen=True)
class Distillation:
    """`(1 - alpha) * task + alpha * sum_t w_t * d(student, t)` over teachers t (Hinton et al. 2015).

    `kl` is the divergence of the softened distributions, times temperature squared, so that its gradient does
    not shrink with the temperature; `mse` is the squared difference of the raw outputs.

    Attributes:
        loss: `kl` over the last dimension, or `mse`.
        alpha: share of the teachers, 0 to 1.
        temperature: of both softmaxes in `kl`.
        weights: teacher name to weight; scaled to sum to 1. None: all alike.

    Raises:
        ValueError: one of them is out of range.
    """

    loss: Literal["kl", "mse"] = "kl"
    alpha: float = 0.5
    temperature: float = 1.0
    weights: Mapping[str, float] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.loss not in ("kl", "mse"):
            raise ValueError(f"loss must be kl or mse, found {self.loss!r}")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be between 0 and 1, found {self.alpha}")
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be positive, found {self.temperature}")
        if self.weights is not None and (min(self.weights.values(), default=0) < 0 or not sum(self.weights.values())):
            raise ValueError(f"weights must not be negative and not all 0, found {dict(self.weights)}")

    def targets(
        self, engines: Engines, forward: Callable[[Engine], torch.Tensor], device: torch.device | str
    ) -> dict[str, torch.Tensor]:
        """What each teacher that counts says, by name, on `device`, without gradients.

        Args:
            engines: of the run; those with role `teacher` are asked.
            forward: `forward(teacher)` runs its module, on its device.
            device: the student's.

        Raises:
            ValueError: `weights` names a teacher that is not there, or there is none.
        """
        teachers = engines.teachers
        wanted = teachers if self.weights is None else self.weights
        missing = sorted(set(wanted) - set(teachers))
        if missing or not wanted:
            raise ValueError(f"no teacher named {', '.join(missing) or '…'}; there are {', '.join(teachers) or 'none'}")
        with torch.no_grad():
            return {name: to_device(forward(teachers[name]), device) for name in wanted}

    def __call__(
        self,
        student: torch.Tensor,
        targets: Mapping[str, torch.Tensor],
        task: torch.Tensor | float = 0.0,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss.

        Args:
            student: logits [..., C], or any output [..., C] for `mse`.
            targets: from `targets`, each of the student's shape.
            task: the student's own loss: the mean over the same positions.
            mask: [...], true where a position counts.

        Returns:
            a scalar: the mean over the positions that count. Pass their number as `StepOutput.weight`.
        """
        weights = self.weights or dict.fromkeys(targets, 1.0)
        total = sum(weights.values())
        teaching = student.new_zeros(())
        for name, target in targets.items():
            if target.shape != student.shape:
                raise ValueError(
                    f"teacher {name!r} gave {tuple(target.shape)}, the student {tuple(student.shape)}: they must agree"
                )
            teaching = teaching + weights[name] / total * _mean(self._distance(student, target), mask)
        return (1.0 - self.alpha) * task + self.alpha * teaching

    def _distance(self, student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Per position: [..., C] and [..., C] to [...]."""
        if self.loss == "mse":
            return (student - target).square().mean(-1)
        t = self.temperature
        log_p, log_q = F.log_softmax(target / t, -1), F.log_softmax(student / t, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1) * t * t


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return values.mean()
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


class TargetCache:
    """Keeps the last `size` answers of teachers on the CPU, for data that comes around again.

    ```python
    targets = cache(batch_id, lambda: distil.targets(ctx.engines, forward, device))
    ```

    What it holds is not saved: after a resume the teachers are simply asked again.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be 1 or more, found {size}")
        self.size = size
        self._held: OrderedDict[Hashable, dict[str, tuple[torch.device, torch.Tensor]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __call__(self, key: Hashable, ask: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The targets of `key`, asked for when they are not held."""
        if key not in self._held:
            self._held[key] = {name: (t.device, t.cpu()) for name, t in ask().items()}
            while len(self._held) > self.size:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return {name: t.to(device) for name, (device, t) in self._held[key].items()}
