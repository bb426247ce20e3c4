"""Ranks for the tests: forked, so that a test's own closure can be what they run."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from typing import Any

import distkit
import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the variables of the machine it runs on."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ranks() -> Callable[..., list[Any]]:
    """`ranks(fn, n)` runs `fn()` on n gloo ranks and returns what each returned."""

    def run(fn: Callable[[], Any], n: int = 2, timeout: float = 60.0) -> list[Any]:
        def watched() -> Any:
            faulthandler.dump_traceback_later(timeout * 0.75)  # a hang says where
            return fn()

        return distkit.launch(watched, n, timeout=timeout, start="fork")

    return run
