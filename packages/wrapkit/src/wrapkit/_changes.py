"""`Replace` and `Freeze`: changes written down, to be planned together with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from wrapkit._handle import Handle
from wrapkit._policy import Policy
from wrapkit._replace import Replacement, replace


class Change(Protocol):
    """Anything that can be done to a model and undone: `LoRA`, `Checkpoint`, `Offload`, and those below."""

    def apply(self, model: nn.Module) -> Handle: ...


@dataclass(frozen=True)
class Replace:
    """`wrapkit.replace`, with its arguments."""

    what: Mapping[type[nn.Module], Replacement] | str
    policy: Policy | None = None
    subclasses: bool = False
    keep_weights: bool = True

    def apply(self, model: nn.Module) -> Handle:
        return replace(model, self.what, self.policy, subclasses=self.subclasses, keep_weights=self.keep_weights)


@dataclass(frozen=True)
class Freeze:
    """No gradients for the parameters that a policy chooses."""

    policy: Policy

    def apply(self, model: nn.Module) -> Handle:
        """
        Raises:
            PatternError: a pattern covers nothing.
            ValueError: none of the chosen parameters is trainable.
        """
        chosen = {name: p for name, p in self.policy.parameters(model) if p.requires_grad}
        if not chosen:
            raise ValueError(f"nothing to freeze: no trainable parameter of this {type(model).__name__} is chosen")
        handle = Handle(model, list(chosen))
        for parameter in chosen.values():
            parameter.requires_grad_(False)
            handle.on_undo(lambda p=parameter: p.requires_grad_(True))
        return handle
