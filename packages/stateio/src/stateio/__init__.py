"""State dicts as pickles or SafeTensors, with parity, verified and atomic.

    import stateio
    stateio.save({"module": model.state_dict(), "stats": {"step": 7}}, "model.sft")
    stateio.load_into("model.sft", model)
    stateio.load("model.sft")["stats"]          # {'step': 7}

Nothing heavy is imported before it is needed: a header is read without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._atomic import atomic_writer
    from ._diff import Difference, diff
    from ._errors import (
        ChecksumError,
        CorruptFileError,
        ForeignFileError,
        NewerVersionError,
        StateFileError,
        TargetMismatchError,
        TruncatedFileError,
        UnsafePickleError,
        UnsupportedObjectError,
    )
    from ._inspect import FileInfo, inspect, verify
    from ._json import json_parse, json_read, json_stringify, json_write
    from ._layout import StoredTensor
    from ._load import load
    from ._load_into import LoadReport, load_into
    from ._paths import pick_path
    from ._safetensors import Header, read_header
    from ._save import save

_HOME = {
    "_atomic": ["atomic_writer"],
    "_diff": ["Difference", "diff"],
    "_errors": [
        "ChecksumError",
        "CorruptFileError",
        "ForeignFileError",
        "NewerVersionError",
        "StateFileError",
        "TargetMismatchError",
        "TruncatedFileError",
        "UnsafePickleError",
        "UnsupportedObjectError",
    ],
    "_inspect": ["FileInfo", "inspect", "verify"],
    "_json": ["json_parse", "json_read", "json_stringify", "json_write"],
    "_layout": ["StoredTensor"],
    "_load": ["load"],
    "_load_into": ["LoadReport", "load_into"],
    "_paths": ["pick_path"],
    "_safetensors": ["Header", "read_header"],
    "_save": ["save"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ChecksumError",
    "CorruptFileError",
    "Difference",
    "FileInfo",
    "ForeignFileError",
    "Header",
    "LoadReport",
    "NewerVersionError",
    "StateFileError",
    "StoredTensor",
    "TargetMismatchError",
    "TruncatedFileError",
    "UnsafePickleError",
    "UnsupportedObjectError",
    "atomic_writer",
    "diff",
    "inspect",
    "json_parse",
    "json_read",
    "json_stringify",
    "json_write",
    "load",
    "load_into",
    "pick_path",
    "read_header",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds ``name`` on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("stateio")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'stateio' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
