"""Modules come back from a block in the state they went in with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

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


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Run a block in which the module's parameters take no gradient.

    For a generator that learns through its discriminator: gradients flow through the other module and leave
    none behind in it, which its own backend would otherwise count or reduce.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
