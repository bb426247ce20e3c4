"""Python's cycle collector, put off while a tree of many small objects is made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """A `with` block or decorator under which no cycles are looked for.

    The collector runs each time enough objects were made and none freed, and looks at all of them again: half the
    time of loading 20,000 tensors. None of these is garbage, and memory is freed by reference counts as ever. Where
    two threads are in it, the first to leave turns the collector on again, which costs the other time alone.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
