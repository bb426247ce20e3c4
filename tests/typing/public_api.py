"""The public surface as a type checker sees it from outside: run by `uv run mypy`, not by pytest.

Every call here has to check under `--strict`; `assert_type` fails when an annotation is lost and `Any` seeps out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import basecfg
import distkit
import samplers
import stateio
import torch
import trainloop
import vall_e
import wrapkit
from trainloop.hooks import AfterOptimizerStep, BeforeLoad, StepEnd
from trainloop.hooks.curve import ramp
from trainloop.hooks.layer_sched import LayerSchedule, progressive
from trainloop.hooks.lr_sched import LRSchedule, cosine
from trainloop.hooks.model_sched import ModelSchedule
from trainloop.hooks.schedule import describe


class Trainer(basecfg.Section):
    iterations: int = 10
    path: Path | None = None


class Config(basecfg.BaseConfig):
    trainer: Trainer = basecfg.Field(default_factory=Trainer)


def configuration() -> None:
    cfg = Config.from_yaml("c.yaml", overrides={"trainer.iterations": 3})
    assert_type(cfg, Config)
    assert_type(cfg.trainer.iterations, int)
    assert_type(cfg.trainer.path, Path | None)
    assert_type(cfg.source_of("trainer.iterations"), str)
    assert_type(cfg.replace(**{"trainer.iterations": 5}), Config)
    assert_type(Config.from_cli([]), Config)
    assert_type(Config.from_model("m.sft"), Config)


def states() -> None:
    module = torch.nn.Linear(2, 2)
    assert_type(stateio.save({"module": module.state_dict()}, "m.sft"), Path)
    report = stateio.load_into("m.sft", module)
    assert_type(report.complete, bool)
    assert_type(stateio.inspect("m.sft").metadata, Mapping[str, Any])


def sampling() -> None:
    items = samplers.RandomSampler(10, seed=1)
    assert_type(next(iter(items)), int)
    batches = samplers.BucketSampler([1.0, 2.0], max_size=2)
    assert_type(next(iter(batches)), list[int])
    assert_type(batches.report().waste, float)


def ranks() -> None:
    with distkit.session() as env:
        assert_type(env.rank, int)
    assert_type(distkit.is_leader(), bool)
    assert_type(distkit.launch(distkit.world_size, 2), list[int])


def optimizing(module: torch.nn.Module) -> None:
    assert_type(wrapkit.optimizer("adamw", module, lr=1e-3), torch.optim.Optimizer)
    handle = wrapkit.replace(module, "bitlinear", wrapkit.Policy(include=["layers"]))
    assert_type(handle.changed, list[str])
    assert_type(wrapkit.LoRA(rank=4).apply(module), wrapkit.Handle)
    handle.undo()


def training(module: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    def feed(engine: trainloop.Engine, batch: Any, ctx: trainloop.StepContext) -> trainloop.StepOutput:
        return trainloop.StepOutput(engine.module(batch).sum())

    engine = trainloop.build_engine("local", "net", module, lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    trainer = trainloop.Trainer(trainloop.Engines([engine]), batches, feed, until=3)
    result = trainer.run()
    assert_type(result, trainloop.RunResult)
    assert_type(result.step, int)


def hooking(hooks: trainloop.Hooks, engine: trainloop.Engine, engines: trainloop.Engines) -> None:
    off = hooks.on(StepEnd, lambda e: print(assert_type(e.step, int), assert_type(e.trainer, trainloop.Trainer)))
    off()

    def stepped(event: AfterOptimizerStep) -> None:
        assert_type(event.report.grad_norm, float)
        assert_type(event.engine.name, str)

    hooks.on(AfterOptimizerStep, stepped, every=10)
    hooks.on(BeforeLoad, stepped)  # type: ignore[arg-type]  # the payload of another event
    rate = LRSchedule(engine, cosine(100, warmup=10))
    layers = LayerSchedule(engine, progressive(["head", "body"], every=50), rates={"body": ramp(0.0, 1.0, 50)})
    turns = ModelSchedule(engines, {0: ["d"], 5: {"g": "train", "d": "teacher"}})
    for schedule in (rate, layers, turns):
        hooks.attach(schedule)
    assert_type(describe(rate, layers, turns, until=100), str)


def speaking() -> Iterator[int]:
    model = vall_e.load_model("fp32.sft")
    for codes in model.generate([vall_e.Sample("həlˈoʊ")], "ar+nar", temperature=0.0):
        yield len(codes)
