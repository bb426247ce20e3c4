"""A change that can be taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import nn

from wrapkit._errors import UndoOrderError

Check = Callable[[], str | None]


class Handle:
    """Holds what it takes to undo a change. Also a context manager that undoes at the end of its block.

    Attributes:
        model: the model that was changed.
        changed: dotted names of what was changed.
        skipped: name -> reason, of what was chosen but could not be changed.
    """

    def __init__(self, model: nn.Module, changed: list[str]) -> None:
        self.model = model
        self.changed = changed
        self.skipped: dict[str, str] = {}
        self._steps: list[tuple[Callable[[], None], Check | None]] = []
        self._parts: list[Handle] = []
        self._undone = False

    def on_undo(self, action: Callable[[], None], check: Check | None = None) -> None:
        """Register a step (run in reverse order) and a check that returns what stands in its way, or None."""
        self._steps.append((action, check))

    def include(self, part: Handle) -> None:
        """Make a change that was made after all of this one a part of it, to be undone first."""
        self._parts.append(part)

    def undo(self) -> None:
        """Put everything back: the same objects, the same values. A second call does nothing.

        Raises:
            UndoOrderError: something changed later still stands on this change; nothing is undone then. (Of a
                change in several parts, those later than the one that is stood on are undone.)
        """
        if self._undone:
            return
        for part in reversed(self._parts):
            part.undo()
        problems = [problem for _, check in self._steps if check is not None and (problem := check())]
        if problems:
            raise UndoOrderError(f"{'; '.join(problems[:3])}. Undo the later change first")
        for action, _ in reversed(self._steps):
            action()
        self._undone = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()
