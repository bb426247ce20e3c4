"""Routines swapped at exact steps: losses, loaders, batch sizes."""

from __future__ import annotations

import pytest
import torch
import trainloop
from torch.utils.data import DataLoader, TensorDataset
from trainloop import StepOutput
from trainloop.hooks import EpochEnd, EpochStart, Hooks
from trainloop.hooks.train_sched import Phase, TrainSchedule
from trainloop.tree import first_difference


def squared(engine, batch, ctx):
    return StepOutput((engine.module(batch[0]) - batch[1]).square().mean())


def absolute(engine, batch, ctx):
    return StepOutput((engine.module(batch[0]) - batch[1]).abs().mean())


def shuffled(rows: int, workers: int = 0) -> DataLoader:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), rows, shuffle=True, num_workers=workers)


def attached(schedule: TrainSchedule) -> Hooks:
    hooks = Hooks()
    hooks.attach(schedule)
    return hooks


def sizes(make_trainer, phases, **kwargs):
    """Rows of each micro-batch as (step, rows, feeder's name)."""
    seen = []

    def spy(feeder):
        def call(engine, batch, ctx):
            seen.append((ctx.step, len(batch[0]), feeder.__name__))
            return feeder(engine, batch, ctx)

        return call

    spied = {s: Phase(p.name, spy(p.feeder), p.loader, p.accumulate) for s, p in phases.items()}
    schedule = TrainSchedule(spied)
    hooks, epochs = attached(schedule), []
    hooks.on(EpochStart, lambda e: epochs.append(f"+{e.epoch}"))
    hooks.on(EpochEnd, lambda e: epochs.append(f"-{e.epoch}"))
    trainer = make_trainer(loader=schedule.loader, feeder=schedule, hooks=hooks, **kwargs)
    trainer.run()
    return seen, epochs, trainer.engines.only.state_dict()


def test_feeder_loader_and_accumulation_change_at_their_step(make_trainer):
    phases = {
        0: Phase("warm", squared, shuffled(5), 1),
        6: Phase("more", absolute, accumulate=2),
        8: Phase("wide", squared, shuffled(10)),
    }
    seen, epochs, _ = sizes(make_trainer, phases, until=10)
    assert seen[:6] == [(s, 5, "squared") for s in range(6)]
    assert seen[6:10] == [(s, 5, "absolute") for s in (6, 6, 7, 7)]
    assert seen[10:] == [(s, 10, "squared") for s in (8, 8, 9, 9)]
    assert epochs == ["+0", "-0", "+1", "-1", "+2", "-2", "+3", "-3", "+4"]


@pytest.mark.parametrize("kind", ["replayed", "workers", "stateful"])
@pytest.mark.parametrize("stop", [3, 4, 5, 7, 8, 9])
def test_resumed_in_the_middle_and_at_the_steps(make_trainer, counting, tmp_path, kind, stop):
    if kind == "workers" and stop not in (5, 8):
        pytest.skip("slow")

    def phases():
        def make(rows):
            return counting(rows=rows) if kind == "stateful" else shuffled(rows, 2 * (kind == "workers"))

        small, large = make(3), make(7)
        return {
            0: Phase("a", squared, small, 1),
            4: Phase("b", absolute, large, 2),
            8: Phase("c", squared, small),
        }

    golden = sizes(make_trainer, phases(), checkpoints=trainloop.CheckpointStore(tmp_path / "golden"))
    first = sizes(make_trainer, phases(), until=stop)
    second = sizes(make_trainer, phases())
    assert first[0] + second[0] == golden[0]
    assert first_difference(golden[2], second[2]) is None


def test_without_loaders_the_trainer_keeps_its_own(make_trainer, counting):
    schedule = TrainSchedule({0: Phase("a", squared), 3: Phase("b", absolute)})
    assert schedule.loader is None
    trainer = make_trainer(loader=counting(), feeder=schedule, hooks=attached(schedule))
    assert trainer.run().step == 12
    assert schedule.describe(until=9).splitlines() == ["step | phase", "-----+------", "0    | a", "3    | b"]


def test_phases_that_cannot_take_effect_are_refused(make_trainer, counting, feeder):
    schedule = TrainSchedule({0: Phase("a", squared, counting()), 3: Phase("b", absolute)})
    with pytest.raises(trainloop.hooks.HookError, match="give it to the trainer as its feeder too"):
        make_trainer(hooks=attached(schedule)).run()
    with pytest.raises(trainloop.hooks.HookError, match=r"give the trainer phases\.loader"):
        make_trainer(hooks=attached(schedule), feeder=schedule, loader=counting()).run()


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ({0: Phase("a", squared), 3: Phase("b", squared, [1])}, "'b' has a loader or accumulate of its own and 'a'"),
        ({0: Phase("a", squared), 3: Phase("b", squared, accumulate=2)}, "give the first one what it starts with"),
        ({0: Phase("a", squared, accumulate=0)}, "'a' accumulates 0"),
        ([(0, Phase("a", squared)), (0, Phase("b", squared))], "found 0 twice"),
        ({2: Phase("a", squared)}, "first step must be 0, found 2"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(phases, words):
    with pytest.raises(ValueError, match=words):
        TrainSchedule(phases)


def test_loaders_with_and_without_a_state_do_not_mix(counting):
    with pytest.raises(ValueError, match="some loaders save their position and some do not"):
        TrainSchedule({0: Phase("a", squared, counting()), 3: Phase("b", squared, shuffled(3))})
