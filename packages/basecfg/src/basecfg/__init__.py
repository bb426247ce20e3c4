"""Typed configuration for ML projects: YAML, checkpoints, environment and command line in one base class.

    from basecfg import BaseConfig, Section

    class Trainer(Section):
        iterations: int = 1000
        "Optimizer steps to take."

    class Config(BaseConfig):
        trainer: Trainer

    cfg = Config.from_yaml("exp.yaml", overrides=["trainer.iterations=10"])
    cfg.source_of("trainer.iterations")         # 'override'

Declaring a class imports neither pydantic nor a YAML parser; the first validation does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._config import BaseConfig
    from ._diff import Change
    from ._errors import ConfigError, ConfigWarning, Problem
    from ._field import Field
    from ._migrate import migrate_file
    from ._section import Section
    from ._types import DtypeName

_HOME = {
    "_config": ["BaseConfig"],
    "_diff": ["Change"],
    "_errors": ["ConfigError", "ConfigWarning", "Problem"],
    "_field": ["Field"],
    "_migrate": ["migrate_file"],
    "_section": ["Section"],
    "_types": ["DtypeName"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BaseConfig",
    "Change",
    "ConfigError",
    "ConfigWarning",
    "DtypeName",
    "Field",
    "Problem",
    "Section",
    "migrate_file",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds ``name`` on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("basecfg")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'basecfg' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
