"""Modules come back from a block in the mode they went in with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainloop.engines import Engines


@contextmanager
def modes_untouched(engines: Engines) -> Iterator[None]:
    """Run a block and put every module back into the mode, training or not, it was in."""
    modes = [(m, m.training) for e in engines.values() for m in e.module.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
