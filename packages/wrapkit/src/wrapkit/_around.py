"""Something done around a module's forward, that copies, pickles and `isinstance` do not notice."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

from torch import nn

from wrapkit._handle import Handle

_NAME = "_wrapkit_around"


class Around(Protocol):
    """Calls the forward it is given, in its own way. It is copied and pickled with the module, so it holds none."""

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...


def surround(handle: Handle, module: nn.Module, around: Around) -> None:
    """Let the module's forward run inside `around`, and that inside what surrounds it already; register the undoing.

    The module gets a subclass of its class. A method patched onto the object would, after `copy.deepcopy`, go on
    calling the original.
    """
    kind, before = type(module), around_of(module)
    wrapped = kind if before else surrounded(kind)
    now = (*before, around)

    def undo() -> None:
        if before:
            module.__dict__[_NAME] = before
        else:
            del module.__dict__[_NAME]
            module.__class__ = kind

    def check() -> str | None:
        if type(module) is wrapped and around_of(module) == now:
            return None
        return f"the forward of a {type(module).__name__} has been changed again"

    module.__dict__[_NAME] = now
    module.__class__ = wrapped
    handle.on_undo(undo, check)


def around_of(module: nn.Module) -> tuple[Around, ...]:
    """What surrounds the module's forward, innermost first."""
    return module.__dict__.get(_NAME, ())


@cache
def surrounded(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        function: Callable[..., Any] = partial(kind.forward, self)
        for around in around_of(self):
            function = partial(around, function)
        return function(*args, **kwargs)

    def reduce(self: Any, protocol: int) -> Any:
        return _rebuild, (kind,), self.__getstate__()

    return type(kind.__name__, (kind,), {"forward": forward, "__reduce_ex__": reduce, "__module__": kind.__module__})


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    return object.__new__(surrounded(kind))
