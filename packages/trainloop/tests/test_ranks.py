"""Several ranks train like one, and fail like one."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

import pytest
import torch
import trainloop
from torch import nn
from trainloop.comm import RanksFailed
from trainloop.tree import first_difference

BACKENDS = ["ddp", "fsdp2", "accelerate"]


class Rows:
    """Batches of a rank's own rows; `whole` has those of both ranks, one after the other."""

    def __init__(self, rank: int, world: int, steps: int = 12, rows: int = 3) -> None:
        self.rank, self.world, self.steps, self.rows = rank, world, steps, rows

    def __iter__(self):
        for step in range(self.steps):
            g = torch.Generator().manual_seed(step)
            x = torch.randn(self.rows * 2, 4, generator=g)
            mine = x[self.rank :: self.world]
            yield mine, mine.sum(1, keepdim=True)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def engine(backend: str, **kwargs) -> trainloop.Engine:
    return trainloop.build_engine(
        backend,
        "net",
        model(),
        lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
        **kwargs,
    )


def weighted(e, batch, ctx):
    x, y = batch
    loss = (e.module(x) - y).square().mean()
    return trainloop.StepOutput(loss, weight=len(x), samples=len(x))


def trainer(rank, world, tmp_path, backend, feeder=weighted, **kwargs):
    defaults = {"until": 6, "checkpoints": trainloop.CheckpointStore(tmp_path / backend), "seed": 0}
    loader = kwargs.pop("loader", None) or Rows(rank, world)
    e = kwargs.pop("engine", None) or engine(backend)
    return trainloop.Trainer(
        trainloop.Engines([e]), loader, feeder, commands=False, progress=False, **{**defaults, **kwargs}
    )


def module_of(tmp_path, backend, step=6):
    store = trainloop.CheckpointStore(tmp_path / backend)
    return store.read_module(store.open(step), "net")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_equal_one_on_all_of_the_batch(ranks, tmp_path, backend, accumulate):
    trainer(0, 1, tmp_path, "local", accumulate=accumulate).run()
    ranks(lambda r: trainer(r, 2, tmp_path, backend, accumulate=accumulate).run())
    expected = module_of(tmp_path, "local")
    got = module_of(tmp_path, backend)
    assert expected.keys() == got.keys()
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_resumed_equals_uninterrupted(ranks, tmp_path, backend):
    ranks(lambda r: trainer(r, 2, tmp_path / "golden", backend).run())

    def interrupted(r):
        first = trainer(r, 2, tmp_path, backend, until=4).run()
        second = trainer(r, 2, tmp_path, backend).run()
        return first.step, second.resumed_from, second.step

    assert ranks(interrupted) == [(4, 4, 6)] * 2
    a, b = (trainloop.CheckpointStore(d / backend) for d in (tmp_path / "golden", tmp_path))
    for name in ("net.optim", "rng", "loader"):
        assert first_difference(a.read(a.open(6), name), b.read(b.open(6), name)) is None
    expected, got = module_of(tmp_path / "golden", backend), module_of(tmp_path, backend)
    assert first_difference(expected, got) is None


def test_uneven_weights_are_normalised_over_both_ranks(ranks, tmp_path):
    class Uneven:
        def __init__(self, rank, world):
            self.rank, self.world = rank, world

        def __iter__(self):
            for step in range(8):
                x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
                mine = x if self.world == 1 else (x[:1] if self.rank == 0 else x[1:])
                yield mine, mine.sum(1, keepdim=True)

    trainer(0, 1, tmp_path, "local", loader=Uneven(0, 1)).run()
    ranks(lambda r: trainer(r, 2, tmp_path, "ddp", loader=Uneven(r, 2)).run())
    expected, got = module_of(tmp_path, "local"), module_of(tmp_path, "ddp")
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-5, atol=1e-6)


def test_a_nan_on_one_rank_is_skipped_on_both_and_the_rank_named(ranks, tmp_path):
    def feeder(e, batch, ctx):
        out = weighted(e, batch, ctx)
        if ctx.step == 2 and int(os.environ["RANK"]) == 1:
            out.loss = out.loss * math.nan
        return out

    def run(r):
        skipped = []
        hooks = trainloop.Hooks()
        hooks.on(trainloop.hooks.StepSkipped, lambda e: skipped.append((e.step, e.report.skipped)))
        t = trainer(r, 2, tmp_path, "ddp", feeder, hooks=hooks)
        t.run()
        return skipped, t.engines.only.clock.step, [p.tolist() for p in t.engines.only.module.parameters()]

    (skips, steps, a), (other, _, b) = ranks(run)
    assert skips == other == [(2, "loss is not finite on rank 1")]
    assert steps == 5
    assert a == b


