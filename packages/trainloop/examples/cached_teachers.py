"""Three teachers of which two fit on the device at a time, and a student that learns from all of them.

The cache loads each from its file, moves the one used longest ago to disk, and brings the next in the background.
"""

import tempfile

import torch
import torch.nn.functional as F
import trainloop
from torch import nn
from trainloop.hooks.model_cache import ModelCache
from trainloop.hooks.model_loader import ModelLoader, ModelSource


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


torch.manual_seed(0)
x = torch.randn(512, 8)
y = (x @ torch.randn(8, 4)).argmax(1)
batches = list(zip(x.split(64), y.split(64), strict=True))


def train(module, feeder, steps):
    engine = trainloop.LocalEngine("net", module, torch.optim.AdamW(module.parameters(), lr=1e-2))
    trainloop.Trainer([engine], batches, feeder, until=steps, commands=False, progress=False).run()
    with torch.no_grad():
        return (module(x).argmax(1) == y).float().mean().item()


def plain(engine, batch, ctx):
    return trainloop.StepOutput(F.cross_entropy(engine.module(batch[0]), batch[1]))


with tempfile.TemporaryDirectory() as folder:
    sources, following = {}, {"red": "green", "green": "blue", "blue": "red"}
    for name in following:
        teacher = mlp(64)
        assert train(teacher, plain, 100) > 0.9
        torch.save(teacher.state_dict(), f"{folder}/{name}.pt")
        sources[name] = ModelSource.state_dict(f"{folder}/{name}.pt", lambda: mlp(64))
    two = 2 * sum(p.nbytes for p in teacher.parameters())
    cache = ModelCache(ModelLoader(sources), max_bytes=two, disk=folder)
    distil = trainloop.Distillation("kl", alpha=1.0, temperature=2.0)

    def feeder(engine, batch, ctx):
        targets = {}
        for name in following:
            with cache.use(name) as teacher, torch.no_grad():
                cache.prefetch(following[name])
                targets[name] = teacher(batch[0])
        return trainloop.StepOutput(distil(engine.module(batch[0]), targets))

    reached = train(mlp(8), feeder, 120)
    cache.close()
    print("loads:", cache.stats.loads)
    print("student without a label above 0.9:", reached > 0.9)
