"""Every schedule on one run: at exact steps, resumed at every step, killed in the middle, told in advance."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
import trainloop
from torch import nn
from trainloop import Engines, LocalEngine, StepOutput
from trainloop.hooks import Hooks, StepEnd
from trainloop.hooks.curve import hold, ramp
from trainloop.hooks.layer_sched import LayerSchedule
from trainloop.hooks.lora_sched import LoRASchedule, On
from trainloop.hooks.lr_sched import LRSchedule, warmup_hold_decay
from trainloop.hooks.model_sched import EMACopy, ModelSchedule
from trainloop.hooks.optim_sched import OptimSchedule, Switch, param_groups
from trainloop.hooks.schedule import describe, plot
from trainloop.hooks.train_sched import Phase, TrainSchedule
from trainloop.testing import Victim, compare
from trainloop.tree import first_difference


class LowRank(nn.Linear):
    """A layer with adapters of its own: what the schedule needs of a library, and no more."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.lora = nn.ParameterDict({n: nn.Parameter(torch.randn(2, size, 1) / 4) for n in ("a", "b")})
        self.strengths: dict[str, float] = {}
        self.merged: torch.Tensor | None = None

    def delta(self) -> torch.Tensor:
        return sum((s * (self.lora[n][0] @ self.lora[n][1].T) for n, s in self.strengths.items() if s), self.weight)

    def forward(self, x):
        weight = self.delta() if self.merged is None else self.merged
        return nn.functional.linear(x, weight, self.bias)


class OwnAdapters:
    merges_weights = False

    def __init__(self, layer: LowRank) -> None:
        self.layer = layer

    def names(self):
        return list(self.layer.lora)

    def parameters(self, name):
        return [self.layer.lora[name]]

    def set_strengths(self, strengths):
        self.layer.strengths = dict(strengths)

    def merge(self):
        self.layer.merged = self.layer.delta().detach()

    def unmerge(self):
        self.layer.merged = None


def squared(engine, batch, ctx):
    return StepOutput((engine.module(batch[0]) - batch[1]).square().mean())


def absolute(engine, batch, ctx):
    return StepOutput((engine.module(batch[0]) - batch[1]).abs().mean())


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    groups = param_groups(module, {"0": {}, "2": {"lr": 0.02}})
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), LowRank(8), nn.Linear(8, 1))


def everything(counting):
    """Engines, schedules and the phases that are feeder and loader."""
    engines = []
    for name in ("net", "other"):
        module = net()
        adam = torch.optim.AdamW(param_groups(module, {"0": {}, "2": {"lr": 0.02}}), lr=0.01)
        engines.append(LocalEngine(name, module, adam))
    one, two = engines
    average = LocalEngine("ema", net(), role="frozen")
    engines = Engines([one, two, average])
    phases = TrainSchedule(
        {0: Phase("short", squared, counting(rows=3), 1), 4: Phase("long", absolute, counting(rows=5, seed=7), 2)}
    )
    schedules = [
        LRSchedule(one, warmup_hold_decay(3, 4, 5)),
        LayerSchedule(
            one, {0: ["3", "2.lora"], 5: ["*"], 9: ["0", "2.lora"]}, rates={"0": ramp(0.1, 1.0, 8), "2": hold(0.5)}
        ),
        LoRASchedule(
            one,
            OwnAdapters(one.module[2]),
            {0: "a", 3: On({"a": ramp(1.0, 0.0, 6), "b": 1.0}), 6: On({"b": 1.0}, merged=True), 8: "b"},
        ),
        OptimSchedule(
            one,
            {"betas": (ramp(0.8, 0.9, 6), 0.99), "momentum": ramp(0.5, 0.9, 12)},
            switch={7: Switch(sgd, {"exp_avg": "momentum_buffer"})},
        ),
        ModelSchedule(engines, {0: ["net"], 2: ["net", "other"], 4: {"net": "train", "other": "teacher"}}),
        phases,
    ]
    return engines, schedules, phases, EMACopy(one, average, ramp(0.5, 0.9, 10))


def start(make_trainer, counting, watch=None, **kwargs):
    engines, schedules, phases, ema = everything(counting)
    hooks = Hooks()
    for bundle in (*schedules, ema):
        hooks.attach(bundle)
    if watch:
        hooks.on(StepEnd, lambda e: watch(e, engines), order=1000)
    make_trainer(engines=engines, loader=phases.loader, feeder=phases, hooks=hooks, **kwargs).run()
    return {name: e.state_dict() for name, e in engines.items()}


@pytest.fixture
def golden(make_trainer, counting, tmp_path):
    return start(make_trainer, counting, checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))


@pytest.mark.parametrize("stop", range(1, 12))
def test_stopped_at_any_step_and_resumed_equals_uninterrupted(make_trainer, counting, golden, stop):
    start(make_trainer, counting, until=stop)
    assert first_difference(golden, start(make_trainer, counting)) is None


