"""Five schedules on one run, told before it starts; stopped in the middle, it ends as if it had not been."""

import tempfile

import torch
import trainloop
from torch import nn
from trainloop.hooks.curve import ramp
from trainloop.hooks.layer_sched import LayerSchedule, progressive
from trainloop.hooks.lr_sched import LRSchedule, warmup_hold_decay
from trainloop.hooks.optim_sched import OptimSchedule, Switch
from trainloop.hooks.schedule import describe
from trainloop.hooks.train_sched import Phase, TrainSchedule


def batches(rows: int) -> list[torch.Tensor]:
    return list(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).split(rows))


def squared(engine, x, ctx):
    return trainloop.StepOutput((engine.module(x) - x.sum(1, keepdim=True)).square().mean())


def absolute(engine, x, ctx):
    return trainloop.StepOutput((engine.module(x) - x.sum(1, keepdim=True)).abs().mean())


def train(folder: str, until: int) -> tuple[str, list[torch.Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    engine = trainloop.LocalEngine("net", net, torch.optim.AdamW(net.parameters(), lr=1e-2))
    sgd = Switch(lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9), carry={"exp_avg": "momentum_buffer"})
    phases = TrainSchedule({0: Phase("coarse", squared, batches(6)), 30: Phase("fine", absolute, batches(15))})
    schedules = [
        phases,
        LRSchedule(engine, warmup_hold_decay(10, 30, 20)),
        LayerSchedule(engine, progressive(["4", "2", "0"], every=10)),
        OptimSchedule(engine, {"weight_decay": ramp(0.1, 0.0, 40)}, switch={50: sgd}),
    ]
    hooks = trainloop.Hooks()
    for schedule in schedules:
        hooks.attach(schedule)
    store = trainloop.CheckpointStore(folder)
    trainer = trainloop.Trainer(trainloop.Engines([engine]), phases.loader, phases, until=until, hooks=hooks,
                                checkpoints=store, commands=False, progress=False, seed=0)  # fmt: skip
    trainer.run()
    return describe(*schedules, until=60), list(net.parameters())


with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
    table, whole = train(a, until=60)
    train(b, until=35)
    _, resumed = train(b, until=60)
print(table)
print("equal to the bit:", all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True)))
