"""Layers frozen and unfrozen at exact steps, alone and on ranks."""

from __future__ import annotations

import pytest
import torch
import trainloop
from torch import nn
from trainloop import Engines, LocalEngine
from trainloop.hooks import Hooks, StepEnd
from trainloop.hooks.curve import ramp
from trainloop.hooks.layer_sched import LayerSchedule, progressive
from trainloop.hooks.lr_sched import LRSchedule
from trainloop.hooks.optim_sched import param_groups
from trainloop.hooks.patterns import covers
from trainloop.tree import first_difference

PLAN = {0: ["2"], 3: ["*.bias", "1"], 6: ["*"], 9: ["0"]}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1))


def engine(module: nn.Module | None = None) -> LocalEngine:
    module = module or net()
    return LocalEngine("net", module, torch.optim.AdamW(module.parameters(), lr=0.01))


def hooks_of(*bundles) -> Hooks:
    hooks = Hooks()
    for bundle in bundles:
        hooks.attach(bundle)
    return hooks


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {n.removeprefix("module.") for n, t in module.state_dict().items() if not torch.equal(t, before[n])}


def trained_each_step(make_trainer, e: trainloop.Engine, hooks: Hooks, **kwargs) -> list[set[str]]:
    states = [{n: t.clone() for n, t in e.bare_module.state_dict().items()}]
    steps = []

    def note(_):
        steps.append(moved(states[-1], e.bare_module))
        states.append({n: t.clone() for n, t in e.bare_module.state_dict().items()})

    hooks.on(StepEnd, note)
    make_trainer(engines=Engines([e]), hooks=hooks, **kwargs).run()
    return steps


def expected(step: int) -> set[str]:
    patterns = PLAN[max(s for s in PLAN if s <= step)]
    return {n for n, _ in net().named_parameters() if any(covers(p, n) for p in patterns)}


def test_exactly_the_named_layers_move_from_exactly_their_step(make_trainer):
    e = engine()
    steps = trained_each_step(make_trainer, e, hooks_of(LayerSchedule(e, PLAN)))
    assert steps == [expected(s) for s in range(12)]


