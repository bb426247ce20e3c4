"""trainloop's cost of a step, an import, an event and a save, against a raw loop and other trainers, in one run.

    uv run --with lightning --with transformers --with pytorch-ignite \\
        python benchmarks/trainloop.py [--quick] [--out FILE]

A peer that is not installed is named as missing. Figures are CPU time of the process (times of a clock are not to be
trusted on a shared machine). A step's is the slope between a short and a long run, so that set-up does not count; the
contenders take turns, a figure is the median of the rounds.
"""

from __future__ import annotations

# ruff: noqa: E402 - this file has the name of the package, so its folder must be searched last
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path = [p for p in sys.path if Path(p).resolve() != HERE.resolve()] + [str(HERE)]

import contextlib
import io
import logging
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import trainloop
from benchmark_report import Report, Rows, argument_parser
from torch import nn
from trainloop.hooks import AfterOptimizerStep, BatchFetched, BeforeForward, Hooks, StepEnd
from trainloop.persist import detached_copy

PACKAGES = (
    "trainloop", "torch", "pytorch-ignite", "lightning", "accelerate", "transformers", "deepspeed",
)  # fmt: skip
BATCH = (torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), torch.ones(8, 1))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-3)


def mse(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def raw(steps: int) -> None:
    module = mlp()
    optimizer = adamw(module)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse(module, BATCH)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        loss.item()


class Forever:
    """The same batch again and again."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield BATCH


def ours(steps: int, full: bool = False, backend: str = "local", **options: Any) -> None:
    hooks = Hooks()
    if full:
        for event in (BatchFetched, BeforeForward, AfterOptimizerStep, StepEnd):
            hooks.on(event, lambda e: None)
    engine = trainloop.build_engine(backend, "net", mlp(), adamw, **options)
    with tempfile.TemporaryDirectory() as folder:
        trainloop.Trainer(
            trainloop.Engines([engine]),
            Forever(),
            lambda e, batch, ctx: trainloop.StepOutput(mse(e.module, batch)),
            until=steps,
            hooks=hooks,
            log_dir=folder if full else None,
            control=Path(folder, "control") if full else None,
            commands=False,
            progress=False,
        ).run()


def ignite(steps: int) -> None:
    from ignite.engine import Engine

    module = mlp()
    optimizer = adamw(module)

    def step(_: Any, batch: Any) -> float:
        optimizer.zero_grad()
        loss = mse(module, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    Engine(step).run([BATCH] * steps, max_epochs=1)


def fabric(steps: int) -> None:
    from lightning.fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=1)
    module = mlp()
    module, optimizer = runner.setup(module, adamw(module))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse(module, BATCH)
        runner.backward(loss)
        runner.clip_gradients(module, optimizer, max_norm=1.0)
        optimizer.step()
        loss.item()


def accelerate(steps: int) -> None:
    from accelerate import Accelerator

    runner = Accelerator(cpu=True)
    module = mlp()
    module, optimizer = runner.prepare(module, adamw(module))
    for _ in range(steps):
        with runner.accumulate(module):
            optimizer.zero_grad()
            loss = mse(module, BATCH)
            runner.backward(loss)
            runner.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            loss.item()


def lightning(steps: int) -> None:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = mse(self.net, batch)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.net)

    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        ).fit(Module(), Forever())


def transformers(steps: int) -> None:
    from transformers import Trainer, TrainingArguments

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.mse_loss(self.net(x), labels)}

    rows = [{"x": x, "labels": y} for x, y in zip(*BATCH, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        Trainer(Module(), arguments, train_dataset=rows).train()


def deepspeed(steps: int) -> None:
    import deepspeed as ds

    module = mlp()
    config = {"train_micro_batch_size_per_gpu": 8, "gradient_clipping": 1.0, "zero_optimization": {"stage": 0}}
    engine, *_ = ds.initialize(model=module, optimizer=adamw(module), config=config, dist_init_required=False)
    for _ in range(steps):
        loss = mse(engine, BATCH)
        engine.backward(loss)
        engine.step()
        loss.item()


RUNNERS: dict[str, Callable[[int], None]] = {
    "raw loop": raw,
    "trainloop": ours,
    "trainloop, 4 hooks, JSON lines, commands": lambda n: ours(n, full=True),
    "trainloop on accelerate": lambda n: ours(n, backend="accelerate"),
    "trainloop on DeepSpeed, ZeRO 0": lambda n: ours(n, backend="deepspeed"),
    "trainloop on DeepSpeed, ZeRO 2": lambda n: ours(n, backend="deepspeed", zero_stage=2),
    "ignite": ignite,
    "Fabric": fabric,
    "accelerate": accelerate,
    "Lightning": lightning,
    "HF Trainer": transformers,
    "DeepSpeed, ZeRO 0": deepspeed,
}
IMPORTS = {
    "torch alone": "torch",
    "trainloop": "torch, trainloop.trainer, trainloop.local, trainloop.build",
    "ignite": "torch, ignite.engine",
    "Fabric": "torch, lightning.fabric",
    "Lightning": "torch, lightning",
    "accelerate": "torch, accelerate",
    "HF Trainer": "torch, transformers.trainer",
    "DeepSpeed": "torch, deepspeed",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield


def cpu(run: Callable[[int], None], steps: int) -> float:
    begin = time.process_time()
    run(steps)
    return time.process_time() - begin


def steps_table(short: int, long: int, rounds: int) -> Rows:
    slopes: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for n in range(rounds + 1):  # the first warms up
        for name, run in RUNNERS.items():
            if name in missing:
                continue
            try:
                with quiet():
                    few, many = cpu(run, short), cpu(run, long)
            except Exception as e:
                missing[name] = f"{type(e).__name__}: {e}".splitlines()[0][:150]
                continue
            if n:
                slopes.setdefault(name, []).append((many - few) / (long - short) * 1e6)
    base = statistics.median(slopes["raw loop"])
    rows: Rows = {}
    for name in RUNNERS:
        if name in missing:
            rows[name] = {"missing": missing[name]}
            continue
        step = statistics.median(slopes[name])
        over = [s - r for s, r in zip(slopes[name], slopes["raw loop"], strict=True)]
        rows[name] = {"us/step": round(step, 1), "over raw us": round(statistics.median(over), 1), "ratio": step / base}
    return rows


def imports_table(rounds: int) -> Rows:
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    missing: dict[str, str] = {}
    for n in range(rounds + 1):
        for name, what in IMPORTS.items():
            script = f"import time; b = time.process_time(); import {what}; print(time.process_time() - b)"
            environ = {**os.environ, "DS_ACCELERATOR": "cpu"}
            out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ)
            if out.returncode:
                missing[name] = (out.stderr.strip().splitlines() or ["failed"])[-1][:150]
            elif n:
                seconds[name].append(float(out.stdout.split()[-1]))
    base = statistics.median(seconds["torch alone"])
    return {
        name: {"missing": missing[name]}
        if name in missing
        else {"s": round(statistics.median(s), 2), "beyond torch s": round(statistics.median(s) - base, 3)}
        for name, s in seconds.items()
    }


def event_table() -> Rows:
    """An event nobody listens to, against a look-up in a dict of as many entries."""
    import timeit

    hooks, plain = Hooks(), dict.fromkeys(range(3))
    for event in (BatchFetched, BeforeForward, AfterOptimizerStep):
        hooks.on(event, print)
    active = hooks.active
    both = {"an event without listeners": lambda: StepEnd in active, "a look-up in a dict": lambda: 7 in plain}
    best = {name: min(timeit.repeat(call, number=100_000, repeat=7)) / 100_000 * 1e9 for name, call in both.items()}
    return {name: {"ns": round(ns, 1)} for name, ns in best.items()}


def save_table(mib: int, rounds: int) -> Rows:
    """How long an asynchronous save holds training up, against copying the state; both by the clock, in turns."""
    width = int((mib * 2**20 / 4 / 3) ** 0.5)  # Adam's two moments beside the weights
    module = nn.Linear(width, width, bias=False)
    engine = trainloop.LocalEngine("net", module, torch.optim.AdamW(module.parameters(), lr=1e-3))
    x = torch.randn(2, width)
    copies: list[float] = []
    blocked: list[float] = []
    at = [0.0]
    hooks = Hooks()

    def copied(event: Any) -> None:
        begin = time.perf_counter()
        held = detached_copy({**engine.state_dict()})
        copies.append(time.perf_counter() - begin)
        del held
        at[0] = time.perf_counter()

    def began(event: Any) -> None:
        if at[0]:
            blocked.append(time.perf_counter() - at[0])
            at[0] = 0.0
        time.sleep(1.0)  # the thread has written by now

    hooks.on(trainloop.hooks.BeforeSave, copied)
    hooks.on(BatchFetched, began)
    with tempfile.TemporaryDirectory() as folder:
        trainloop.Trainer(
            trainloop.Engines([engine]),
            [x],
            lambda e, batch, ctx: trainloop.StepOutput(e.module(batch).square().mean()),
            until=rounds + 2,
            checkpoints=trainloop.CheckpointStore(folder, keep_last=1),
            save_every=1,
            async_save=True,
            hooks=hooks,
            commands=False,
            progress=False,
        ).run()
    copy, block = statistics.median(copies[1:]), statistics.median(blocked[1:])
    return {
        "copy of the state": {"ms": round(copy * 1e3, 1), "ratio": 1.0},
        "training held up by an asynchronous save": {"ms": round(block * 1e3, 1), "ratio": block / copy},
    }


def main() -> None:
    parser = argument_parser(__doc__, "trainloop")
    parser.add_argument("--only", nargs="*", default=["steps", "event", "save", "imports"], help="which tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("trainloop", PACKAGES, options.out)
    short, long, rounds = (20, 60, 1) if options.quick else (100, 500, 5)
    # The engine of trainloop makes DeepSpeed's group, which DeepSpeed alone then uses as well.
    tables: dict[str, tuple[str, Callable[[], Rows]]] = {
        "steps": ("CPU time of a step of a tiny MLP", lambda: steps_table(short, long, rounds)),
        "event": ("an event", event_table),
        "save": ("an asynchronous save", lambda: save_table(16 if options.quick else 256, 2 if options.quick else 7)),
        "imports": ("CPU time of an import", lambda: imports_table(1 if options.quick else 3)),
    }
    for name in options.only:
        title, measure = tables[name]
        report.table(title, measure())
    report.close()


if __name__ == "__main__":
    main()
