"""Bytes predicted without memory equal the bytes measured; what cannot work is told before anything changes."""

import copy
import subprocess
import sys

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import BackendUnavailable, Checkpoint, Freeze, LoRA, Offload, Optim, PatternError, Policy, Replace
from wrapkit.__main__ import main
from wrapkit._plan import measure
from wrapkit._saved import SavedTensors
from wrapkit.optim import OPTIMIZERS, state_bytes

IDS = torch.arange(400).remainder(100).view(4, 100)  # B, T


class Model(nn.Module):
    """Tied head, norms, a buffer, a bare parameter, layers large enough for 8-bit states."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(3)
        )
        self.gate = nn.Parameter(torch.ones(64))
        self.head = nn.Linear(64, 100, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(7))

    def forward(self, ids):
        x = self.embedding(ids)
        q = x.unflatten(-1, (4, 16)).transpose(1, 2)  # B, 4, T, 16
        # Its kernels, and what they keep, differ between devices.
        x = x + nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2).flatten(-2)
        for layer in self.layers:
            x = x + layer(x) * self.gate
        return self.head(x)


def build():
    torch.manual_seed(0)
    return Model()


def everything(model):
    values = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [(n, id(m), type(m)) for n, m in model.named_modules()]
    return values, modules, [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(torch.equal(v, b[0][k]) for k, v in a[0].items())


def trained(plan):
    """The plan applied and one step made: the bytes there are then, and those of the activations."""
    with torch.compiler.set_stance("force_eager"):
        handle = plan.apply()
        with SavedTensors(plan.model) as saved:
            out = plan.model(IDS)
        out.square().mean().backward()
        handle.optimizer.step()
    return measure(plan.model, handle.optimizer), saved, handle


CHANGES = {
    "nothing": [],
    "lora": [LoRA(8, policy=Policy(["layers"]))],
    "frozen": [Freeze(Policy(["embedding", "layers.0"]))],
    "int8": [Replace("bnb.int8", Policy(["layers"]))],
    "int8 and lora": [Replace("bnb.int8", Policy(["layers"])), LoRA(8, policy=Policy(["layers"]))],
    "torchao int8 and lora": [Replace("torchao.int8", Policy(["layers"])), LoRA(8, policy=Policy(["layers"]))],
    "bitlinear": [Replace("bitlinear", Policy(["layers"]))],
    "dora": [LoRA(8, policy=Policy(["layers"]), form="dora")],
    "checkpointed": [Checkpoint(Policy(["layers"]))],
    "checkpointed, offloaded": [Checkpoint(Policy(["layers"]), offload=True, skip_last=True)],
}


@pytest.mark.parametrize("changes", CHANGES)
def test_the_prediction_is_the_measurement(changes):
    if "int8" in changes:
        pytest.importorskip("torchao" if "torchao" in changes else "bitsandbytes")
    model = build()
    before = everything(model)
    plan = wrapkit.plan(model, *CHANGES[changes], optimizer=Optim("adamw"), sample=IDS)
    assert same(everything(model), before)
    assert not plan.notes
    predicted = plan.memory["cpu"]
    found, saved, handle = trained(plan)
    assert predicted.parameters == found.parameters
    assert predicted.gradients == found.gradients
    assert predicted.optimizer == found.optimizer
    total = found.total + saved.bytes
    assert abs(predicted.total - total) <= 0.01 * total, (predicted, found, saved.bytes)
    handle.undo()
    assert everything(model)[1:] == before[1:]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_state_to_the_byte(name):
    needs = {"prodigy": "prodigyopt", "dadapt": "dadaptation", "schedulefree": "schedulefree", "torchao": "torchao"}
    pytest.importorskip(next((p for n, p in needs.items() if name.startswith(n)), "torch"))
    if name.endswith("8bit") and not name.startswith("torchao"):
        pytest.importorskip("bitsandbytes")
    plan = wrapkit.plan(build(), optimizer=Optim(name))
    found, _, handle = trained(plan)
    assert found.optimizer == state_bytes(handle.optimizer)
    if name == "prodigy":  # which keeps one number instead of a copy for the norms' biases, zero at the start
        found.optimizer += 3 * (64 - 1) * 4
    assert plan.memory["cpu"].optimizer == found.optimizer


def test_mixed_types_and_options():
    model = build()
    model.layers[1].to(torch.bfloat16)
    for optim in (Optim("apollo", {"rank": 5}), Optim("sgd", {"momentum": 0.9}), Optim("adamw", {"amsgrad": True})):
        twin = copy.deepcopy(model)
        plan = wrapkit.plan(twin, optimizer=optim)
        built = optim.build(twin)
        for p in twin.parameters():
            p.grad = torch.randn_like(p)
        built.step()
        assert plan.memory["cpu"].optimizer == state_bytes(built)


def test_a_model_larger_than_memory():
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(50_000, 50_000, bias=False) for _ in range(8)])
    plan = wrapkit.plan(model, optimizer=Optim("apollo-mini"), sample=torch.ones(4, 50_000), device="cuda:0")
    memory = plan.memory["cuda:0"]
    assert memory.parameters == memory.gradients == 8 * 50_000**2 * 4
    assert memory.optimizer == 8 * 4 * (2 * 50_000 + 2)
    assert memory.activations == 8 * 4 * 50_000 * 4


def test_the_report():
    plan = wrapkit.plan(
        build(),
        Replace("bitlinear", Policy(["layers"])),
        LoRA(4, policy=Policy(["layers"])),
        optimizer=Optim("adamw"),
        sample=IDS,
    )
    report = plan.report()
    assert report.startswith("Model: ")
    assert "Replace bitlinear: layers.0.1, layers.0.3, layers.1.1, layers.1.3 and 2 more" in report
    assert "LoRA: layers.0.1" in report
    header = next(line for line in report.splitlines() if line.startswith("device"))
    assert header.split() == ["device", "parameters", "gradients", "optimizer", "activations", "total"]


def test_skipped_layers_are_in_the_report():
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8))
    report = wrapkit.plan(model, Replace("torchao.int4")).report()
    assert "left as it is: 1: 4 bits need inputs divisible by 32, and it has 8" in report


def test_quantised_weights_beside_multihead_attention():
    pytest.importorskip("bitsandbytes")
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    plan = wrapkit.plan(layer, Replace("bnb.int8", Policy(["linear1"])), sample=torch.ones(2, 8, 64))
    assert plan.notes == ["with quantised weights, activations of nn.MultiheadAttention are predicted too high"]


def test_activations_that_cannot_be_told():
    class Picky(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() > 0 else x

    plan = wrapkit.plan(Picky(4, 4), sample=torch.ones(2, 4))
    assert plan.notes[0].startswith("activations are not predicted: forward without numbers raised ")
    assert plan.notes[0] in plan.report()


@pytest.mark.parametrize(
    ("changes", "optimizer", "error", "message"),
    [
        ([Replace("bnb.int8", Policy(["layers"])), LoRA(4, form="dora")], None, ValueError, 'form="dora" needs'),
        ([LoRA(4, policy=Policy(["layers"]))], "apollo", ValueError, "nothing to do: none of the parameters"),
        ([LoRA(400)], None, ValueError, "rank 400 is above the smaller side"),
        ([Freeze(Policy(["layer"]))], None, PatternError, "'layer' matches nothing in the model; did you mean layers"),
        ([Replace("te.fp8")], None, BackendUnavailable, "transformer-engine is not usable here"),
        ([], "adamv", ValueError, r"no optimizer 'adamv' \(did you mean adamw\?\)"),
        ([Freeze(Policy())], "adamw", ValueError, "nothing to optimise: the policy and requires_grad leave no"),
        ([Offload(["cpu"], {"cpu": "10KiB"})], "adamw", wrapkit.OverBudget, "no room for"),
        ([Freeze(Policy(["layers"])), Freeze(Policy(["layers"]))], None, ValueError, "nothing to freeze"),
    ],
)
def test_what_cannot_work_is_told_before_anything_changes(changes, optimizer, error, message):
    if any(isinstance(c, Replace) and c.what == "bnb.int8" for c in changes):
        pytest.importorskip("bitsandbytes")
    model = build()
    before = everything(model)
    with pytest.raises(error, match=message):
        wrapkit.plan(model, *changes, optimizer=Optim(optimizer) if optimizer else None)
    assert same(everything(model), before)


def test_a_change_that_fails_for_real_undoes_those_before():
    class Failing:
        def apply(self, model):
            if not next(model.parameters()).is_meta:
                raise RuntimeError("no")
            return wrapkit.Handle(model, [])

    model = build()
    before = everything(model)
    with pytest.raises(RuntimeError, match="no"):
        wrapkit.plan(model, LoRA(4, policy=Policy(["layers"])), Failing()).apply()
    assert same(everything(model), before)


def test_changes_stacked_on_one_layer_are_undone_in_order():
    model = build()
    before, out = everything(model), model(IDS)
    policy = Policy(["layers"])
    plan = wrapkit.plan(
        model,
        Replace("bitlinear", policy),
        LoRA(4, policy=policy),
        Checkpoint(policy),
        Freeze(Policy(["layers.0.1.lora_A"])),
        optimizer=Optim("adamw"),
    )
    handle = plan.apply()
    assert type(model.layers[0][1].base).__name__ == "BitLinear"
    handle.undo()
    assert same(everything(model), before)
    assert torch.equal(model(IDS), out)


MODELS = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), torch.ones(2, 64)

thing = 3
"""


