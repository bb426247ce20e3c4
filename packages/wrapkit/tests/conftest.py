"""Tiny models, each named for its quirk, and a few steps of training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class TiedLanguageModel(nn.Module):
    """Embedding tied to the output head, norms, residual blocks; 2,400 parameters."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, ids):  # B, T -> B, T, 20
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.lm_head(self.norm(x))


@pytest.fixture
def language_model():
    """Builds the model with the same weights each time."""

    def build():
        torch.manual_seed(0)
        return TiedLanguageModel()

    return build


@pytest.fixture
def train():
    """Runs steps on next-token prediction of a fixed sequence; returns the losses."""
    ids = torch.arange(40).mul(7).remainder(20).view(2, 20)

    def run(model, optimizer, steps):
        losses = []
        for _ in range(steps):
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run