@pytest.mark.parametrize("stop", [2, 3, 4, 6, 9, 10])
def test_resumed_in_the_middle(make_trainer, tmp_path, stop):
    def start(**kwargs):
        module = net()
        groups = param_groups(module, {str(i): {} for i in range(3)})
        e = LocalEngine("net", module, torch.optim.AdamW(groups, lr=0.01))
        hooks = hooks_of(
            LayerSchedule(e, PLAN, rates={"0": ramp(0.0, 1.0, 7), "1": 0.5}), LRSchedule(e, ramp(1.0, 0.5, 9))
        )
        make_trainer(engines=Engines([e]), hooks=hooks, **kwargs).run()
        return e.state_dict()

    golden = start(checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    start(until=stop)
    assert first_difference(golden, start()) is None


def test_rates_by_layer_multiply_the_schedule(make_trainer):
    module = net()
    groups = param_groups(module, {"0": {}, "2": {"lr": 0.03}})
    e = LocalEngine("net", module, torch.optim.AdamW(groups, lr=0.01))
    layer, whole = ramp(0.0, 1.0, 5), ramp(1.0, 0.0, 10)
    rates = []
    hooks = hooks_of(LayerSchedule(e, rates={"0": layer, "2": 0.5}), LRSchedule(e, whole))
    hooks.on(StepEnd, lambda _: rates.append([g["lr"] for g in e.optimizer.param_groups]), order=1000)
    make_trainer(engines=Engines([e]), hooks=hooks, until=8).run()
    for s, found in enumerate(rates, 1):
        assert found == pytest.approx([0.01 * layer(s) * whole(s), 0.03 * 0.5 * whole(s), 0.01 * whole(s)])


def test_progressive():
    assert progressive(["head", "b", "a"], 10) == {0: ["head"], 10: ["head", "b"], 20: ["head", "b", "a"]}
    with pytest.raises(ValueError, match="every from 1"):
        progressive(["a"], 0)


def test_a_tied_parameter_is_covered_by_any_of_its_names(make_trainer):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Linear(4, 1), nn.Linear(4, 4)
            self.head = nn.Linear(4, 1)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.body(x)) + self.embed(x)

    e = engine(Tied())
    steps = trained_each_step(make_trainer, e, hooks_of(LayerSchedule(e, {0: ["head"]})), until=1)
    assert steps == [{"embed.weight", "head.weight", "head.bias"}]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({0: ["heads"]}, r"net.layers at step 0: the pattern 'heads' covers no parameter of this Sequential"),
        ({0: ["2"], 5: []}, "at step 5: every parameter would be frozen"),
        ({0: ["2"], 5: "*"}, r"expected a list of patterns, found '\*'"),
        ({5: ["2"]}, "first step must be 0, found 5"),
        ({0: ["2"], 7: ["*"], 5: ["1"]}, "found 5 after 7"),
        ([(0, ["2"]), (3, ["1"]), (3, ["*"])], "found 3 twice"),
        ({0: ["2"], -4: ["1"]}, "whole number from 0, found -4"),
        ({}, "the first step must be 0, found no step"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(plan, words):
    with pytest.raises(ValueError, match=words):
        LayerSchedule(engine(), plan)


def test_a_layer_the_optimizer_does_not_have_is_refused():
    module = net()
    e = LocalEngine("net", module, torch.optim.SGD(module[2].parameters(), 0.1))
    with pytest.raises(ValueError, match=r"at step 4: 0.weight is to be trained and the optimizer does not have it"):
        LayerSchedule(e, {0: ["2"], 4: ["*"]})
    with pytest.raises(ValueError, match="no parameter group '0'; there are none with a name"):
        LayerSchedule(e, rates={"0": 0.5})


def test_two_schedules_that_together_freeze_everything_are_named(make_trainer):
    e = engine()
    one, two = LayerSchedule(e, {0: ["0"]}), LayerSchedule(e, {0: ["2"]})
    two.name = "other"
    with pytest.raises(ValueError, match=r"net.layers and other together freeze every parameter"):
        make_trainer(engines=Engines([e]), hooks=hooks_of(one, two)).run()


class Rows:
    """Batches of a rank's own rows; rank 0 of 1 has all."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __iter__(self):
        for step in range(12):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))[self.rank :: self.world]
            yield x, x.sum(1, keepdim=True)


def on_backend(backend: str, rank: int, world: int, folder, feeder, **kwargs) -> dict[str, torch.Tensor]:
    e = trainloop.build_engine(backend, "net", net(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
    trainloop.Trainer(
        Engines([e]),
        Rows(rank, world),
        feeder,
        hooks=hooks_of(LayerSchedule(e, PLAN), LRSchedule(e, ramp(0.2, 1.0, 5))),
        checkpoints=trainloop.CheckpointStore(folder),
        commands=False,
        progress=False,
        seed=0,
        **{"until": 11, **kwargs},
    ).run()
    store = trainloop.CheckpointStore(folder)
    return store.read_module(store.newest(), "net")


@pytest.mark.parametrize("backend", ["ddp", "fsdp2"])
def test_unfreezing_on_two_ranks_equals_one(ranks, feeder, tmp_path, backend):
    whole = on_backend("local", 0, 1, tmp_path / "one", feeder)

    def both(rank):
        golden = on_backend(backend, rank, 2, tmp_path / "two", feeder)
        on_backend(backend, rank, 2, tmp_path / "cut", feeder, until=6)
        return golden, on_backend(backend, rank, 2, tmp_path / "cut", feeder)

    (golden, resumed), _ = ranks(both)
    assert first_difference(golden, resumed) is None
    for key in whole:
        torch.testing.assert_close(golden[key], whole[key], rtol=1e-5, atol=1e-6)


def test_backends_that_fix_what_is_trained_say_so(ranks):
    def on_rank(rank):
        said = []
        for backend, options in (("accelerate", {}), ("deepspeed", {"zero_stage": 1})):
            e = trainloop.build_engine(
                backend, "net", net(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.01), **options
            )
            try:
                LayerSchedule(e, PLAN)
            except ValueError as error:
                said.append(str(error))
        return said

    pytest.importorskip("deepspeed")
    for said in ranks(on_rank):
        assert "accelerate wraps once for what is trained, and net.layers would change that" in said[0]
        assert "DeepSpeed divides what is trained once" in said[1]
        assert "or use DDPEngine" in said[0]
