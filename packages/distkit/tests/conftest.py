"""Ranks for the tests, which run a test's own closures."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import distkit
import pytest


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    """Start the process the ranks are forked from with all that they import, once."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload(["distkit", "pytest", "torch._dynamo", "torch.distributed.fsdp"])
        ready = multiprocessing.get_context("forkserver").Process(target=os.getpid)
        ready.start()  # waits for the server, so that no test's clock does
        ready.join()


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

        for module in (__name__, fn.__module__):  # the ranks cannot import them
            cloudpickle.register_pickle_by_value(sys.modules[module])
        return distkit.launch(watched, n, timeout=timeout)

    return run
