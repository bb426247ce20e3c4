"""A generator and a discriminator with cadences and optimizers of their own, in one run and one checkpoint.

The generator learns to give numbers around 3; the discriminator takes two steps for each of its own.
"""

import torch
import trainloop
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
discriminator = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
engines = trainloop.Engines(
    [
        trainloop.LocalEngine("d", discriminator, torch.optim.AdamW(discriminator.parameters(), lr=3e-3)),
        trainloop.LocalEngine("g", generator, torch.optim.AdamW(generator.parameters(), lr=1e-3), every=2),
    ]
)


class Numbers:
    """Endless batches from a normal distribution."""

    def __iter__(self):
        while True:
            yield 3.0 + 0.5 * torch.randn(64, 1)


def feeder(engine, real, ctx):
    noise = torch.randn(len(real), 2)
    g, d = ctx.engines["g"].module, ctx.engines["d"].module
    if engine.name == "d":
        with torch.no_grad():
            fake = g(noise)
        both = d(torch.cat([real, fake]))
        label = torch.cat([torch.full_like(real, 0.9), torch.zeros_like(fake)])
        return trainloop.StepOutput(bce(both, label), weight=len(both))
    with trainloop.frozen(d):  # gradients flow through it and leave none behind
        judged = d(g(noise))
    return trainloop.StepOutput(bce(judged, torch.ones_like(judged)), weight=len(judged))


trainloop.Trainer(engines, Numbers(), feeder, until=1000, commands=False, progress=False, seed=0).run()
with torch.no_grad():
    mean = generator(torch.randn(1000, 2)).mean().item()
print("steps:", {name: e.clock.step for name, e in engines.items()})
print("the generator's mean is near 3:", abs(mean - 3.0) < 0.5)
