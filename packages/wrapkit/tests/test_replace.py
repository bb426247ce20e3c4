import copy

import pytest
import torch
import wrapkit
from torch import nn


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight  # tied
    return model


def test_replace_keeps_weights_and_ties_and_undo_is_exact():
    model, x = build(), torch.randn(3, 4)
    before, modules, y = model.state_dict(), list(model), model(x)
    handle = wrapkit.replace(model, {nn.Linear: Scaled})
    assert type(model[0]) is Scaled
    assert model[0].weight is model[2].weight
    assert not torch.equal(model(x), y)
    handle.undo()
    assert all(a is b for a, b in zip(model, modules, strict=True))
    assert torch.equal(model(x), y)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_policy_chooses_exact_segments():
    model = nn.ModuleDict({f"l{i}": nn.Linear(2, 2) for i in (1, 10)})
    wrapkit.replace(model, {nn.Linear: Scaled}, wrapkit.Policy(include=["l1"]))
    assert type(model["l1"]) is Scaled
    assert type(model["l10"]) is nn.Linear


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(wrapkit.PatternError):
        wrapkit.replace(build(), {nn.Linear: Scaled}, wrapkit.Policy(include=["nowhere.*"]))


def test_inject_is_restored_after_an_exception():
    original = nn.Linear

    def fail():
        with wrapkit.inject(Linear=Scaled):
            assert nn.Linear is Scaled
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert nn.Linear is original


@pytest.mark.parametrize("name", ["adamw", "sgd", "prodigy", "muon"])
def test_optimizers_lower_the_loss_and_resume_exactly(name):
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    y = x.roll(1, 1)
    options = {} if name == "prodigy" else {"lr": 1e-2}

    def train(model, optimizer, steps):
        for _ in range(steps):
            loss = (model(x) - y).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = wrapkit.optimizer(name, model, **options)
    first = train(model, optimizer, 1)
    train(model, optimizer, 40)
    twin = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    twin.load_state_dict(model.state_dict())
    resumed = wrapkit.optimizer(name, twin, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(twin, resumed, 40) == train(model, optimizer, 40) < first


def test_vectors_and_embeddings_do_not_decay():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    optimizer = wrapkit.optimizer("adamw", model, lr=1.0, weight_decay=0.5)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decay[id(p)] for p in (model[0].weight, model[1].weight, model[1].bias)] == [0, 0.5, 0]


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ValueError, match="adamw"):
        wrapkit.optimizer("adamvv", nn.Linear(2, 2), lr=1e-3)
