"""trainloop's schedule of adapters on wrapkit's adapters, joined by the lines that the guide shows."""

import re

import pytest
import torch
import trainloop
import wrapkit
from torch import nn
from trainloop.hooks.curve import ramp
from trainloop.hooks.layer_sched import LayerSchedule
from trainloop.hooks.lora_sched import LoRASchedule, On
from trainloop.tree import first_difference

PLAN = {
    0: "a",
    3: On({"a": 1.0, "b": ramp(0.0, 1.0, 6)}),
    6: On({"b": 0.5}, merged=True),
    9: "b",
}


@pytest.fixture
def adapters(root):
    """`WrapkitAdapters` of docs/packages/trainloop-hooks-schedules.md."""
    text = (root / "docs/packages/trainloop-hooks-schedules.md").read_text()
    (code,) = re.findall(r"^class WrapkitAdapters:\n(?:    .*\n|\n)*", text, re.MULTILINE)
    names = {"wrapkit": wrapkit}
    exec(code, names)
    return names["WrapkitAdapters"]


def start(adapters, folder, until, watch=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    for name in ("a", "b"):
        wrapkit.LoRA(rank=2, name=name, policy=wrapkit.Policy(["0"])).apply(net)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    engine = trainloop.LocalEngine("net", net, torch.optim.AdamW(net.parameters(), lr=0.01))
    hooks = trainloop.Hooks()
    hooks.attach(LayerSchedule(engine, {0: ["*lora_A", "*lora_B", "2"]}))
    hooks.attach(LoRASchedule(engine, adapters(net), PLAN))
    if watch:
        hooks.on(trainloop.hooks.StepEnd, lambda e: watch(e.step, net), order=1000)
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    trainloop.Trainer(
        trainloop.Engines([engine]),
        list(x.split(6)),
        lambda e, b, c: trainloop.StepOutput((e.module(b) - b.sum(1, keepdim=True)).square().mean()),
        until=until,
        checkpoints=trainloop.CheckpointStore(folder),
        hooks=hooks,
        commands=False,
        progress=False,
    ).run()
    return engine.state_dict()


def test_what_is_on_counts_and_trains_at_exact_steps(adapters, tmp_path):
    states, trained = [], []

    def watch(step, net):
        layer, curve = net[0], ramp(0.0, 1.0, 6)
        expected = (
            {"a": 1.0} if step < 3 else {"a": 1.0, "b": curve(step)} if step < 6 else {"b": 0.5 if step < 9 else 1.0}
        )
        assert layer.active() == expected
        assert (layer.merged is not None) == (6 <= step < 9)
        states.append({n: p.detach().clone() for n, p in net.named_parameters()})
        if len(states) > 1:
            before, after = states[-2:]
            moved = {n for n in after if not torch.equal(before[n], after[n])}
            trained.append({n.split(".")[-1] if "lora" in n else n.split(".")[0] for n in moved})

    start(adapters, tmp_path, 12, watch)
    assert trained == [{"a", "2"}] * 2 + [{"a", "b", "2"}] * 3 + [{"2"}] * 3 + [{"b", "2"}] * 3


@pytest.mark.parametrize("stop", [3, 4, 6, 7, 8, 9, 10])
def test_resumed_in_the_middle(adapters, tmp_path, stop):
    golden = start(adapters, tmp_path / "golden", 12)
    start(adapters, tmp_path / "cut", stop)
    assert first_difference(golden, start(adapters, tmp_path / "cut", 12)) is None
