"""A weight trimmed or grown."""

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import UndoOrderError


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("size", [2, 5, 300])
def test_any_dimension_keeps_the_old_and_draws_like_it(dim, size):
    torch.manual_seed(0)
    model = nn.ParameterDict({"w": 5 * torch.randn(5, 4, 6)})
    old = model["w"].detach().clone()
    handle = wrapkit.resize(model, "w", size, dim)
    new, kept = model["w"].detach(), min(size, old.size(dim))
    assert new.size(dim) == size
    assert torch.equal(new.narrow(dim, 0, kept), old.narrow(dim, 0, kept))
    if size == 300:
        grown = new.narrow(dim, kept, size - kept)
        assert grown.std().item() == pytest.approx(old.std().item(), rel=0.1)
        assert abs(grown.mean()) < 0.5  # not from [0, 1)
    handle.undo()
    assert torch.equal(model["w"], old)


def test_layers_follow(language_model):
    model = language_model()
    table = model.embedding.weight
    handle = wrapkit.resize(model, "embedding.weight", 30)
    assert handle.changed == ["embedding.weight", "lm_head.weight"]
    assert model.lm_head.weight is model.embedding.weight
    assert (model.embedding.num_embeddings, model.lm_head.out_features) == (30, 30)
    assert model(torch.tensor([[29]])).shape == (1, 1, 30)
    handle.undo()
    assert model.embedding.weight is model.lm_head.weight is table
    assert (model.embedding.num_embeddings, model.lm_head.out_features) == (20, 20)


def test_a_bias_goes_along_and_flags_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 3))
    model[0].weight.requires_grad_(False)
    wrapkit.resize(model, "0.weight", 6)
    wrapkit.resize(model, "1.weight", 6, dim=1)
    assert model[0].bias.shape == (6,)
    assert not model[0].weight.requires_grad
    assert model[1](model[0](torch.ones(2, 3, 4)).transpose(1, 2)).shape == (2, 4, 1)


def test_mistakes_and_order(language_model):
    model = language_model()
    for arguments, message in [
        (("embeding.weight", 3), r"no parameter 'embeding\.weight'; there are embedding\.weight"),
        (("embedding.weight", 3, 2), r"embedding\.weight has 2 dimensions, got dim=2"),
        (("embedding.weight", 0), "size must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrapkit.resize(model, *arguments)
    first = wrapkit.resize(model, "norm.weight", 3)
    second = wrapkit.resize(model, "norm.weight", 5)
    with pytest.raises(UndoOrderError, match="the weight of a LayerNorm was replaced"):
        first.undo()
    second.undo()
    first.undo()
