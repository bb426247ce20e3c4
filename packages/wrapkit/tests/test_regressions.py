"""What goes wrong with other replacers, adapters and splitters, each shown not to happen here.

APOLLO's are in test_apollo.py; some here are tested more widely elsewhere.
"""

import contextlib
import copy
import json
import subprocess
import sys
import types

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import LoRA, MultiOptimizer, Offload, Policy, lora
from wrapkit.backends.bitnet import BitLinear
from wrapkit.backends.transformer_engine import _fp8_linear

DEFECTS = {}


def defect(words):
    def register(check):
        DEFECTS[words] = check
        return check

    return register


class Other(nn.Linear):
    pass


def pair():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


@defect("replace: weights dropped")
def _(tmp_path):
    model, x = pair(), torch.randn(2, 4)
    expected = model(x)
    wrapkit.replace(model, {nn.Linear: Other})
    assert torch.equal(model(x), expected)


@defect("replace: ties broken")
def _(tmp_path):
    model = pair()
    model[1].weight = model[0].weight
    wrapkit.replace(model, {nn.Linear: Other})
    assert model[0].weight is model[1].weight


@defect("replace: shared modules replaced once, in one of their places")
def _(tmp_path):
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Sequential(layer))
    wrapkit.replace(model, {nn.Linear: Other})
    assert type(model[0]) is Other
    assert model[1][0] is model[0]


@defect("replace: the root crashes")
def _(tmp_path):
    model = nn.Linear(4, 4)
    wrapkit.replace(model, {nn.Linear: Other})
    assert type(model) is Other


@defect("replace: the whole model cast to the first parameter's type")
def _(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16))
    wrapkit.replace(model, {nn.Linear: Other})
    assert [m.weight.dtype for m in model] == [torch.float32, torch.bfloat16]


@defect("replace: requires_grad, eval and hooks lost")
def _(tmp_path):
    model, calls = pair(), []
    model[0].weight.requires_grad_(False)
    model[0].eval()
    model[0].register_forward_hook(lambda *_: calls.append(1))
    wrapkit.replace(model, {nn.Linear: Other})
    model(torch.ones(1, 4))
    assert (model[0].weight.requires_grad, model[0].training, calls) == (False, False, [1])


@defect("replace: attention's out_proj caught by isinstance")
def _(tmp_path):
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    assert wrapkit.replace(model, {nn.Linear: Other}, subclasses=True).changed == ["1"]


