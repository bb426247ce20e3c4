"""Progress bars on stderr for the long parts around training; nothing is drawn where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Bar(Generic[T]):
    """A bar over items, or one that is moved by `to`.

    Args:
        items: iterated through the bar; None to move it by hand in a `with` block.
        what: what is going on.
        total: how many.
        unit: of what.
    """

    def __init__(self, items: Iterable[T] | None, what: str, total: int, unit: str = "it") -> None:
        from tqdm import tqdm

        self.total = total
        self._items = items
        quiet = not sys.stderr.isatty()
        if quiet:
            print(f"{what} …", file=sys.stderr, flush=True)
        self._bar = tqdm(total=total, desc=f"{what:14}", unit=unit, disable=quiet, leave=True, dynamic_ncols=True)

    def to(self, done: int) -> None:
        """Set how much is done."""
        self._bar.update(done - self._bar.n)

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items or ():
                yield item
                self._bar.update()

    def __enter__(self) -> Bar[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
