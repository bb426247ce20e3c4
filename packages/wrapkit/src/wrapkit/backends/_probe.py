"""Loading an optional package: it works, or it says why not and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType

from wrapkit._errors import BackendUnavailable


def load(module: str, backend: str, extra: str) -> ModuleType:
    """Import `module`, or raise `BackendUnavailable` whatever the import raised.

    Packages with native parts fail in many ways beside ImportError (OSError for a missing library,
    RuntimeError for a missing device, AttributeError for a torch of another version), so all of them are
    told, none hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.split(".")[0] == error.name.split(".")[0]:
            reason, hint = (
                f"{error.name} is not installed",
                f"Install it with: pip install 'wrapkit[{extra}]'",
            )
        else:
            reason, hint = (
                f"it needs {error.name}, which is not installed",
                "Install that, or reinstall the backend",
            )
        raise BackendUnavailable(backend, reason, hint) from error
    except Exception as error:
        reason = f"importing {module} raised {type(error).__name__}: {error}"
        raise BackendUnavailable(backend, reason, f"Check that {module} fits this torch and this machine") from error
