"""How many bytes an optimizer's state takes: measured, and told before there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wrapkit import _bytes
from wrapkit._policy import Policy
from wrapkit.optim._factory import optimizer
from wrapkit.optim._guard import NonFinite
from wrapkit.optim._multi import MultiOptimizer
from wrapkit.optim._muon import Muon
from wrapkit.optim._rules import DEFAULT_RULES, Rule


def state_bytes(built: Optimizer) -> int:
    """What an optimizer holds beside the parameters, after its first step."""
    own = {_bytes.storage_key(p) for group in built.param_groups for p in group["params"]}
    return _bytes.total(t for t in _bytes.nested_tensors(dict(built.state)) if _bytes.storage_key(t) not in own)


@dataclass(frozen=True)
class Optim:
    """An optimizer to be: the arguments of `wrapkit.optimizer`, but for the model.

    Args:
        name, policy, rules, nonfinite: see there.
        options: of the optimizer: `Optim("adamw", options={"lr": 1e-3})`.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    policy: Policy | None = None
    rules: Sequence[Rule] = DEFAULT_RULES
    nonfinite: NonFinite = "raise"

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer itself; errors as for `wrapkit.optimizer`."""
        return optimizer(
            self.name, model, policy=self.policy, rules=self.rules, nonfinite=self.nonfinite, **self.options
        )

    def predict(self, model: nn.Module) -> tuple[dict[Tensor, int], int]:
        """The bytes of state that each trained parameter will have, and those that they share.

        For AdamW, SGD, Muon and APOLLO by formula; other optimizers make one step on a parameter of each shape,
        on the CPU. The model may live on the meta device. (Prodigy keeps less for parameters that are all zero.)

        Raises:
            ValueError, PatternError, BackendUnavailable: as for `build`.
        """
        built = self.build(model)
        sizes: dict[Tensor, int] = {}
        shared = 0
        probed: dict[str, tuple[int, int]] = {}
        for part, group, parameter in _members(built):
            known = _formula(part, group, parameter)
            if known is None:
                settings = {k: v for k, v in group.items() if k != "params"}
                key = repr((tuple(parameter.shape), parameter.dtype, settings.get("lr"), settings.get("weight_decay")))
                if key not in probed:
                    probed[key] = self._probe(parameter)
                known, common = probed[key]
                shared = max(shared, common)
            sizes[parameter] = known
        return sizes, shared

    def _probe(self, parameter: Tensor) -> tuple[int, int]:
        """Bytes of state for one more parameter of this shape, and the rest: tables that all of them share."""
        held = []
        for count in (1, 2):
            twins = [nn.Parameter(torch.ones_like(parameter, device="cpu")) for _ in range(count)]
            for twin in twins:
                twin.grad = torch.full_like(twin, 1e-3)
            built = optimizer(self.name, twins, nonfinite="ignore", **self.options)
            with torch.compiler.set_stance("force_eager"):  # one step does not repay compiling it
                built.step()
            held.append(state_bytes(built))
        return held[1] - held[0], 2 * held[0] - held[1]


def _members(built: Optimizer) -> Iterator[tuple[Optimizer, dict[str, Any], Tensor]]:
    for part in built.parts.values() if isinstance(built, MultiOptimizer) else [built]:
        for group in part.param_groups:
            for parameter in group["params"]:
                yield part, group, parameter


def _formula(part: Optimizer, group: dict[str, Any], parameter: Tensor) -> int | None:
    size = parameter.numel() * parameter.element_size()
    if type(part) in (torch.optim.AdamW, torch.optim.Adam):
        return size * (3 if group["amsgrad"] else 2) + 4  # and the number of the step
    if type(part) is torch.optim.SGD:
        return size if group["momentum"] else 0
    if type(part) is Muon:
        return size
    from wrapkit.ext.apollo import Apollo

    return part.predict(parameter, group) if isinstance(part, Apollo) else None
