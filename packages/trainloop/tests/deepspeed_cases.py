"""DeepSpeed at every ZeRO stage trains like one process, resumes to the bit and exports whole weights."""

from __future__ import annotations

import math
import os

import pytest
import torch
import trainloop
from torch import nn
from trainloop.tree import first_difference

pytest.importorskip("deepspeed", reason="installs on Linux alone")

STAGES = [0, 1, 2, 3]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def optimizer(name: str, module: nn.Module) -> torch.optim.Optimizer:
    if name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(module.parameters())
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def engine(backend: str = "deepspeed", name: str = "net", optim: str = "adamw", **kwargs) -> trainloop.Engine:
    return trainloop.build_engine(
        backend,
        name,
        model(),
        lambda m: optimizer(optim, m),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
        **kwargs,
    )


class Rows:
    """Batches of a rank's own rows of one stream."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def __iter__(self):
        for step in range(12):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))[self.rank :: self.world]
            yield x, x.sum(1, keepdim=True)


def feed(e, batch, ctx):
    x, y = batch
    return trainloop.StepOutput((e.module(x) - y).square().mean(), weight=len(x), samples=len(x))


def run(folder, e, rank=0, world=1, feeder=feed, **kwargs):
    defaults = {"until": 6, "checkpoints": trainloop.CheckpointStore(folder), "seed": 0}
    engines = e if isinstance(e, trainloop.Engines) else trainloop.Engines([e])
    trainer = trainloop.Trainer(
        engines, Rows(rank, world), feeder, commands=False, progress=False, **{**defaults, **kwargs}
    )
    return trainer, trainer.run()


def states(folder, step=6, names=("net",)):
    store = trainloop.CheckpointStore(folder)
    found = store.open(step)
    shards = {p.name: torch.load(p, weights_only=True) for p in sorted(found.path.glob("*.zero*"))}
    return {n: store.read_module(found, n) for n in names}, shards, [store.read(found, f"{n}.optim") for n in names]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optim", ["adamw", "prodigy"])
@pytest.mark.parametrize("stage", STAGES)
def test_one_rank(tmp_path, stage, optim, accumulate):
    def make():
        return engine(optim=optim, zero_stage=stage)

    run(tmp_path / "local", engine("local", optim=optim), accumulate=accumulate)
    run(tmp_path / "whole", make(), accumulate=accumulate)
    run(tmp_path / "parts", make(), accumulate=accumulate, until=4)
    assert run(tmp_path / "parts", make(), accumulate=accumulate)[1].resumed_from == 4
    assert first_difference(states(tmp_path / "whole"), states(tmp_path / "parts")) is None
    # The checkpoint's module is one plain state dict at every stage.
    exported, expected = states(tmp_path / "whole")[0]["net"], states(tmp_path / "local")[0]["net"]
    model().load_state_dict(exported)
    for key in expected:
        torch.testing.assert_close(exported[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "optim"),
    [(0, "adamw"), (1, "prodigy"), (2, "adamw"), (3, "prodigy")]
    + [pytest.param(s, o, marks=pytest.mark.soak) for s, o in zip(STAGES, ["prodigy", "adamw"] * 2, strict=True)],
)
def test_two_ranks(ranks, tmp_path, stage, optim):
    def both(r):
        def make():
            return engine(optim=optim, zero_stage=stage)

        run(tmp_path / "whole", make(), r, 2, accumulate=2)
        run(tmp_path / "parts", make(), r, 2, accumulate=2, until=4)
        return run(tmp_path / "parts", make(), r, 2, accumulate=2)[1].resumed_from

    assert ranks(both, timeout=150) == [4, 4]
    whole = states(tmp_path / "whole")
    assert first_difference(whole, states(tmp_path / "parts")) is None
    assert len(whole[1]) == (2 if stage else 0)
    model().load_state_dict(whole[0]["net"])
    if optim == "adamw":  # Prodigy estimates its step size from a rank's own part
        run(tmp_path / "local", engine("local"), accumulate=2)
        expected = states(tmp_path / "local")[0]["net"]
        for key in expected:
            torch.testing.assert_close(whole[0]["net"][key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_is_autocast_over_fp32(tmp_path, stage):
    seen = []

    def feeder(e, batch, ctx):
        out = e.module(batch[0])
        seen.append((out.dtype, next(e.bare_module.parameters()).dtype))
        return trainloop.StepOutput((out.float() - batch[1]).square().mean())

    for folder, until in (("whole", 6), ("parts", 4), ("parts", 6)):
        run(tmp_path / folder, engine(zero_stage=stage, precision="bf16"), feeder=feeder, until=until)
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert first_difference(states(tmp_path / "whole"), states(tmp_path / "parts")) is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_config_is_merged_last(tmp_path, stage):
    """Parameters in bf16 with fp32 masters, which the checkpoint holds."""

    def make():
        over = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}, "gradient_clipping": 0.25}
        return engine(zero_stage=0, clip=1.0, config=over)

    def feeder(e, batch, ctx):
        out = e.module(batch[0].bfloat16())
        assert out.dtype == torch.bfloat16
        return trainloop.StepOutput((out.float() - batch[1]).square().mean())

    for folder, until in (("whole", 6), ("parts", 4), ("parts", 6)):
        trainer, _ = run(tmp_path / folder, make(), feeder=feeder, until=until)
    e = trainer.engines.only
    assert (e.stage, e.module.gradient_clipping(), e.module.gradient_accumulation_steps()) == (stage, 0.25, 1)
    modules, shards, _ = states(tmp_path / "whole")
    assert first_difference((modules, shards), states(tmp_path / "parts")[:2]) is None
    assert {t.dtype for t in modules["net"].values()} == {torch.float32}
    assert any((t != t.bfloat16().float()).any() for t in modules["net"].values())


@pytest.mark.parametrize("stage", STAGES)
def test_not_finite_is_skipped_and_training_goes_on(tmp_path, stage):
    def feeder(e, batch, ctx):
        out = feed(e, batch, ctx)
        if ctx.step == 1 and ctx.micro == 1:
            out.loss = out.loss * math.nan
        if ctx.step == 3:  # finite loss, gradient not
            out.loss = out.loss + (e.module(batch[0]) * 0).sum().sqrt()
        return out

    trainer, _ = run(tmp_path, engine(zero_stage=stage), feeder=feeder, accumulate=2)
    clock = trainer.engines.only.clock
    assert (clock.step, clock.skipped) == (4, 2)
    assert all(torch.isfinite(t).all() for t in states(tmp_path)[0]["net"].values())


@pytest.mark.parametrize("stage", [0, 2, pytest.param(1, marks=pytest.mark.soak)])
def test_a_rank_that_fails_in_the_middle_of_a_window_is_skipped_on_both(ranks, tmp_path, stage):
    def feeder(e, batch, ctx):
        if ctx.step == 1 and ctx.micro == 1 and int(os.environ["RANK"]) == 1:
            raise torch.OutOfMemoryError("no memory")
        return feed(e, batch, ctx)

    def both(r):
        trainer, _ = run(tmp_path, engine(zero_stage=stage), r, 2, feeder, accumulate=3)
        return trainer.engines.only.clock.skipped, [p.tolist() for p in trainer.engines.only.bare_module.parameters()]

    a, b = ranks(both, timeout=150)
    assert a[0] == 1
    assert a == b


def test_a_checkpoint_goes_to_another_backend_and_back(tmp_path):
    run(tmp_path / "a", engine(zero_stage=3))
    resume = trainloop.Resume(init_from=tmp_path / "a", module_only=True)
    run(tmp_path / "b", engine("local"), resume=resume, until=1)
    resume = trainloop.Resume(init_from=tmp_path / "b", module_only=True)
    trainer, _ = run(tmp_path / "c", engine(zero_stage=2), resume=resume, until=1)
    assert trainer.step == 1
    wrong = trainloop.build_engine("deepspeed", "net", nn.Linear(4, 1), lambda m: optimizer("", m), zero_stage=1)
    with pytest.raises(trainloop.CheckpointMismatch, match="tensors are missing in it"):
        run(tmp_path / "d", wrong, resume=resume, until=1)


def test_parts_of_another_stage_are_refused(tmp_path):
    run(tmp_path, engine(zero_stage=2))
    with pytest.raises(trainloop.CheckpointMismatch, match=r"holds no net\.zero1-0-of-1\.pth"):
        run(tmp_path, engine(zero_stage=1), until=8)


def test_two_models_with_cadences_of_their_own(tmp_path):
    def make():
        return trainloop.Engines([engine(name="a", zero_stage=2), engine(name="b", zero_stage=1, every=2)])

    def train(folder, until):
        trainer, _ = run(tmp_path / folder, make(), until=until)
        return [e.clock.step for e in trainer.engines.values()]

    assert train("whole", 6) == [6, 3]
    train("parts", 3)
    assert train("parts", 6) == [6, 3]
    names = ("a", "b")
    assert first_difference(states(tmp_path / "whole", names=names), states(tmp_path / "parts", names=names)) is None


def test_a_pinned_rate(tmp_path):
    e = engine(zero_stage=2)
    e.set_lr(0.5)
    run(tmp_path, e)
    again = engine(zero_stage=2)
    run(tmp_path, again, until=7)
    assert again.lr == 0.5


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"zero_stage": 4}, "must be 0, 1, 2 or 3"),
        ({"config": {"gradient_accumulation_steps": 2}}, "give accumulate= to the trainer"),
        ({"config": {"optimizer": {"type": "Adam"}}}, "give optimizer= to the engine"),
        ({"precision": "fp16"}, "need zero_stage 1 to 3"),
        ({"role": "teacher"}, "DeepSpeed trains"),
    ],
)
def test_arguments_that_cannot_be(kwargs, words):
    with pytest.raises(ValueError, match=words):
        engine(**kwargs)
