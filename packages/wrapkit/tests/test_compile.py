"""torch.compile by policy, in place, undone."""

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import Policy

IDS = torch.arange(12).view(2, 6)


def test_blocks_names_and_undo(language_model):
    model = language_model()
    keys, expected = model.state_dict().keys(), model(IDS)
    handle = wrapkit.compile(model, Policy(["layers"]), backend="aot_eager")
    assert handle.changed == ["layers.0", "layers.1"]
    assert torch.allclose(model(IDS), expected, atol=1e-6)
    assert model.layers[0]._compiled_call_impl is not None
    assert model.state_dict().keys() == keys
    with pytest.raises(ValueError, match=r"layers\.0 is compiled already"):
        wrapkit.compile(model, Policy(["layers"]), backend="eager")
    handle.undo()
    assert all(m._compiled_call_impl is None for m in model.modules())
    assert torch.equal(model(IDS), expected)


def test_the_default_is_inductor_and_so_is_auto(language_model, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    for options in ({}, {"backend": "auto"}, {"backend": "eager", "dynamic": True}):
        wrapkit.compile(language_model(), **options)
    assert [o["backend"] for o in asked] == ["inductor", "inductor", "eager"]
    assert asked[2]["dynamic"] is True


def test_a_backend_that_is_missing(language_model):
    model = language_model()
    with pytest.raises(ValueError, match=r"no backend 'tensorrt' here; it has: .*inductor"):
        wrapkit.compile(model, backend="tensorrt")
    assert model._compiled_call_impl is None


def test_training_under_inductor():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    with wrapkit.compile(layer):
        layer(x).square().sum().backward()
    assert torch.allclose(layer.weight.grad, expected, atol=1e-4)


@pytest.mark.gpu
def test_training_under_inductor_on_a_gpu(language_model):
    model, plain = language_model().cuda(), language_model().cuda()
    ids = IDS.cuda()
    with wrapkit.compile(model, Policy(["layers"])):
        out = model(ids)
        assert torch.allclose(out, plain(ids), atol=1e-4)
        out.sum().backward()
    plain(ids).sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-3)
