"""Settings of an optimizer over the steps, by group, and optimizers switched at a step."""

from __future__ import annotations

import itertools

import pytest
import torch
import trainloop
from torch import nn
from trainloop import Engines, LocalEngine
from trainloop.hooks import Hooks, StepEnd
from trainloop.hooks.curve import hold, ramp
from trainloop.hooks.lr_sched import LRSchedule
from trainloop.hooks.optim_sched import OptimSchedule, Switch, param_groups
from trainloop.tree import first_difference

GROUPS = {"*.bias": {"weight_decay": 0.0}, "net.3": {"lr": 0.02}}


def adamw(noisy, **kwargs) -> LocalEngine:
    torch.manual_seed(0)
    net = noisy()
    return LocalEngine("net", net, torch.optim.AdamW(param_groups(net, GROUPS), lr=0.01), **kwargs)


def hooks_of(*bundles) -> Hooks:
    hooks = Hooks()
    for bundle in bundles:
        hooks.attach(bundle)
    return hooks


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(param_groups(module, GROUPS), lr=0.05, momentum=0.9)


def test_groups_are_named_and_hold_every_parameter_once(noisy):
    net = noisy()
    groups = param_groups(net, GROUPS)
    assert [(g["name"], len(g["params"])) for g in groups] == [("*.bias", 2), ("net.3", 1), ("rest", 1)]
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in net.parameters()}
    with pytest.raises(ValueError, match=r"'nett' covers no parameter of this Noisy; its names are like net"):
        param_groups(net, {"nett": {}})
    with pytest.raises(ValueError, match="write it before"):
        param_groups(net, {"*": {}, "net.3": {}})


def test_settings_follow_their_curves_by_group(make_trainer, noisy):
    engine = adamw(noisy)
    decay, beta = ramp(0.1, 0.0, 6), ramp(0.95, 0.85, 8)
    schedule = OptimSchedule(
        engine, {"betas": (beta, 0.99), "weight_decay": {"*.bias": hold(0.5, 4).then(hold(0.25)), "*": decay}}
    )
    seen = {}
    hooks = hooks_of(schedule)

    def note(e):
        seen[e.step] = [(g["betas"], g["weight_decay"]) for g in engine.optimizer.param_groups]

    hooks.on(StepEnd, note, order=1000)
    make_trainer(engines=Engines([engine]), hooks=hooks).run()
    for step, groups in seen.items():
        bias = 0.5 if step < 4 else 0.25
        assert groups == [((beta(step), 0.99), d) for d in (bias, decay(step), decay(step))]
    assert "net.weight_decay[*.bias]" in schedule.describe(until=10)


def by_hand(counting, noisy, factor) -> nn.Module:
    """AdamW for 5 steps, then SGD whose momentum starts from exp_avg."""
    engine = adamw(noisy)
    net, adam, other = engine.module, engine.optimizer, sgd(engine.module)
    trainloop.seed_everything(1)
    base = [[g["lr"] for g in optimizer.param_groups] for optimizer in (adam, other)]
    batches = itertools.chain.from_iterable(itertools.repeat(counting()))
    for step, (x, y) in enumerate(itertools.islice(batches, 12)):
        if step == 5:
            for p in net.parameters():
                other.state[p]["momentum_buffer"] = adam.state[p]["exp_avg"].clone()
        optimizer = adam if step < 5 else other
        for group, lr in zip(optimizer.param_groups, base[step >= 5], strict=True):
            group["lr"] = lr * factor(step)
        net.zero_grad()
        (net(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net


def test_an_optimizer_is_switched_at_its_step_and_takes_along_what_it_is_told_to(make_trainer, noisy, counting):
    factor = ramp(1.0, 0.1, 12)
    engine = adamw(noisy)
    schedule = OptimSchedule(engine, switch={5: Switch(sgd, carry={"exp_avg": "momentum_buffer"})})
    make_trainer(engines=Engines([engine]), hooks=hooks_of(schedule, LRSchedule(engine, factor))).run()
    expected = by_hand(counting, noisy, factor)
    for a, b in zip(engine.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert type(engine.optimizer).__name__ == "SGD"


@pytest.mark.parametrize("carry", [{}, {"exp_avg": "momentum_buffer"}], ids=["anew", "carried"])
@pytest.mark.parametrize("stop", [2, 3, 4, 7, 8, 9])
def test_resumed_before_at_and_after_switches(make_trainer, noisy, tmp_path, stop, carry):
    def start(**kwargs):
        engine = adamw(noisy)
        schedule = OptimSchedule(
            engine,
            {"momentum": ramp(0.5, 0.9, 10), "betas": (0.8, ramp(0.99, 0.9, 10))},
            switch={3: Switch(sgd, carry), 8: Switch(lambda m: torch.optim.AdamW(param_groups(m, GROUPS), lr=0.01))},
        )
        hooks = hooks_of(LRSchedule(engine, ramp(1.0, 0.2, 12)), schedule)
        make_trainer(engines=Engines([engine]), hooks=hooks, **kwargs).run()
        return engine.state_dict()

    golden = start(checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    start(until=stop)
    assert first_difference(golden, start()) is None


@pytest.mark.parametrize(
    ("settings", "switch", "words"),
    [
        ({"lr": 0.1}, None, "leave lr out here"),
        ({"nesterov_": True}, None, r"no optimizer has a setting 'nesterov_'; there are amsgrad, betas"),
        ({"momentum": 0.9}, None, "no optimizer has a setting 'momentum'"),
        ({"betas": 0.9}, None, "'betas' takes 2 values, found 1"),
        ({"weight_decay": {"head": 0.1}}, None, r"no group with 'weight_decay' fits the pattern 'head'; there are \*"),
        ({}, {0: Switch(sgd)}, "found 0 twice"),
        ({}, [(9, Switch(sgd)), (4, Switch(sgd))], "found 4 after 9"),
        ({}, {5: Switch(lambda m: torch.optim.SGD(m.parameters(), 0.1))}, r"at step 5: .* no group named '\*.bias'"),
        ({}, {-1: Switch(sgd)}, "whole number from 0, found -1"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(noisy, settings, switch, words):
    with pytest.raises(ValueError, match=words):
        OptimSchedule(adamw(noisy), settings, switch=switch)


def test_an_optimizer_with_a_torch_scheduler_is_not_replaced(make_engine):
    with pytest.raises(ValueError, match=r"use lr_sched.LRSchedule, which follows"):
        OptimSchedule(make_engine(), switch={3: Switch(sgd)})
