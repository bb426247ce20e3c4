"""`inject`: what `torch.nn` and `torch.optim` offer, overwritten for the length of a `with` block."""

from __future__ import annotations

from types import ModuleType, TracebackType
from typing import Any, Self

import torch


class Injection:
    """Made by `inject`; does nothing until it is entered. Can be entered again, also inside itself."""

    def __init__(self, replacements: dict[tuple[ModuleType, str], Any]) -> None:
        self._replacements = replacements
        self._originals: list[dict[tuple[ModuleType, str], Any]] = []

    def __enter__(self) -> Self:
        self._originals.append({place: getattr(*place) for place in self._replacements})
        for (module, name), value in self._replacements.items():
            setattr(module, name, value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for (module, name), value in self._originals.pop().items():
            setattr(module, name, value)


def inject(**replacements: type | str) -> Injection:
    """Overwrite classes of `torch.nn` or `torch.optim` by name, for the length of a block.

    Code that looks the class up while the block runs (`nn.Linear(…)`) gets the replacement; code that
    imported it by name before (`from torch.nn import Linear`) does not, nor do torch's own composite
    modules.

    Args:
        replacements: `Linear=MyLinear`, or a name: of a backend (`Linear="bitlinear"`), of an optimizer
            (`AdamW="adamw8bit"`).

    Raises:
        AttributeError: a name that neither `torch.nn` nor `torch.optim` has.
        BackendUnavailable: a backend that cannot be used here; nothing is overwritten then.

    >>> with inject(Linear="bitlinear"):
    ...     layer = torch.nn.Linear(4, 4)
    >>> type(layer).__name__, torch.nn.Linear.__name__
    ('BitLinear', 'Linear')
    """
    places: dict[tuple[ModuleType, str], Any] = {}
    for name, value in replacements.items():
        module = next((m for m in (torch.nn, torch.optim) if hasattr(m, name)), None)
        if module is None:
            raise AttributeError(f"neither torch.nn nor torch.optim has a {name!r} to overwrite")
        if isinstance(value, str):
            value = _by_name(value, module)
        if not isinstance(value, type):
            raise TypeError(f"{name} must be overwritten by a class, got {value!r}")
        places[module, name] = value
    return Injection(places)


def _by_name(name: str, module: ModuleType) -> type:
    if module is torch.optim:
        from wrapkit.optim import optimizer_class

        return optimizer_class(name)
    from wrapkit.backends import injectable

    return injectable(name)