@defect("replace: defaults bound at import, to whatever was injected then")
def _(tmp_path):
    code = (
        "import torch, wrapkit\nfrom torch import nn\nplain = nn.Linear\n"
        "class Mine(nn.Linear): pass\n"
        "with wrapkit.inject(Linear=Mine):\n"
        "    model = nn.Sequential(plain(2, 2))\n"
        "    wrapkit.replace(model, 'bitlinear')\n"
        "    from wrapkit.backends.bitnet import BitLinear\n"
        "print(type(model[0]).__name__, BitLinear.__mro__[1] is plain)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "BitLinear True\n", done.stderr


@defect("BitNet alone does nothing")
def _(tmp_path):
    model, x = pair(), torch.randn(2, 4)
    expected = model(x)
    wrapkit.replace(model, "bitlinear")
    assert not torch.allclose(model(x), expected)


@defect("an autocast made but not entered")
def _(tmp_path):
    entered = []

    @contextlib.contextmanager
    def autocast(enabled):
        entered.append(enabled)
        yield

    engine = types.ModuleType("engine")
    engine.Linear, engine.autocast = nn.Linear, autocast
    _fp8_linear(engine)(4, 4)(torch.ones(1, 4))
    assert entered == [True]


@defect("nn.Embedding.forward patched at import")
def _(tmp_path):
    for name in ("wrapkit.backends", "wrapkit.optim", "wrapkit.lora", "wrapkit._plan", "wrapkit.ext.unsloth"):
        __import__(name)
    assert nn.Embedding.forward.__module__ == "torch.nn.modules.sparse"
    assert nn.Linear.forward.__module__ == "torch.nn.modules.linear"


@defect('compile: "auto" picks the first backend listed')
def _(tmp_path):
    asked = []
    model = pair()
    model.compile = lambda **options: asked.append(options["backend"])
    wrapkit.compile(model, backend="auto")
    assert asked == ["inductor"]


@defect("8-bit SGD without momentum crashes")
def _(tmp_path):
    with pytest.raises(ValueError, match="sgd8bit needs momentum > 0"):
        wrapkit.optimizer("sgd8bit", pair(), momentum=0.0)


def several():
    model = pair()
    parts = {str(i): torch.optim.AdamW(layer.parameters()) for i, layer in enumerate(model)}
    return model, MultiOptimizer(parts)


@defect("optimizer container: no state")
def _(tmp_path):
    model, optimizer = several()
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == len(optimizer.state_dict()["state"]) == 4


@defect("optimizer container: the closure run once for each optimizer")
def _(tmp_path):
    model, optimizer = several()
    calls = []

    def closure():
        calls.append(1)
        loss = model(torch.ones(1, 4)).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None
    assert calls == [1]


@defect("optimizer container: states of another length zipped silently")
def _(tmp_path):
    _, optimizer = several()
    state = optimizer.state_dict()
    state["param_groups"].pop()
    with pytest.raises(ValueError, match="the state holds groups"):
        optimizer.load_state_dict(state)


@defect("policy: exclude alone matches nothing")
def _(tmp_path):
    assert wrapkit.replace(pair(), {nn.Linear: Other}, Policy(exclude=["0"])).changed == ["1"]


@defect("resize: dim ignored, filled from [0, 1)")
def _(tmp_path):
    model = nn.ParameterDict({"w": torch.randn(4, 8) * 0.01})
    wrapkit.resize(model, "w", 500, dim=1)
    assert model["w"].shape == (4, 500)
    assert model["w"].abs().max() < 0.1
    assert model["w"].min() < 0


@defect("offload: unassigned modules dropped")
def _(tmp_path):
    assert set(Offload(["cpu", "meta"], assign={"1": "meta"}).place(pair())) == {"0", "1"}


@defect("offload: modules lost where a device is exactly full")
def _(tmp_path):
    places = Offload(["cpu", "meta"], {"cpu": 80}, training=False).place(pair())
    assert places == {"0": "cpu", "1": "meta"}


@defect("offload: the caller's policy changed")
def _(tmp_path):
    assign, limits, policy = {"1": "cpu"}, {"cpu": 10_000}, Policy(["0"])
    Offload(["cpu"], limits, assign, policy).apply(pair())
    assert (assign, limits, policy) == ({"1": "cpu"}, {"cpu": 10_000}, Policy(["0"]))


@defect("offload: a deep copy runs the original's weights")
def _(tmp_path):
    model = pair()
    Offload(["cpu"]).apply(model)
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        nn.init.zeros_(p)
    assert torch.count_nonzero(twin(torch.ones(1, 4))) == 0


@defect("LoRA: base weights dropped")
def _(tmp_path):
    model = pair()
    weight = model[0].weight
    LoRA(2).apply(model)
    assert model[0].base.weight is weight


@defect("LoRA: a second adapter erases the first")
def _(tmp_path):
    model = pair()
    LoRA(2).apply(model)
    first = model[0].lora_A["default"]
    LoRA(2, name="second").apply(model)
    assert model[0].lora_A["default"] is first
    assert lora.names(model) == ["default", "second"]


@defect("LoRA: 'lora_' in name matches flora_x")
def _(tmp_path):
    model = pair()
    LoRA(2).apply(model)
    model.register_parameter("flora_x", nn.Parameter(torch.ones(1)))
    lora.save(model, tmp_path / "a")
    fresh = pair()
    lora.load(fresh, tmp_path / "a")
    assert "flora_x" not in lora.base_state(fresh)
    assert "flora_x" in lora.base_state(model)


@defect("LoRA: loading keys that are all wrong is silent")
def _(tmp_path):
    model = nn.Sequential(nn.ModuleDict({"x": nn.Linear(4, 4)}))
    LoRA(2).apply(model)
    lora.save(model, tmp_path / "a.sft")
    with pytest.raises(ValueError, match=r"does not fit this Sequential: no layer 0\.x"):
        lora.load(pair(), tmp_path / "a.sft")


@defect("LoRA: merged weights leak into the state dict")
def _(tmp_path):
    model = pair()
    LoRA(2).apply(model)
    nn.init.ones_(model[0].lora_B["default"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with lora.merge(model):
        now = model.state_dict()
        assert now.keys() == before.keys()
        assert all(torch.equal(v, before[k]) for k, v in now.items())


@defect("LoRA over int8: wrapped silently so that merging fails half-way")
def _(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    wrapkit.replace(model, "bnb.int8", Policy(["1"]))
    LoRA(2).apply(model)
    with pytest.raises(ValueError, match="is quantised, and nothing can be added to it exactly"):
        lora.merge(model)
    assert model[0].merged is None


@defect("LoRA in bfloat16: merging and unmerging drifts")
def _(tmp_path):
    model, x = pair().bfloat16(), torch.randn(2, 4, dtype=torch.bfloat16)
    LoRA(2).apply(model)
    for layer in model:
        nn.init.normal_(layer.lora_B["default"])
    expected = model(x)
    for _cycle in range(50):
        lora.merge(model).undo()
    assert torch.equal(model(x), expected)


@defect("convert: stops at the first layer that does not fit")
def _(tmp_path):
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(64, 30), nn.Linear(30, 64), nn.Linear(64, 64))
    handle = wrapkit.replace(model, "torchao.int4")
    assert handle.changed == ["0", "2"]
    assert list(handle.skipped) == ["1"]


@pytest.mark.parametrize("words", DEFECTS)
def test_defect(words, tmp_path):
    DEFECTS[words](tmp_path)


def test_layers_made_under_injection_are_still_told_apart():
    with wrapkit.inject(Linear=BitLinear):
        model = nn.Sequential(torch.nn.modules.linear.Linear(2, 2), nn.Linear(2, 2))
        assert wrapkit.replace(model, "bitlinear").changed == ["0"]


def test_optimizers_injected_by_name():
    pytest.importorskip("bitsandbytes")
    plain = torch.optim.AdamW
    with wrapkit.inject(AdamW="adamw8bit", Adam="sgd"):
        assert torch.optim.AdamW.__module__.startswith("bitsandbytes")
        assert torch.optim.Adam is torch.optim.SGD
    assert torch.optim.AdamW is plain
    with pytest.raises(ValueError, match="muon takes hidden matrices alone"):
        wrapkit.inject(AdamW="muon")
    with pytest.raises(ValueError, match=r"no optimizer 'bitlinear'"):
        wrapkit.inject(AdamW="bitlinear")


def test_adapter_files_of_peft_carry_its_settings(tmp_path):
    model = pair()
    LoRA(2, alpha=8).apply(model)
    lora.save(model, tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"use_rslora": True, "alpha_pattern": {"1": 6}}))
    fresh = pair()
    lora.load(fresh, tmp_path / "a")
    assert fresh[0].adapters["default"].scale == pytest.approx(8 / 2**0.5)
    assert fresh[1].adapters["default"].scale == pytest.approx(6 / 2**0.5)
    path.write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="describes a IA3 adapter, not LORA"):
        lora.load(pair(), tmp_path / "a")
