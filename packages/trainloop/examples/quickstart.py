"""Trains a line, stops half-way, and goes on exactly where it stopped."""

import tempfile

import torch
import trainloop


def train(folder: str, until: int) -> tuple[trainloop.RunResult, float]:
    torch.manual_seed(0)
    net = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = trainloop.LocalEngine("net", net, optimizer)
    x = torch.linspace(-1, 1, 32).reshape(8, 4, 1)

    def feeder(engine, batch, ctx):
        return trainloop.StepOutput((engine.module(batch) - 3 * batch).square().mean())

    trainer = trainloop.Trainer(
        trainloop.Engines([engine]),
        list(x),
        feeder,
        until=until,
        checkpoints=trainloop.CheckpointStore(folder),
        commands=False,
        progress=False,
    )
    return trainer.run(), net.weight.item()


with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
    _, whole = train(a, until=100)
    train(b, until=50)
    result, resumed = train(b, until=100)
    print(result)
    print("equal to the bit:", whole == resumed)
