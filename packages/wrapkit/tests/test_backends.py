"""bitsandbytes and torchao for real on the CPU; TransformerEngine against a stand-in for its classes."""

import contextlib
import copy
import sys
import types

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import BackendUnavailable, Policy
from wrapkit.backends import BACKENDS

BNB = ["bnb.int8", "bnb.int8-training", "bnb.stable-embedding"]
TORCHAO = ["torchao.float8", "torchao.int8", "torchao.int8-dynamic", "torchao.int4"]
TRAINED = {"bnb.int8-training", "torchao.float8"}  # the weights themselves get gradients


def need(name):
    pytest.importorskip("bitsandbytes" if name in BNB else "torchao")


def build(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64, bias=False))
    return model.to(dtype)


IDS = torch.arange(21).remainder(10).view(3, 7)  # B, T


@pytest.mark.parametrize("name", [*BNB, *TORCHAO])
def test_close_to_full_precision_copied_and_undone_exactly(name):
    need(name)
    model = build()
    before, expected, kinds = model.state_dict(), model(IDS), [type(m) for m in model]
    handle = wrapkit.replace(model, name)
    out = model(IDS)
    if name != "bnb.stable-embedding":  # which adds a norm
        error = (out - expected).norm() / expected.norm()
        assert 0 < error < {"torchao.float8": 0.06, "torchao.int4": 0.15}.get(name, 0.015)
    assert torch.equal(copy.deepcopy(model)(IDS), out)
    handle.undo()
    assert [type(m) for m in model] == kinds
    assert torch.equal(model(IDS), expected)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", [*BNB, *TORCHAO])
def test_gradients_of_what_is_trained(name):
    need(name)
    model, exact = build(), build()
    wrapkit.replace(model, name)
    if name == "torchao.int8-dynamic":
        assert not model(IDS).requires_grad  # for inference, as its docstring says
        return
    for m in (model, exact):
        m(IDS).square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert "0.weight" in trained
    assert ("1.weight" in trained) is (name in TRAINED or name == "bnb.stable-embedding")
    if name in TRAINED:
        close = torch.cosine_similarity(model[1].weight.grad.flatten(), exact[1].weight.grad.flatten(), dim=0)
        assert close > 0.99


@pytest.mark.parametrize("name", sorted(TRAINED | {"bnb.stable-embedding"}))
def test_training_lowers_the_loss_and_evaluates_the_newest_weights(name):
    need(name)
    model = build()
    wrapkit.replace(model, name)
    optimizer = wrapkit.optimizer("adamw", model, lr=1e-2)
    target = torch.randn(3, 7, 64)
    losses = []
    for _ in range(30):
        loss = (model(IDS) - target).square().mean()
        optimizer.zero_grad(set_to_none=False)  # with which bitsandbytes' own layer would stop quantising anew
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    now = (model(IDS) - target).square().mean().item()
    assert now < losses[-1] * 1.02


def test_the_very_weights_are_trained():
    need("bnb.int8-training")
    for name in TRAINED:
        model = build()
        weight = model[1].weight
        wrapkit.replace(model, name)
        assert model[1].weight is weight


def test_int8_holds_a_byte_a_weight_and_saves_and_loads():
    need("bnb.int8")
    model, other = build(), build()
    nn.init.normal_(other[1].weight)
    for m in (model, other):
        wrapkit.replace(m, "bnb.int8")
    assert model[1].weight.dtype == torch.int8
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IDS), model(IDS))


def test_stable_embedding_keeps_type_and_takes_32_bit_states():
    bnb = pytest.importorskip("bitsandbytes")
    model = build(torch.bfloat16)
    weight = model[0].weight
    wrapkit.replace(model, "bnb.stable-embedding")
    assert type(model[0]) is bnb.nn.StableEmbedding
    assert model[0].weight is weight
    assert model[0].norm.weight.dtype == torch.bfloat16


def test_injected_by_name():
    bnb = pytest.importorskip("bitsandbytes")
    with wrapkit.inject(Linear="bnb.int8-training", Embedding="bnb.stable-embedding"):
        model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8))
    assert type(model[0]) is bnb.nn.StableEmbedding
    assert type(model[1]).__name__ == "Int8Linear"
    model(torch.arange(4)).sum().backward()
    with pytest.raises(ValueError, match=r"bnb\.int8 makes its layers from layers that have weights already: use repl"):
        wrapkit.inject(Linear="bnb.int8")


def test_a_tie_that_quantising_would_cut_is_refused(language_model):
    need("bnb.int8")
    model = language_model()
    with pytest.raises(ValueError, match=r"would untie lm_head\.weight from embedding\.weight"):
        wrapkit.replace(model, "bnb.int8")
    assert type(model.lm_head) is nn.Linear


def test_layers_that_do_not_fit_are_skipped_and_told():
    need("torchao.int4")
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8))
    handle = wrapkit.replace(model, "torchao.int4")
    assert handle.changed == ["0"]
    assert handle.skipped == {"1": "4 bits need inputs divisible by 32, and it has 8"}
    with pytest.raises(ValueError, match=r"nothing to replace: torchao\.int4 takes none of these layers \(1: 4 bits"):
        wrapkit.replace(model, "torchao.int4", Policy(["1"]))
    need("bnb.int8")
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"its weight is torch\.float64, not a floating-point type that can be"):
        wrapkit.replace(model, "bnb.int8")


