"""Where the time goes, by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timers:
    """Adds up the seconds spent in named blocks.

    ```python
    with timers("tokenize"):
        ...
    trainer.log(timers.take(), "time")
    ```
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def take(self) -> dict[str, float]:
        """The seconds since the last call, by name."""
        taken, self.seconds = self.seconds, {}
        return taken
