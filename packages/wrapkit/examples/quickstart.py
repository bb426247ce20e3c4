"""Replace layers of a model, train it with Muon, take the replacement back."""

import torch
import wrapkit
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
inputs = torch.randn(256, 8)
targets = inputs.roll(1, dims=1)

handle = wrapkit.replace(model, "bitlinear", wrapkit.Policy(exclude=["0", "4"]))  # ternary weights inside
print("replaced:", handle.changed)

optimizer = wrapkit.optimizer("muon", model, lr=1e-2)
for step in range(101):
    loss = (model(inputs) - targets).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

handle.undo()
print("back to", type(model[2]).__name__)
