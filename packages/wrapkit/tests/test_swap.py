"""What replacing keeps and what undoing restores; each defect of earlier replacers is one test."""

import copy

import pytest
import torch
import wrapkit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from wrapkit import Policy, UndoOrderError
from wrapkit.backends.bitnet import BitLinear


class Other(nn.Linear):
    pass


def identities(model):
    modules = [(name, id(m), type(m)) for name, m in model.named_modules(remove_duplicate=False)]
    tensors = [(k, id(v)) for k, v in model.named_parameters(remove_duplicate=False)]
    hooks = [(id(m._forward_hooks), list(m._forward_hooks)) for m in model.modules()]
    return modules, tensors, hooks


@st.composite
def models(draw):
    """Nested, with shared modules, tied weights, mixed dtypes, attention, frozen and eval parts, hooks."""
    width = 4
    pool = []

    def leaf():
        kind = draw(st.sampled_from(["linear", "nobias", "half", "shared", "tied", "norm", "attention", "conv"]))
        if kind == "shared" and pool:
            return draw(st.sampled_from(pool))
        if kind == "norm":
            return nn.LayerNorm(width)
        if kind == "conv":
            return nn.Conv1d(width, width, 1)
        if kind == "attention":
            return nn.MultiheadAttention(width, 2)
        linear = nn.Linear(width, width, bias=kind != "nobias", dtype=torch.bfloat16 if kind == "half" else None)
        if kind == "tied" and pool and pool[0].weight.dtype == linear.weight.dtype:
            linear.weight = pool[0].weight
        linear.weight.requires_grad_(draw(st.booleans()))
        linear.train(draw(st.booleans()))
        if draw(st.booleans()):
            linear.register_forward_hook(lambda module, inputs, output: output + 1)
        pool.append(linear)
        return linear

    def tree(depth):
        if depth == 0 or draw(st.booleans()):
            return leaf()
        return nn.ModuleList(tree(depth - 1) for _ in range(draw(st.integers(1, 3))))

    return tree(3)


@settings(max_examples=150, deadline=None)
@given(model=models())
def test_replace_and_undo_on_random_models(model):
    before, values = identities(model), copy.deepcopy(model.state_dict())
    kept = {
        name: (m.weight, m.bias, m.training, m.weight.requires_grad, m._forward_hooks)
        for name, m in model.named_modules(remove_duplicate=False)
        if type(m) is nn.Linear
    }
    if not kept:
        with pytest.raises(ValueError, match="nothing to replace"):
            wrapkit.replace(model, {nn.Linear: Other})
        return
    handle = wrapkit.replace(model, {nn.Linear: Other})
    for name, (weight, bias, training, requires_grad, hooks) in kept.items():
        new = model.get_submodule(name)
        assert type(new) is Other
        assert new.weight is weight
        assert new.bias is bias
        assert (new.training, new.weight.requires_grad) == (training, requires_grad)
        assert new._forward_hooks is hooks
    handle.undo()
    assert identities(model) == before
    assert model.state_dict().keys() == values.keys()
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())


def test_a_module_in_several_places_stays_one():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    wrapkit.replace(model, {nn.Linear: Other})
    assert model["a"] is model["b"][0]


def test_excluding_one_name_of_a_shared_module_excludes_it():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    wrapkit.replace(model, {nn.Linear: Other}, Policy(exclude=["b"]))
    assert model["a"] is model["b"] is shared
    assert type(model["c"]) is Other


def test_the_root_itself():
    model = nn.Linear(3, 3)
    weight, x = model.weight, torch.randn(2, 3)
    expected = model(x)
    handle = wrapkit.replace(model, "bitlinear")
    assert type(model) is BitLinear
    assert model.weight is weight
    assert not torch.equal(model(x), expected)
    handle.undo()
    assert type(model) is nn.Linear
    assert torch.equal(model(x), expected)


def test_attention_keeps_its_output_projection():
    model = nn.MultiheadAttention(4, 2)
    with pytest.raises(ValueError, match="nothing to replace"):
        wrapkit.replace(model, {nn.Linear: Other}, subclasses=True)


def test_exact_types_unless_told():
    model = nn.ModuleList([nn.Linear(2, 2), BitLinear(2, 2)])
    handle = wrapkit.replace(model, {nn.Linear: Other})
    assert type(model[1]) is BitLinear
    handle.undo()
    wrapkit.replace(model, {nn.Linear: Other}, subclasses=True)
    assert type(model[1]) is Other


def test_weights_and_ties_to_other_modules(language_model):
    model, ids = language_model(), torch.arange(6).view(1, 6)
    expected = model(ids)
    wrapkit.replace(model, {nn.Linear: Other})
    assert model.lm_head.weight is model.embedding.weight
    assert torch.equal(model(ids), expected)


def test_a_tie_that_cannot_be_kept_is_refused_before_anything_changes(language_model):
    model = language_model()
    before = identities(model)
    with pytest.raises(ValueError, match=r"would untie lm_head\.weight from embedding\.weight: exclude one of them"):
        wrapkit.replace(model, {nn.Linear: lambda old: nn.Linear(old.in_features, 3)})
    assert identities(model) == before


def test_tied_modules_replaced_together_share_their_new_weight():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    wrapkit.replace(model, {nn.Linear: lambda old: nn.Linear(2, 5)})
    assert model[0].weight is model[1].weight


def test_new_layers_draw_no_random_numbers_of_the_training():
    model = nn.Sequential(nn.Linear(4, 4))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    wrapkit.replace(model, {nn.Linear: Other})
    assert torch.equal(torch.rand(1), expected)


def test_hooks_run_and_their_handles_still_remove_them():
    model, calls = nn.Sequential(nn.Linear(2, 2)), []
    hook = model[0].register_forward_hook(lambda *_: calls.append(1))
    wrapkit.replace(model, {nn.Linear: Other})
    model(torch.ones(1, 2))
    hook.remove()
    model(torch.ones(1, 2))
    assert calls == [1]


def test_undo_in_the_wrong_order_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 2))
    first = wrapkit.replace(model, {nn.Linear: Other})
    second = wrapkit.replace(model, {Other: BitLinear})
    with pytest.raises(UndoOrderError, match=r"0 is a BitLinear now, not the Other put there. Undo the later"):
        first.undo()
    assert type(model[0]) is BitLinear
    second.undo()
    first.undo()
    first.undo()
    assert type(model[0]) is nn.Linear


def test_a_handle_as_a_context():
    model = nn.Sequential(nn.Linear(2, 2))
    with wrapkit.replace(model, "bitlinear") as handle:
        assert handle.changed == ["0"]
        assert type(model[0]) is BitLinear
    assert type(model[0]) is nn.Linear


def test_building_from_attributes_or_from_module():
    class FromModule(nn.Module):
        @classmethod
        def from_module(cls, old):
            new = cls()
            new.p = old.p
            return new

    class NeedsMore(nn.Linear):
        def __init__(self, in_features, out_features, secret):
            super().__init__(in_features, out_features)

    model = nn.Sequential(nn.Dropout(0.3), NeedsMore(2, 2, "x"))
    wrapkit.replace(model, {nn.Dropout: FromModule})
    assert model[0].p == 0.3
    with pytest.raises(ValueError, match="cannot tell the argument 'secret' that built this NeedsMore"):
        wrapkit.replace(model, {NeedsMore: Other})
    with pytest.raises(TypeError, match="must be a module, got int"):
        wrapkit.replace(model, {NeedsMore: lambda old: 3})


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"no backend 'bitliner' \(did you mean bitlinear\?\)"):
        wrapkit.replace(nn.Linear(2, 2), "bitliner")
