"""Which engines train at which step, and running averages of them."""

from __future__ import annotations

import pytest
import torch
import trainloop
from torch import nn
from trainloop import Engines, LocalEngine
from trainloop.hooks import AfterOptimizerStep, Hooks
from trainloop.hooks.curve import hold
from trainloop.hooks.model_sched import EMACopy, ModelSchedule
from trainloop.tree import first_difference


def hooks_of(*bundles) -> Hooks:
    hooks = Hooks()
    for bundle in bundles:
        hooks.attach(bundle)
    return hooks


@pytest.fixture
def pair(make_engine):
    return lambda: Engines([make_engine("d"), make_engine("g", 1)])


def turns(make_trainer, engines, *bundles, **kwargs) -> list[str]:
    hooks, seen = hooks_of(*bundles), []
    hooks.on(AfterOptimizerStep, lambda e: seen.append(f"{e.step}{e.engine.name}"))
    make_trainer(engines=engines, hooks=hooks, **kwargs).run()
    return seen


def test_alternating(make_trainer, pair):
    engines = pair()
    schedule = ModelSchedule(engines, {0: ["d"], 2: ["g"]}, period=3)
    expected = ["0d", "1d", "2g", "3d", "4d", "5g", "6d", "7d", "8g", "9d", "10d", "11g"]
    assert turns(make_trainer, engines, schedule) == expected
    assert [line.split(" | ")[-1] for line in schedule.describe(until=6).splitlines()[2:]] == list("dgdgd")


def test_one_warms_up_and_an_engine_never_mentioned_goes_on(make_trainer, make_engine):
    engines = Engines([make_engine("d"), make_engine("g", 1), make_engine("free", 2)])
    schedule = ModelSchedule(engines, {0: ["d"], 2: ["d", "g"]})
    seen = turns(make_trainer, engines, schedule, until=3, checkpoints=None)
    assert seen == ["0d", "0free", "1d", "1free", "2d", "2g", "2free"]
    assert [e.role for e in engines.values()] == ["train"] * 3


@pytest.mark.parametrize("stop", range(1, 8))
def test_resumed_at_every_step_of_a_handing_over(make_trainer, pair, feeder, tmp_path, stop):
    plan = {0: ["d"], 3: {"g": "train", "d": "teacher"}, 6: ["d", "g"]}
    roles = []

    def learn(engine, batch, ctx):
        roles.append((ctx.step, engine.name, *ctx.engines.teachers))
        if not ctx.engines.teachers:
            return feeder(engine, batch, ctx)
        with torch.no_grad():
            target = ctx.engines.teachers["d"].module(batch[0])
        return feeder(engine, (batch[0], target), ctx)

    def start(**kwargs):
        engines = pair()
        trainer = make_trainer(
            engines=engines, hooks=hooks_of(ModelSchedule(engines, plan)), feeder=learn, **{"until": 8, **kwargs}
        )
        trainer.run()
        return {name: e.state_dict() for name, e in engines.items()}, [e.module.training for e in engines.values()]

    golden = start(checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    assert roles[2:4] == [(2, "d"), (3, "g", "d")]
    start(until=stop)
    again = start()
    assert first_difference(golden[0], again[0]) is None
    assert golden[1] == again[1] == [True, True]


def test_a_teacher_is_evaluated_and_saved_and_a_second_run_saves_it_too(make_trainer, pair, tmp_path):
    engines = pair()
    hooks, seen = hooks_of(ModelSchedule(engines, {0: ["d"], 2: {"g": "train", "d": "teacher"}, 4: ["d", "g"]})), []
    hooks.on(AfterOptimizerStep, lambda e: seen.append((e.step, [x.module.training for x in engines.values()])))
    for until in (3, 5):
        make_trainer(engines=engines, hooks=hooks, until=until).run()
        assert [e.role for e in engines.values()] == ["train", "train"]
        assert {"d.pth", "g.pth"} <= {p.name for p in (tmp_path / "ckpt" / str(until)).iterdir()}
    assert seen == [
        (0, [True, True]),
        (1, [True, True]),
        (2, [False, True]),
        (3, [False, True]),
        (4, [True, True]),
        (4, [True, True]),
    ]


def test_a_typed_rate_reaches_an_engine_that_rests(make_trainer, pair):
    from trainloop.commands import parse

    engines = pair()
    trainer = make_trainer(engines=engines, hooks=hooks_of(ModelSchedule(engines, {0: ["d"], 4: ["g"]})))
    trainer.schedule.add(parse("lr 0.5@2"))
    trainer.run()
    assert [e.lr for e in engines.values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("plan", "period", "words"),
    [
        ({0: ["x"]}, None, "models at step 0: there is no engine 'x'; there are d, g, ema"),
        ({0: ["d"], 2: {"d": "resting"}}, None, "must be train, frozen or teacher, found 'resting'"),
        ({0: ["d"], 2: ["ema"]}, None, "engine 'ema' has no optimizer"),
        ({0: ["d"], 5: ["g"]}, 5, "longer than its last step 5, found 5"),
        ({0: "d"}, None, r"expected a list of names, found 'd'"),
        ({0: {"d": "frozen", "g": "frozen"}}, None, "no engine would train"),
        ({0: ["d"], 3: ["g"], 1: ["d"]}, None, "found 1 after 3"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(make_engine, plan, period, words):
    ema = LocalEngine("ema", nn.Linear(1, 1), role="frozen")
    with pytest.raises(ValueError, match=words):
        ModelSchedule(Engines([make_engine("d"), make_engine("g"), ema]), plan, period)


def average(make_engine, noisy, decay, **kwargs) -> tuple[Engines, EMACopy]:
    source = make_engine("net")
    copy = LocalEngine("ema", noisy(), role="frozen")
    return Engines([source, copy]), EMACopy(source, copy, decay, **kwargs)


@pytest.mark.parametrize("every", [1, 3])
def test_an_average_is_what_its_formula_says_and_survives_a_resume(make_trainer, make_engine, noisy, tmp_path, every):
    def decay(step):
        return 0.0 if step < 2 else 0.5 + 0.04 * step

    def start(**kwargs):
        engines, ema = average(make_engine, noisy, decay, every=every)
        hooks, weights = hooks_of(ema), []
        net = engines["net"].module
        hooks.on(AfterOptimizerStep, lambda e: weights.append((e.step, net.net[0].weight.detach().clone())))
        make_trainer(engines=engines, hooks=hooks, **kwargs).run()
        return engines["ema"].module.net[0].weight.detach(), weights, engines

    got, weights, _ = start(checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    expected = make_engine("net").module.net[0].weight.detach()
    for step, weight in weights:
        if step % every == 0:
            expected = decay(step) * expected + (1 - decay(step)) * weight
    torch.testing.assert_close(got, expected)
    start(until=5)
    assert torch.equal(start()[0], got)


def test_an_average_of_something_else_is_refused(make_engine, noisy):
    engine = make_engine("net")
    with pytest.raises(ValueError, match="must have role frozen, found 'train'"):
        EMACopy(engine, make_engine("ema"))
    with pytest.raises(ValueError, match=r"'net' and 'ema' differ, first in bias"):
        EMACopy(engine, LocalEngine("ema", nn.Linear(4, 1), role="frozen"))
    with pytest.raises(ValueError, match=r"found 1.5 and 1"):
        EMACopy(engine, LocalEngine("ema", noisy(), role="frozen"), 1.5)
    EMACopy(engine, LocalEngine("ema", noisy(), role="frozen"), hold(0.9))
