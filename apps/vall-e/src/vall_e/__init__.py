"""A VALL-E text-to-speech trainer and synthesiser.

    from vall_e import load_model, Sample
    model = load_model("fp32.sft")
    codes = model.generate([Sample("həlˈoʊ wˈɜːld", prompt=codes_of_the_voice)])

Nothing heavy is imported before it is needed.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vall_e.config import Config
    from vall_e.model.sequence import Sample
    from vall_e.weights import load_model, load_weights

_MODULE_OF = {
    "Config": "vall_e.config",
    "Sample": "vall_e.model.sequence",
    "load_model": "vall_e.weights",
    "load_weights": "vall_e.weights",
}

__all__ = ["Config", "Sample", "load_model", "load_weights"]
__version__ = version("vall-e")


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vall_e' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
