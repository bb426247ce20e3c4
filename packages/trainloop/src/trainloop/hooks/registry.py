"""Who listens to which event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

E = TypeVar("E")


class HookError(RuntimeError):
    """A hook raised. Names the hook and the event; the cause is chained."""


class Bundle(Protocol):
    """Hooks that belong together. With `state_dict`/`load_state_dict` it is checkpointed by name."""

    def attach(self, hooks: Hooks, /) -> None: ...


@dataclass(slots=True)
class _Listener:
    fn: Callable[[Any], object]
    every: int
    order: int
    name: str
    calls: int = field(default=0)


def _name_of(fn: Callable[..., object]) -> str:
    module = getattr(fn, "__module__", "?")
    return f"{module}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"


class Hooks:
    """A registry of typed listeners.

    ```python
    hooks = Hooks()
    hooks.on(StepEnd, lambda e: print(e.step), every=100)
    ```

    An event nobody listens to costs one dict lookup: `if StepEnd in hooks.active`.
    """

    def __init__(self) -> None:
        self.active: dict[type, list[_Listener]] = {}
        self._bundles: dict[str, Bundle] = {}

    def on(self, event: type[E], fn: Callable[[E], object], *, every: int = 1, order: int = 0) -> Callable[[], None]:
        """Call `fn(event)` each time `event` happens; returns a function that takes it off again.

        Args:
            event: one of the classes in `trainloop.hooks`.
            every: only when the event's `step` is a multiple of this (for events that carry no step:
                every so many calls).
            order: listeners run by ascending order, and at the same order as they came.

        Raises:
            TypeError: `event` is not a class. ValueError: `every` below 1.
        """
        if not isinstance(event, type):
            raise TypeError(f"hooks.on() takes an event class such as StepEnd, found {event!r}")
        if every < 1:
            raise ValueError(f"every must be 1 or more, found {every}")
        listener = _Listener(fn, every, order, _name_of(fn))
        listeners = self.active.setdefault(event, [])
        listeners.append(listener)
        listeners.sort(key=lambda x: x.order)

        def off() -> None:
            listeners.remove(listener)
            if not listeners:
                self.active.pop(event, None)

        return off

    def attach(self, bundle: Bundle, name: str | None = None) -> None:
        """Attach a bundle under `name` (its own `name`, or else that of its class, by default).

        Raises:
            ValueError: the name is taken.
        """
        name = name or getattr(bundle, "name", None) or type(bundle).__name__
        if name in self._bundles:
            raise ValueError(f"a bundle named {name!r} is attached already; give this one another name=")
        self._bundles[name] = bundle
        bundle.attach(self)

    def __contains__(self, event: type) -> bool:
        return event in self.active

    def emit(self, event: object) -> None:
        """Tell every listener.

        Raises:
            HookError: a listener raised an `Exception`.
        """
        for listener in tuple(self.active.get(type(event), ())):
            listener.calls += 1
            if listener.every > 1 and getattr(event, "step", listener.calls) % listener.every:
                continue
            try:
                listener.fn(event)
            except Exception as e:
                raise HookError(
                    f"hook {listener.name} failed on {type(event).__name__}: {type(e).__name__}: {e}"
                ) from e

    def state_dict(self) -> dict[str, Any]:
        return {name: b.state_dict() for name, b in self._bundles.items() if hasattr(b, "state_dict")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the bundles' states back; a bundle attached since the save keeps its own."""
        for name, bundle in self._bundles.items():
            if name in state and hasattr(bundle, "load_state_dict"):
                bundle.load_state_dict(state[name])
