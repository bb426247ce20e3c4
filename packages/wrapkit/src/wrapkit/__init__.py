"""Optimizations that replace or inject modules, planned and reversible.

* what to change: `Policy`
* modules: `replace`, `inject`, `LoRA` (more on adapters in `wrapkit.lora`), `resize`, `compile`
* memory: `Checkpoint`, `Offload`
* training: `optimizer`, `Rule`, `MultiOptimizer`
* together, with the bytes predicted: `plan`, of `Replace`, `LoRA`, `Freeze`, `Checkpoint`, `Offload`, `Optim`
* taking it back: `Handle.undo`
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# Names and where they live: importing wrapkit does not import torch.
_CONTENTS = {
    "BackendUnavailable": "wrapkit._errors",
    "Checkpoint": "wrapkit._checkpoint",
    "Freeze": "wrapkit._changes",
    "Handle": "wrapkit._handle",
    "LoRA": "wrapkit.lora",
    "MultiOptimizer": "wrapkit.optim",
    "NonFiniteGradient": "wrapkit._errors",
    "Offload": "wrapkit._offload",
    "Optim": "wrapkit.optim",
    "OverBudget": "wrapkit._errors",
    "PatternError": "wrapkit._errors",
    "Plan": "wrapkit._plan",
    "Policy": "wrapkit._policy",
    "Replace": "wrapkit._changes",
    "Rule": "wrapkit.optim",
    "UndoOrderError": "wrapkit._errors",
    "compile": "wrapkit._compile",
    "inject": "wrapkit._inject",
    "optimizer": "wrapkit.optim",
    "plan": "wrapkit._plan",
    "replace": "wrapkit._replace",
    "resize": "wrapkit._resize",
}

_MODULES = ("lora", "optim")

if TYPE_CHECKING:
    from wrapkit import lora as lora
    from wrapkit import optim as optim
    from wrapkit._changes import Freeze as Freeze
    from wrapkit._changes import Replace as Replace
    from wrapkit._checkpoint import Checkpoint as Checkpoint
    from wrapkit._compile import compile as compile
    from wrapkit._errors import BackendUnavailable as BackendUnavailable
    from wrapkit._errors import NonFiniteGradient as NonFiniteGradient
    from wrapkit._errors import OverBudget as OverBudget
    from wrapkit._errors import PatternError as PatternError
    from wrapkit._errors import UndoOrderError as UndoOrderError
    from wrapkit._handle import Handle as Handle
    from wrapkit._inject import inject as inject
    from wrapkit._offload import Offload as Offload
    from wrapkit._plan import Plan as Plan
    from wrapkit._plan import plan as plan
    from wrapkit._policy import Policy as Policy
    from wrapkit._replace import replace as replace
    from wrapkit._resize import resize as resize
    from wrapkit.lora import LoRA as LoRA
    from wrapkit.optim import MultiOptimizer as MultiOptimizer
    from wrapkit.optim import Optim as Optim
    from wrapkit.optim import Rule as Rule
    from wrapkit.optim import optimizer as optimizer

__all__ = sorted([*_CONTENTS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("wrapkit")
    if name in _MODULES:
        return import_module(f"wrapkit.{name}")
    if name not in _CONTENTS:
        raise AttributeError(f"module 'wrapkit' has no attribute {name!r}")
    value = getattr(import_module(_CONTENTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_CONTENTS, *_MODULES])
