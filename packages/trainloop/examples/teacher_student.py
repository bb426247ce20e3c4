"""Two teachers, one counting double, and a student an eighth of their size that learns from them alone."""

import torch
import torch.nn.functional as F
import trainloop
from torch import nn


def mlp(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
y = (x @ torch.randn(8, 4, generator=torch.Generator().manual_seed(1))).argmax(1)
batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]


def plain(engine, batch, ctx):
    return trainloop.StepOutput(F.cross_entropy(engine.module(batch[0]), batch[1]), weight=len(batch[0]))


def trained(engines, feeder, steps):
    trainloop.Trainer(engines, batches, feeder, until=steps, commands=False, progress=False, seed=0).run()


def accuracy(module):
    with torch.no_grad():
        return (module(x).argmax(1) == y).float().mean().item()


def engine(name, module):
    return trainloop.LocalEngine(name, module, torch.optim.AdamW(module.parameters(), lr=1e-2))


big, bigger = mlp(32, 1), mlp(64, 2)
for name, module in (("big", big), ("bigger", bigger)):
    trained(trainloop.Engines([engine(name, module)]), plain, 100)

student = mlp(8, 3)
engines = trainloop.Engines(
    [
        engine("student", student),
        trainloop.LocalEngine("big", big, role="teacher"),
        trainloop.LocalEngine("bigger", bigger, role="teacher"),
    ]
)
distil = trainloop.Distillation("kl", alpha=1.0, temperature=2.0, weights={"big": 1.0, "bigger": 2.0})


def feeder(e, batch, ctx):
    targets = distil.targets(ctx.engines, lambda teacher: teacher.module(batch[0]), e.device)
    return trainloop.StepOutput(distil(e.module(batch[0]), targets), weight=len(batch[0]))


trained(engines, feeder, 200)
print("teachers above 0.95:", min(accuracy(big), accuracy(bigger)) > 0.95)
print("student without a label above 0.9:", accuracy(student) > 0.9)
