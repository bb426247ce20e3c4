"""Low-rank adapters: added, trained, switched, merged, saved.

* add them: `LoRA(rank=8, …).apply(model)`, or `load(model, path)`
* on a model: `names`, `enable`, `disable`, `strength`
* compute with one weight: `merge`, whose handle unmerges exactly
* files: `save`, `load`; the model's own weights: `base_state`, `merged_state`
"""

from wrapkit.lora._control import base_state, disable, enable, merge, merged_state, names, strength
from wrapkit.lora._files import save
from wrapkit.lora._layer import LoRALayer
from wrapkit.lora._load import load
from wrapkit.lora._spec import LoRA

__all__ = [
    "LoRA",
    "LoRALayer",
    "base_state",
    "disable",
    "enable",
    "load",
    "merge",
    "merged_state",
    "names",
    "save",
    "strength",
]
