"""Optimizations that replace or inject modules, planned and reversible.

* what to change: `Policy`
* modules: `replace`, `inject`, `LoRA` (more on adapters in `wrapkit.lora`)
* memory: `Checkpoint`
* training: `optimizer`, `Rule`, `MultiOptimizer`
* taking it back: `Handle.undo`
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# Names and where they live: importing wrapkit does not import torch.
_CONTENTS = {
    "BackendUnavailable": "wrapkit._errors",
    "Checkpoint": "wrapkit._checkpoint",
    "Handle": "wrapkit._handle",
    "LoRA": "wrapkit.lora",
    "MultiOptimizer": "wrapkit.optim",
    "NonFiniteGradient": "wrapkit._errors",
    "PatternError": "wrapkit._errors",
    "Policy": "wrapkit._policy",
    "Rule": "wrapkit.optim",
    "UndoOrderError": "wrapkit._errors",
    "inject": "wrapkit._inject",
    "optimizer": "wrapkit.optim",
    "replace": "wrapkit._replace",
}

if TYPE_CHECKING:
    from wrapkit._checkpoint import Checkpoint as Checkpoint
    from wrapkit._errors import BackendUnavailable as BackendUnavailable
    from wrapkit._errors import NonFiniteGradient as NonFiniteGradient
    from wrapkit._errors import PatternError as PatternError
    from wrapkit._errors import UndoOrderError as UndoOrderError
    from wrapkit._handle import Handle as Handle
    from wrapkit._inject import inject as inject
    from wrapkit._policy import Policy as Policy
    from wrapkit._replace import replace as replace
    from wrapkit.lora import LoRA as LoRA
    from wrapkit.optim import MultiOptimizer as MultiOptimizer
    from wrapkit.optim import Rule as Rule
    from wrapkit.optim import optimizer as optimizer

__all__ = sorted(_CONTENTS)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("wrapkit")
    if name not in _CONTENTS:
        raise AttributeError(f"module 'wrapkit' has no attribute {name!r}")
    value = getattr(import_module(_CONTENTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_CONTENTS])