def test_stopped_at_every_step_and_resumed_equals_uninterrupted(make_trainer, counting, golden):
    for stop in range(1, 13):
        state = start(make_trainer, counting, until=stop)
    assert first_difference(golden, state) is None


def test_all_of_them_act_at_their_steps(make_trainer, counting):
    seen = {}

    def watch(event, engines):
        engine = engines["net"]
        seen[event.step] = {
            "lr": [g["lr"] for g in engine.optimizer.param_groups],
            "optimizer": type(engine.optimizer).__name__,
            "strengths": dict(engine.module[2].strengths),
            "merged": engine.module[2].merged is not None,
            "roles": [e.role for e in engines.values()],
            "accumulate": event.trainer.accumulate,
        }

    start(make_trainer, counting, watch)
    factor, layer, scale = warmup_hold_decay(3, 4, 5), ramp(0.1, 1.0, 8), ramp(1.0, 0.0, 6)
    for step, now in seen.items():
        base = (0.01, 0.02, 0.01) if step < 7 else (0.05, 0.02, 0.05)
        assert now["lr"] == pytest.approx(
            [base[0] * factor(step) * layer(step), base[1] * factor(step) * 0.5, base[2] * factor(step)]
        )
        assert now["optimizer"] == ("AdamW" if step < 7 else "SGD")
        expected = {"a": scale(step), "b": 1.0} if 3 <= step < 6 else {"a": float(step < 3), "b": float(step >= 3)}
        assert now["strengths"] == pytest.approx(expected)
        assert now["merged"] == (6 <= step < 8)
        assert now["roles"] == ["train", "frozen" if step < 2 else "train" if step < 4 else "teacher", "frozen"]
        assert now["accumulate"] == (1 if step < 4 else 2)


def test_the_order_of_attaching_does_not_matter(make_trainer, counting, golden, tmp_path):
    def run(order):
        engines, schedules, phases, ema = everything(counting)
        hooks = Hooks()
        for i in order:
            hooks.attach(schedules[i])
        hooks.attach(ema)
        trainer = make_trainer(engines=engines, loader=phases.loader, feeder=phases, hooks=hooks, checkpoints=None)
        trainer.run()
        return {name: e.state_dict() for name, e in engines.items()}

    for order in ((5, 4, 3, 2, 1, 0), (2, 0, 5, 1, 4, 3)):
        state = run(order)
        for name in golden:
            assert first_difference(golden[name]["module"], state[name]["module"]) is None


class Rows:
    """Batches of a rank's own rows."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __iter__(self):
        for step in range(12):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))[self.rank :: self.world]
            yield x, x.sum(1, keepdim=True)


def on_ranks(backend: str, rank: int, world: int, folder, until: int = 11) -> dict[str, torch.Tensor]:
    module = net()
    module[1] = nn.Identity()  # dropout would draw otherwise on each rank
    adam = torch.optim.AdamW(param_groups(module, {"0": {}, "2": {"lr": 0.02}}), lr=0.01)
    engine = trainloop.build_engine(backend, "net", module, lambda _: adam)
    hooks = Hooks()
    for schedule in (
        LRSchedule(engine, warmup_hold_decay(3, 4, 5)),
        LayerSchedule(engine, {0: ["3", "2.lora"], 5: ["0", "3", "2.lora", "2.bias"], 8: ["*"], 9: ["0", "2.lora"]}),
        LoRASchedule(engine, OwnAdapters(module[2]), {0: "a", 3: "b", 6: On({"b": 1.0}, merged=True), 8: "b"}),
        OptimSchedule(engine, switch={7: Switch(sgd, {"exp_avg": "momentum_buffer"})}),
        phases := TrainSchedule({0: Phase("a", squared), 4: Phase("b", absolute)}),
    ):
        hooks.attach(schedule)
    store = trainloop.CheckpointStore(folder)
    trainer = trainloop.Trainer(
        Engines([engine]),
        Rows(rank, world),
        phases,
        until=until,
        hooks=hooks,
        checkpoints=store,
        commands=False,
        progress=False,
        seed=0,
    )
    trainer.run()
    return store.read_module(store.newest(), "net")


def test_on_two_ranks_they_train_as_on_one(ranks, tmp_path):
    whole = on_ranks("local", 0, 1, tmp_path / "one")

    def both(rank):
        golden = on_ranks("ddp", rank, 2, tmp_path / "two")
        on_ranks("ddp", rank, 2, tmp_path / "cut", until=7)
        return golden, on_ranks("ddp", rank, 2, tmp_path / "cut")

    (golden, resumed), _ = ranks(both)
    assert first_difference(golden, resumed) is None
    for key in whole:
        torch.testing.assert_close(golden[key], whole[key], rtol=1e-4, atol=1e-5)


def test_a_table_of_all(counting):
    _, schedules, *_ = everything(counting)
    table = describe(*schedules, until=10)
    rows = {int(line.split(" | ")[0]): line for line in table.splitlines()[2:]}
    assert sorted(rows) == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert "b merged" in rows[6]
    assert "SGD" in rows[7]
    assert "AdamW" in rows[6]
    assert [word in rows[4] for word in ("long", "other (teacher)", "0.5")] == [True] * 3
    lines = table.splitlines()
    assert len({len(list(itertools.takewhile(lambda c: c != "|", line))) for line in (lines[0], *lines[2:])}) == 1


def test_a_picture_of_all(counting, tmp_path):
    pytest.importorskip("matplotlib")
    _, schedules, *_ = everything(counting)
    figure = plot(*schedules, until=12, path=tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 5000
    lr = next(a for a in figure.axes if a.get_title(loc="left") == "net.lr x").lines[0]
    factor = warmup_hold_decay(3, 4, 5)
    assert list(lr.get_ydata()) == [factor(int(s)) for s in lr.get_xdata()]
    assert {a.get_title(loc="left") for a in figure.axes} >= {"phase", "training", "net adapters", "net trains"}


def test_two_schedules_of_one_kind_need_names(make_engine):
    a, b = make_engine("a", scheduler=None), make_engine("b", scheduler=None)
    hooks = Hooks()
    hooks.attach(LRSchedule(a, 1.0))
    hooks.attach(LRSchedule(b, 1.0))
    with pytest.raises(ValueError, match=r"'a\.lr' is attached already"):
        hooks.attach(LRSchedule(a, 1.0))


def test_the_schedules_load_no_extra_and_name_the_one_that_is_missing():
    script = """
