"""Small models and runs that the tests share."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import trainloop
from torch import nn


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.__version__ < (2, 7):
        for item in items:
            if "fsdp" in item.name:
                item.add_marker(pytest.mark.skip(reason="FSDP on a CPU needs torch 2.7"))


class Noisy(nn.Module):
    """An MLP with dropout: its loss depends on the random state."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Counting:
    """A loader with its own position, whose batches are a function of it."""

    def __init__(self, batches: int = 5, rows: int = 6, seed: int = 0) -> None:
        self.batches, self.rows, self.seed = batches, rows, seed
        self.epoch, self.position = 0, 0

    def __iter__(self):
        while self.position < self.batches:
            g = torch.Generator().manual_seed(self.seed * 10_000 + self.epoch * 100 + self.position)
            self.position += 1
            x = torch.randn(self.rows, 4, generator=g)
            yield x, x.sum(1, keepdim=True)
        self.position = 0
        self.epoch += 1

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def regress(engine: trainloop.Engine, batch: Any, ctx: trainloop.StepContext) -> trainloop.StepOutput:
    x, y = batch
    error = (engine.module(x) - y).square().mean()
    return trainloop.StepOutput(error, metrics={"error": error.detach()}, samples=len(x))


@pytest.fixture
def noisy() -> type[Noisy]:
    return Noisy


@pytest.fixture
def counting() -> type[Counting]:
    return Counting


@pytest.fixture
def feeder() -> Callable[..., trainloop.StepOutput]:
    return regress


@pytest.fixture
def make_engine() -> Callable[..., trainloop.LocalEngine]:
    def make(name: str = "net", seed: int = 0, **kwargs: Any) -> trainloop.LocalEngine:
        torch.manual_seed(seed)
        module = Noisy()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        kwargs.setdefault("scheduler", torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step)))
        return trainloop.LocalEngine(name, module, optimizer, **kwargs)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path, make_engine) -> Callable[..., trainloop.Trainer]:
    """A trainer over `Counting` with checkpoints in `tmp_path`; every argument can be replaced."""

    def make(**kwargs: Any) -> trainloop.Trainer:
        engines = kwargs.pop("engines", None) or trainloop.Engines([make_engine()])
        defaults: dict[str, Any] = {
            "loader": Counting(),
            "feeder": regress,
            "until": 12,
            "checkpoints": trainloop.CheckpointStore(tmp_path / "ckpt"),
            "log_dir": tmp_path,
            "commands": False,
            "progress": False,
            "seed": 1,
        }
        arguments = {**defaults, **kwargs}
        return trainloop.Trainer(engines, arguments.pop("loader"), arguments.pop("feeder"), **arguments)

    return make


@pytest.fixture(scope="session")
def server() -> None:
    """Start the process the ranks are forked from with all that they import, once.

    They are never forked from this one: torch has started threads in it, and a lock that one of them held at
    that moment would stay locked in the rank for ever.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        heavy = ["torch._dynamo", "torch.distributed.fsdp", "accelerate", "deepspeed"]
        multiprocessing.set_forkserver_preload(["pytest", "trainloop.trainer", "trainloop.ddp", *heavy])
        ready = multiprocessing.get_context("forkserver").Process(target=os.getpid)
        ready.start()  # waits for the server, so that no test's clock does
        ready.join()


class _ByValue:
    """Arrives in another process as the function it was made of, closure and all."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (cloudpickle.dumps(self.fn),)


def _rank_main(fn: Callable[[int], Any], environ: dict[str, str], rank: int, world: int, port: int, send) -> None:
    multiprocessing.set_start_method(None, force=True)  # what `fn` starts is started as it would be anywhere
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(45)
    os.environ.clear()
    os.environ.update(
        environ
        | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    )
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=30))
        answer = (True, fn(rank))
    except BaseException:
        answer = (False, traceback.format_exc())
    send.send_bytes(pickle.dumps(answer))
    send.close()
    os._exit(0)  # the other ranks may be gone: no orderly end of the group


@pytest.fixture
def ranks(server) -> Callable[..., list[Any]]:
    """`ranks(fn, n)` runs `fn(rank)` on n gloo ranks; what each returned, in order. `fn` may be a closure."""

    def run(fn: Callable[[int], Any], n: int = 2, timeout: float = 60.0) -> list[Any]:
        for module in (__name__, fn.__module__):  # the ranks cannot import them
            cloudpickle.register_pickle_by_value(sys.modules[module])
        context = multiprocessing.get_context("forkserver")
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        started = []
        for rank in range(n):
            receive, send = context.Pipe(duplex=False)
            arguments = (_ByValue(fn), dict(os.environ), rank, n, store.port, send)
            process = context.Process(target=_ByValue(_rank_main), args=arguments)
            process.start()
            send.close()
            started.append((process, receive))
        try:
            results = []
            for rank, (_, receive) in enumerate(started):
                assert receive.poll(timeout), f"rank {rank} hangs"
                results.append(pickle.loads(receive.recv_bytes()))
        finally:
            for process, _ in started:
                process.kill()
                process.join()
        for rank, (ok, value) in enumerate(results):
            assert ok, f"rank {rank} failed:\n{value}"
        return [value for _, value in results]

    return run