@pytest.mark.parametrize("accumulate", [1, 3])
def test_out_of_memory_in_one_forward_is_skipped_on_both(ranks, tmp_path, accumulate):
    def feeder(e, batch, ctx):
        if ctx.step == 1 and ctx.micro == 0 and int(os.environ["RANK"]) == 0:
            raise torch.OutOfMemoryError("no memory")
        return weighted(e, batch, ctx)

    def run(r):
        t = trainer(r, 2, tmp_path, "ddp", feeder, accumulate=accumulate)
        t.run()
        return t.engines.only.clock.skipped, [p.tolist() for p in t.engines.only.module.parameters()]

    a, b = ranks(run)
    assert a[0] == 1
    assert a == b


def test_a_feeder_that_fails_on_one_rank_ends_both(ranks, tmp_path):
    def feeder(e, batch, ctx):
        if ctx.step == 2 and int(os.environ["RANK"]) == 1:
            raise KeyError("broken batch")
        return weighted(e, batch, ctx)

    def run(r):
        with pytest.raises((RanksFailed, KeyError)) as e:
            trainer(r, 2, tmp_path, "ddp", feeder).run()
        return f"{e.type.__name__}: {e.value}"

    assert ranks(run) == [
        "RanksFailed: rank 1 failed in the forward pass: KeyError: 'broken batch'",
        "KeyError: 'broken batch'",
    ]


@pytest.mark.parametrize("backend", ["ddp", "fsdp2"])
@pytest.mark.parametrize("hit", [0, 1])
def test_sigterm_to_one_rank_stops_both_after_the_same_step(ranks, tmp_path, hit, backend):
    def feeder(e, batch, ctx):
        if ctx.step == 3 and int(os.environ["RANK"]) == hit:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return weighted(e, batch, ctx)

    def run(r):
        result = trainer(r, 2, tmp_path, backend, feeder, until=1000, save_every=1000).run()
        return result.step, result.reason, result.exit_code

    a, b = ranks(run)
    assert a == b
    assert a[1:] == ("signal", 128 + signal.SIGTERM)
    assert trainloop.CheckpointStore(tmp_path / backend).newest().step == a[0]
    if backend == "ddp":
        assert ranks(lambda r: trainer(r, 2, tmp_path, "ddp", until=a[0] + 1).run().step) == [a[0] + 1] * 2


def test_one_rank_without_data_stops_both(ranks, tmp_path, monkeypatch):
    class Stuck(Rows):
        def __iter__(self):
            yield from super().__iter__()
            if self.rank == 1:
                threading.Event().wait(40)

    def run(r):
        monkeypatch.setattr("trainloop.signals.StopSignals.__init__.__defaults__", (0.3, None))
        if r == 1:
            threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        t = trainer(r, 2, tmp_path, "ddp", loader=Stuck(r, 2, steps=4), until=100, save_every=2)
        result = t.run()
        return result.step, result.reason

    assert ranks(run) == [(4, "signal")] * 2
    assert trainloop.CheckpointStore(tmp_path / "ddp").newest().step == 4


def test_a_local_engine_among_several_ranks_is_refused(ranks, tmp_path):
    def run(r):
        with pytest.raises(ValueError, match="does not average its gradients"):
            trainer(r, 2, tmp_path, "local").run()

    ranks(run)


def test_a_checkpoint_of_another_world_size_is_refused(ranks, tmp_path):
    ranks(lambda r: trainer(r, 2, tmp_path, "ddp").run())
    with pytest.raises(trainloop.CheckpointMismatch, match="saved by 2 ranks, this run has 1"):
        trainer(0, 1, tmp_path, "ddp", until=8).run()
    result = trainer(0, 1, tmp_path, "ddp", until=8, resume=trainloop.Resume(strict_world=False)).run()
    assert (result.resumed_from, result.step) == (6, 8)


def test_fsdp_checkpoints_hold_whole_tensors(ranks, tmp_path):
    ranks(lambda r: trainer(r, 2, tmp_path, "fsdp2").run())
    model().load_state_dict(module_of(tmp_path, "fsdp2"))
    result = trainer(
        0,
        1,
        tmp_path,
        "fsdp2",
        engine=engine("local"),
        until=8,
        resume=trainloop.Resume(strict_world=False),
    ).run()
    assert (result.resumed_from, result.step) == (6, 8)


def test_buffers_follow_rank_0(ranks, tmp_path):
    def run(r):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        e = trainloop.DDPEngine("net", net, torch.optim.SGD(net.parameters(), 0.1))
        trainer(r, 2, tmp_path, "ddp", engine=e).run()
        return net[1].running_mean.tolist()

    a, b = ranks(run)
    assert a == b