import sys
import trainloop.hooks.keras, trainloop.hooks.lora_sched, trainloop.hooks.lr_sched, trainloop.hooks.layer_sched
import trainloop.hooks.model_sched, trainloop.hooks.optim_sched
from trainloop.hooks.schedule import plot
from trainloop.hooks.train_sched import Phase, TrainSchedule
heavy = ("peft", "transformers", "diffusers", "datasets", "keras", "matplotlib", "huggingface_hub")
print([m for m in heavy if m in sys.modules])
sys.modules["matplotlib"] = None
try:
    plot(TrainSchedule({0: Phase("a", None)}), until=3)
except ImportError as e:
    print(e)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\nplot() needs matplotlib: pip install trainloop[plot]\n"


SCRIPT = textwrap.dedent("""
    import os, sys, torch, trainloop
    from torch import nn
    from trainloop.hooks.curve import ramp
    from trainloop.hooks.layer_sched import LayerSchedule, progressive
    from trainloop.hooks.lr_sched import LRSchedule, wsd
    from trainloop.hooks.optim_sched import OptimSchedule, Switch
    from trainloop.hooks.train_sched import Phase, TrainSchedule
    from trainloop.testing import Recorder
    torch.set_num_threads(1)
    out = sys.argv[1]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 8), nn.Linear(8, 1))
    engine = trainloop.LocalEngine("net", net, torch.optim.AdamW(net.parameters(), 1e-2))
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(3))
    def loader(rows):
        return torch.utils.data.DataLoader(x, rows, shuffle=True)
    def one(e, batch, ctx):
        return trainloop.StepOutput((e.module(batch) - batch.sum(1, keepdim=True)).square().mean())
    def two(e, batch, ctx):
        return trainloop.StepOutput((e.module(batch) - batch.sum(1, keepdim=True)).abs().mean())
    phases = TrainSchedule({0: Phase("one", one, loader(3), 1), 9: Phase("two", two, loader(5), 2)})
    hooks = trainloop.Hooks()
    for bundle in (
        phases,
        LRSchedule(engine, wsd(4, 8, 8)),
        LayerSchedule(engine, progressive(["3", "2", "0"], every=5)),
        OptimSchedule(engine, {"weight_decay": ramp(0.1, 0.0, 15)},
                      switch={12: Switch(lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9),
                                         {"exp_avg": "momentum_buffer"})}),
        Recorder(f"{out}/record.jsonl"),
    ):
        hooks.attach(bundle)
    trainer = trainloop.Trainer(
        trainloop.Engines([engine]), phases.loader, phases, until=20, hooks=hooks, seed=5, save_every=3,
        checkpoints=trainloop.CheckpointStore(f"{out}/ckpt"), commands=False, progress=False)
    sys.exit(trainer.run().exit_code)
""")


def test_killed_with_all_schedules_attached(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)

    def victim(name):
        (tmp_path / name).mkdir()
        command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / name)]
        return Victim(command, {"OMP_NUM_THREADS": "1"})

    golden, prey = victim("golden"), victim("victim")
    assert golden.start() == 0, golden.output
    assert prey.start(failpoint="before_rename:5") == -signal.SIGKILL, prey.output[-1]  # saving step 15
    assert prey.start() == 0, prey.output[-1]  # from step 12, where the optimizer is switched
    assert compare(tmp_path / "golden" / "record.jsonl", tmp_path / "victim" / "record.jsonl") == 15 + 8
