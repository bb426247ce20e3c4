"""Two engines in one run: a slow one on DeepSpeed with ZeRO-2 every third step, a fast one on torch alone.

Stopped at step 8 and started again, both end where they would have ended in one go.
"""

import tempfile

import torch
import trainloop
from torch import nn


def build(folder: str, until: int) -> trainloop.Trainer:
    def engine(backend: str, name: str, **options) -> trainloop.Engine:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        return trainloop.build_engine(
            backend, name, module, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2), **options
        )

    def feeder(e, batch, ctx):
        return trainloop.StepOutput((e.module(batch) - batch.sum(1, keepdim=True)).square().mean())

    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return trainloop.Trainer(
        trainloop.Engines([engine("deepspeed", "slow", zero_stage=2, every=3), engine("local", "fast")]),
        list(x.split(10)),
        feeder,
        until=until,
        checkpoints=trainloop.CheckpointStore(folder),
        commands=False,
        progress=False,
        seed=0,
    )


def weights(trainer: trainloop.Trainer) -> list[torch.Tensor]:
    return [p for e in trainer.engines.values() for p in e.bare_module.parameters()]


with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
    whole = build(a, 20)
    whole.run()
    build(b, 8).run()
    resumed = build(b, 20)
    resumed.run()
print("steps:", {name: e.clock.step for name, e in resumed.engines.items()})
print("equal to the bit:", all(torch.equal(p, q) for p, q in zip(weights(whole), weights(resumed), strict=True)))
