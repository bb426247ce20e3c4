"""The loop written out, from the parts the trainer is made of."""

import torch
import trainloop
from torch import nn

torch.manual_seed(0)
net = nn.Linear(1, 1)
engine = trainloop.LocalEngine("net", net, torch.optim.SGD(net.parameters(), lr=0.1))
x = torch.linspace(-1, 1, 32).reshape(8, 4, 1)

for _ in range(20):
    for pair in x.split(2):  # two micro-batches a step
        window = trainloop.Window(length=2)
        engine.begin()
        for micro, batch in enumerate(pair):
            with engine.forward_context(last=micro == 1):
                loss = (engine.module(batch) - 3 * batch).square().mean()
            engine.backward(trainloop.StepOutput(loss, weight=len(batch)), window)
        report = engine.optim_step()
        assert report.skipped is None

print(f"steps: {engine.clock.step}, weight: {net.weight.item():.2f}")