def test_the_command(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    arguments = ["plan", "models:build", "--optimizer", "apollo-mini", "--option", "lr=1e-2"]
    done = subprocess.run([sys.executable, "-m", "wrapkit", *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Sequential: 8,320 parameters, 8,320 of them trained" in done.stdout
    assert done.stdout.splitlines()[-1].split()[:3] == ["cpu", "32.5", "KiB"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models:thing"], "models:thing is a int, not a function that builds a model"),
        (["models"], "give the model as module:function, got 'models'"),
        (["models:build", "--optimizer", "adamx"], "there is no optimizer 'adamx'"),
        (["models:build", "--optimizer", "adamw", "--option", "lr"], "an option is NAME=VALUE, got 'lr'"),
        (["models:build", "--freeze", "7"], "pattern '7' matches nothing in the model"),
        (["nowhere_at_all:build"], "No module named 'nowhere_at_all'"),
    ],
)
def test_the_commands_errors(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    assert main(["plan", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_commands_changes(tmp_path, monkeypatch, capsys):
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    flags = ["--replace", "bitlinear", "--lora", "4", "--exclude", "1"]
    flags += ["--checkpoint", "0", "--offload-inputs", "--device", "cuda:0"]
    assert main(["plan", "models:build", *flags]) == 0
    printed = capsys.readouterr().out
    for line in ("Replace bitlinear: 0", "LoRA: 0", "Checkpoint: 0", "cuda:0"):
        assert line in printed