@pytest.mark.parametrize("name", sorted(BACKENDS.keys() - {"bitlinear"}))
def test_a_missing_package_changes_nothing(name, monkeypatch):
    for package in list(sys.modules):
        if package.split(".")[0] in ("bitsandbytes", "torchao", "transformer_engine"):
            monkeypatch.delitem(sys.modules, package)
    for package in ("bitsandbytes", "torchao", "transformer_engine"):
        monkeypatch.setitem(sys.modules, package, None)
    model = build()
    kinds = [type(m) for m in model]
    with pytest.raises(BackendUnavailable) as error:
        wrapkit.replace(model, name)
    assert error.value.hint
    assert [type(m) for m in model] == kinds


# TransformerEngine ----------------------------------------------------------------------------------------------


class StandIn:
    """What the adapter uses of `transformer_engine.pytorch`: `Linear` with its constructor, and the autocast."""

    def __init__(self, modern):
        self.depth = 0
        stand_in = self

        class Linear(nn.Module):
            def __init__(self, in_features, out_features, bias=True, params_dtype=None, device="cuda"):
                super().__init__()
                self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
                self.bias = nn.Parameter(torch.empty(out_features, dtype=params_dtype, device=device)) if bias else None

            def forward(self, x):
                assert stand_in.depth == 1, "the autocast was not entered"
                return nn.functional.linear(x, self.weight, self.bias)

        self.module = types.ModuleType("transformer_engine.pytorch")
        self.module.Linear = Linear
        setattr(self.module, "autocast" if modern else "fp8_autocast", self.context)

    @contextlib.contextmanager
    def context(self, enabled):
        assert enabled
        self.depth += 1
        yield
        self.depth -= 1


@pytest.fixture(params=[True, False], ids=["autocast", "fp8_autocast"])
def engine(request, monkeypatch):
    stand_in = StandIn(request.param)
    monkeypatch.setitem(sys.modules, "transformer_engine", types.ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", stand_in.module)
    return stand_in


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


class TestTransformerEngine:
    def test_no_cuda_device(self, engine, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(BackendUnavailable, match=r"there is no CUDA device\. Use torchao\.float8"):
            wrapkit.replace(build(), "te.fp8")

    def test_an_older_device(self, engine, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A100")
        with pytest.raises(BackendUnavailable, match=r"A100 has compute capability 8\.0, float8 needs 8\.9"):
            wrapkit.replace(build(), "te.fp8")

    def test_constructor_weights_and_autocast(self, engine, hopper, monkeypatch):
        monkeypatch.setattr(wrapkit.backends.transformer_engine, "refuses", lambda old: None)
        model = build(torch.bfloat16)
        weights, expected = [model[1].weight, model[1].bias, model[3].weight], model(IDS)
        replaces = BACKENDS["te.fp8"].replaces
        handle = wrapkit.replace(model, replaces)
        assert isinstance(model[1], engine.module.Linear)
        assert [model[1].weight, model[1].bias, model[3].weight] == weights
        assert model[3].bias is None
        assert torch.equal(model(IDS), expected)
        assert engine.depth == 0
        handle.undo()
        assert type(model[1]) is nn.Linear

    def test_sides_divisible_by_16_and_the_device(self, engine, hopper):
        model = nn.Sequential(nn.Linear(20, 32), nn.Linear(32, 32))
        with pytest.raises(ValueError, match=r"0: float8 needs sides divisible by 16, and it goes from 20 to 32; 1:"):
            wrapkit.replace(model, "te.fp8")
        with pytest.raises(ValueError, match=r"its weight is on cpu: move the model to a CUDA device first"):
            wrapkit.replace(model, "te.fp8")

    def test_injected(self, engine, hopper):
        with wrapkit.inject(Linear="te.fp8"):
            assert issubclass(nn.Linear, engine.module.Linear)
        assert nn.Linear.__module__ == "torch.nn.modules.linear"


@pytest.mark.gpu
def test_transformer_engine_on_a_gpu():
    pytest.importorskip("transformer_engine.pytorch")
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).cuda()
    x = torch.randn(32, 64, device="cuda", requires_grad=True)
    expected = model(x)
    with wrapkit.replace(model, "te.fp8"):
        out = model(x)
        out.sum().backward()
        assert 0 < (out - expected).norm() / expected.norm() < 0.1
        assert model[0].weight.grad is not None
    assert torch.equal(model(x), expected)


@pytest.mark.gpu
def test_float8_of_torchao_on_a_gpu():
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).cuda().bfloat16()
    x = torch.randn(32, 64, device="cuda", dtype=torch.bfloat16)
    expected = model(x)
    with wrapkit.replace(model, "torchao.float8"):
        out = model(x)
        out.sum().backward()
        assert 0 < (out - expected).norm() / expected.norm() < 0.1
