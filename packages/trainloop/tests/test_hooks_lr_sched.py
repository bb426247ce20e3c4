"""Curves in closed form and against torch's and transformers' schedulers; rates under pins and resumes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_lr
from trainloop import Engines, LocalEngine
from trainloop.hooks import CommandRun, Hooks, StepEnd
from trainloop.hooks.curve import Curve, free, hold, ramp
from trainloop.hooks.lr_sched import LRSchedule, TorchLR, constant, cosine, noam, one_cycle, warmup_hold_decay, wsd
from trainloop.hooks.optim_sched import param_groups


def sgd(lr: float = 0.5) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9)


def planned(make, steps: int, lr: float = 0.5) -> list[float]:
    """What a torch scheduler does, as factors of `lr`."""
    optimizer = sgd(lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / lr)
        optimizer.step()
        scheduler.step()
    return rates


def lambda_of(name: str, *args, **kwargs):
    def make(optimizer):
        optimization = pytest.importorskip("transformers.optimization")
        return getattr(optimization, name)(optimizer, *args, **kwargs)

    return make


@pytest.mark.parametrize(
    ("curve", "oracle", "steps"),
    [
        (constant(0.3), lambda o: torch_lr.ConstantLR(o, 0.3, 10**6), 20),
        (cosine(30, floor=0.1), lambda o: torch_lr.CosineAnnealingLR(o, 30, eta_min=0.05), 30),
        (cosine(30, warmup=7), lambda_of("get_cosine_schedule_with_warmup", 7, 30), 31),
        (warmup_hold_decay(5, 0, 20), lambda_of("get_linear_schedule_with_warmup", 5, 25), 30),
        (warmup_hold_decay(5, 9, 0), lambda_of("get_constant_schedule_with_warmup", 5), 30),
        (ramp(0.25, 1.0, 8), lambda o: torch_lr.LinearLR(o, 0.25, 1.0, 8), 20),
        (one_cycle(40, peak=11), lambda o: torch_lr.OneCycleLR(o, 0.5, 40, pct_start=12 / 40), 40),
        (
            wsd(4, 10, 6, form="linear"),
            lambda_of("get_wsd_schedule", 4, 6, num_stable_steps=10, decay_type="linear"),
            30,
        ),
        (free(lambda s: 0.9**s), lambda o: torch_lr.ExponentialLR(o, 0.9), 20),
    ],
    ids=["constant", "cosine", "cosine-warmup", "linear-warmup", "hold", "ramp", "one-cycle", "wsd", "free"],
)
def test_curves_equal_other_schedulers(curve, oracle, steps):
    assert [curve(s) for s in range(steps)] == pytest.approx(planned(oracle, steps), rel=1e-9, abs=1e-12)


def test_noam_is_the_papers():
    curve = noam(512, 4000)
    for s in (1, 2, 3999, 4000, 4001, 100_000):
        assert curve(s - 1) == pytest.approx(512**-0.5 * min(s**-0.5, s * 4000**-1.5), rel=1e-12)


def test_wsd_decays_by_the_square_root():
    curve = wsd(10, 20, 16, floor=0.2)
    assert [curve(s) for s in (0, 5, 10, 29, 30, 34, 46, 1000)] == pytest.approx([0, 0.5, 1, 1, 1, 0.6, 0.2, 0.2])


pieces = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), st.floats(-2, 2), st.just(0.0), st.integers(1, 9), st.just("linear")),
        st.tuples(
            st.just("ramp"),
            st.floats(-2, 2),
            st.floats(-2, 2),
            st.integers(1, 9),
            st.sampled_from(["linear", "cosine", "sqrt"]),
        ),
    ),
    min_size=1,
    max_size=5,
)


def joined(parts) -> Curve:
    curves = [hold(a, n) if kind == "hold" else ramp(a, b, n, form) for kind, a, b, n, form in parts]
    curve = curves[0]
    for other in curves[1:]:
        curve = curve.then(other)
    return curve


@given(pieces)
def test_a_curve_changes_only_where_it_says(parts):
    curve, step = joined(parts), 0
    while (following := curve.next_change(step)) is not None:
        assert following > step
        assert {curve(s) for s in range(step, following)} == {curve(step)}
        step = following
    assert {curve(s) for s in range(step, step + 20)} == {curve(step)}


@given(pieces)
def test_a_curve_runs_through_its_pieces(parts):
    curve, begin = joined(parts), 0
    for kind, a, b, n, _ in parts:
        assert curve(begin) == a
        inside = [curve(s) for s in range(begin, begin + n)]
        assert min(a, b if kind == "ramp" else a) - 1e-9 <= min(inside)
        assert max(inside) <= max(a, b if kind == "ramp" else a) + 1e-9
        begin += n
    assert curve.knots == [0, *itertools.accumulate(p[3] for p in parts)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ramp(0, 1, 0), "whole number from 1, found 0"),
        (lambda: hold(1.0, -3), "whole number from 1, found -3"),
        (lambda: ramp(0, math.inf, 3), "must be finite, found inf"),
        (lambda: ramp(0, 1, 3, "cubic"), "linear, cosine, sqrt, found 'cubic'"),
        (lambda: hold(1.0).then(hold(2.0)), "give hold"),
        (lambda: cosine(10, warmup=10), "10 steps leave nothing after the first 10"),
        (lambda: warmup_hold_decay(0, 0, 0), "all 0"),
        (lambda: noam(0, 10), "must be 1 or more"),
    ],
)
def test_curves_that_make_no_sense(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def run(make_trainer, engine, *bundles, watch=None, **kwargs):
    hooks = Hooks()
    seen: list[list[float]] = []
    for bundle in bundles:
        hooks.attach(bundle)
    hooks.on(StepEnd, lambda e: seen.append([g["lr"] for g in engine.optimizer.param_groups]), order=1000)
    if watch:
        hooks.on(StepEnd, watch)
    trainer = make_trainer(engines=Engines([engine]), hooks=hooks, **kwargs)
    trainer.run()
    return seen


def grouped(noisy) -> LocalEngine:
    torch.manual_seed(0)
    net = noisy()
    groups = param_groups(net, {"net.0": {"lr": 0.01}, "net.3": {"lr": 0.04}})
    return LocalEngine("net", net, torch.optim.AdamW(groups, lr=1.0))


def test_groups_keep_their_rates_and_the_factor_counts_the_runs_steps(make_trainer, noisy):
    curve = warmup_hold_decay(3, 2, 5, start=0.5)
    engine = grouped(noisy)
    engine.every = 2
    seen = run(make_trainer, engine, LRSchedule(engine, curve))
    assert seen == [[0.01 * curve(s), 0.04 * curve(s)] for s in range(1, 13)]


def test_the_first_step_has_the_first_factor(make_trainer, make_engine):
    engine = make_engine(scheduler=None)
    before = [p.clone() for p in engine.module.parameters()]
    run(make_trainer, engine, LRSchedule(engine, ramp(0.0, 1.0, 4)), until=1)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))


def test_a_pinned_rate_holds_while_the_schedule_goes_on(make_trainer, noisy):
    """`lr 0.5@3` pins the first group, others keep their ratio; `lr auto@6` is back on the plan."""
    engine, curve = grouped(noisy), ramp(1.0, 0.0, 12)
    hooks = Hooks()
    hooks.attach(LRSchedule(engine, curve))
    trainer = make_trainer(engines=Engines([engine]), hooks=hooks)
    from trainloop.commands import parse

    trainer.schedule.add(parse("lr 0.5@3"))
    trainer.schedule.add(parse("lr auto@6"))
    rates, obeyed = {}, []
    hooks.on(CommandRun, lambda e: obeyed.append(str(e.command)))
    hooks.on(StepEnd, lambda e: rates.update({e.step: [g["lr"] for g in engine.optimizer.param_groups]}), order=999)
    trainer.run()
    assert obeyed == ["lr 0.5@3", "lr auto@6"]
    assert rates[3] == pytest.approx([0.01 * curve(3), 0.04 * curve(3)])  # the command comes after the step
    assert rates[4] == pytest.approx([0.5, 2.0])
    assert rates[6] == pytest.approx([0.5, 2.0])
    assert rates[7] == [0.01 * curve(7), 0.04 * curve(7)]


def test_groups_keep_their_ratio_when_a_rate_is_pinned_in_a_warm_up_from_0(noisy):
    engine = grouped(noisy)
    LRSchedule(engine, ramp(0.0, 1.0, 4)).apply(0)
    engine.set_lr(0.5)
    assert [g["lr"] for g in engine.optimizer.param_groups] == [0.5, 2.0]


def test_a_pin_and_the_plan_below_it_survive_a_resume(make_trainer, noisy):
    curve = ramp(1.0, 0.0, 12)
    first = grouped(noisy)

    def pin(e):
        if e.step == 2:
            first.set_lr(0.5)

    run(make_trainer, first, LRSchedule(first, curve), until=5, watch=pin)
    second = grouped(noisy)

    def let_go(e):
        if e.step == 8:
            second.set_lr(None)

    seen = run(make_trainer, second, LRSchedule(second, curve), watch=let_go)
    assert seen[:2] == [pytest.approx([0.5, 2.0])] * 2  # steps 6 and 7
    assert seen[2:] == [[0.01 * curve(s), 0.04 * curve(s)] for s in range(8, 13)]


def test_without_the_schedule_a_resumed_run_has_the_base_rates(make_trainer, noisy):
    first = grouped(noisy)
    run(make_trainer, first, LRSchedule(first, hold(0.125)), until=5)
    assert [g["lr"] for g in first.optimizer.param_groups] == [0.00125, 0.005]
    assert run(make_trainer, grouped(noisy), until=7) == [[0.01, 0.04]] * 2


def test_the_factor_multiplies_what_a_torch_scheduler_plans(make_trainer, make_engine):
    plain, scaled = make_engine(), make_engine()
    expected = run(make_trainer, plain, checkpoints=None)
    got = run(make_trainer, scaled, LRSchedule(scaled, hold(0.5)), checkpoints=None)
    assert got == [[r * 0.5 for r in rates] for rates in expected]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch_lr.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch_lr.CosineAnnealingWarmRestarts(o, 4),
        lambda o: torch_lr.SequentialLR(o, [torch_lr.LinearLR(o), torch_lr.ExponentialLR(o, 0.9)], [5]),
    ],
    ids=["one-cycle", "restarts", "sequential"],
)
def test_any_torch_scheduler_resumed_in_the_middle(make_trainer, noisy, make, tmp_path):
    import trainloop

    def attached(**kwargs):
        torch.manual_seed(0)
        net = noisy()
        engine = LocalEngine("net", net, torch.optim.AdamW(net.parameters(), lr=0.1))
        schedule = TorchLR(engine, make)
        return schedule, run(make_trainer, engine, schedule, **kwargs)

    _, golden = attached(checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    _, first = attached(until=7)
    schedule, second = attached()
    assert first + second == golden
    told = [schedule.row(s)["net.torch_lr"] for s in range(1, 13)]
    assert told == pytest.approx([rates[0] for rates in golden])
    assert schedule.describe(until=12).count("\n") > 10


def test_an_engine_has_one_scheduler_and_needs_an_optimizer(make_engine):
    with pytest.raises(ValueError, match="has a scheduler already"):
        TorchLR(make_engine(), lambda o: torch_lr.ExponentialLR(o, 0.9))
    with pytest.raises(ValueError, match="'t' has no optimizer"):
        LRSchedule(LocalEngine("t", torch.nn.Linear(1, 1), role="teacher"), 1.0)
