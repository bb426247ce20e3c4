"""Ternary weights, 8-bit activations, gradients as if nothing were rounded."""

import torch
import wrapkit
from torch import nn
from wrapkit.backends.bitnet import BitLinear, eight_bit, ternary


def test_three_values_and_255_levels():
    torch.manual_seed(0)
    weight = torch.randn(16, 16)
    scale = weight.abs().mean()
    assert torch.allclose(ternary(weight).unique(), torch.tensor([-1, 0, 1]) * scale)
    x = torch.randn(3, 50)
    assert (eight_bit(x) - x).abs().max() <= x.abs().amax(1).max() / 127 / 2 + 1e-6
    assert torch.isfinite(ternary(torch.zeros(2, 2))).all()
    assert torch.equal(eight_bit(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_gradients_pass_straight_through():
    layer, x = BitLinear(3, 2), torch.randn(5, 3, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(layer.weight.grad, eight_bit(x).sum(0).expand(2, 3))
    assert torch.allclose(x.grad, ternary(layer.weight).sum(0).expand(5, 3))


def test_it_trains_to_near_full_precision(language_model, train):
    full, bit = language_model(), language_model()
    wrapkit.replace(bit, "bitlinear", wrapkit.Policy(["layers"]))
    losses = [train(m, wrapkit.optimizer("adamw", m, lr=1e-2), 150)[-1] for m in (full, bit)]
    assert losses[1] < losses[0] + 0.05
    assert isinstance(bit.layers[0][0], BitLinear)
    assert bit.state_dict().keys() == full.state_dict().keys()
    assert type(bit.lm_head) is nn.Linear
