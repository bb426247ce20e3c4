"""Real processes, killed; what they replay equals the golden run to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from trainloop import CheckpointStore, read_metrics
from trainloop.testing import FAILPOINTS, Divergence, Victim, compare

SCRIPT = textwrap.dedent("""
    import os, sys, time, torch, trainloop
    from torch.utils.data import DataLoader, TensorDataset
    from trainloop.testing import Recorder
    torch.set_num_threads(1)
    out, drop = sys.argv[1], os.environ.get("DROP")
    torch.manual_seed(0)
    def engine(name, every):
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        opt = torch.optim.AdamW(net.parameters(), 1e-2)
        sched = torch.optim.lr_scheduler.ExponentialLR(opt, 0.95)
        return trainloop.LocalEngine(name, net, opt, scheduler=sched, every=every, precision="fp16")
    x = torch.randn(36, 4, generator=torch.Generator().manual_seed(3))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 3, shuffle=True,
                        num_workers=int(os.environ.get("WORKERS", 0)))
    def feeder(e, batch, ctx):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return trainloop.StepOutput((e.module(batch[0]) - batch[1]).square().mean())
    hooks = trainloop.Hooks()
    hooks.attach(Recorder(f"{out}/record.jsonl"))
    if drop == "rng":
        import trainloop.persist
        trainloop.persist.set_rng_state = lambda s: None
    if drop == "loader":
        trainloop.feed.Feed.load_state_dict = lambda self, s: None
    if drop == "scaler":
        trainloop.scaler.LossScaler.load_state_dict = lambda self, s: self.set(512.0)
    trainer = trainloop.Trainer(
        trainloop.Engines([engine("a", 1), engine("b", 2)]), loader, feeder, until=24,
        accumulate=int(os.environ.get("ACCUMULATE", 1)),
        checkpoints=trainloop.CheckpointStore(f"{out}/ckpt"), save_every=3, log_dir=out,
        evaluate=lambda t: {"e": float(t.step)}, eval_every=4, hooks=hooks, seed=5,
        progress=False, async_save="ASYNC" in os.environ)
    sys.exit(trainer.run().exit_code)
""")


@pytest.fixture
def victim(tmp_path):
    """`victim(name, **env)`: the training above in a folder of its own."""
    script = tmp_path / "train.py"
    script.write_text("import trainloop.feed, trainloop.scaler\n" + SCRIPT)

    def make(name: str, **env: str) -> tuple[Victim, str]:
        folder = tmp_path / name
        folder.mkdir()
        return Victim([sys.executable, str(script), str(folder)], {"OMP_NUM_THREADS": "1", **env}), str(folder)

    return make


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            {"ACCUMULATE": "3", "ASYNC": "1", "WORKERS": "2"},
            id="accumulate-async-workers",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_killed_at_every_failpoint(victim, env):
    golden, expected = victim("golden", **env)
    assert golden.start() == 0, golden.output
    prey, folder = victim("victim", **env)
    for name in FAILPOINTS:
        if name == "mid_async_save" and "ASYNC" not in env:
            continue
        code = prey.start(failpoint=name)
        assert code in (-signal.SIGKILL, 0), prey.output[-1]
        if CheckpointStore(f"{folder}/ckpt").steps():
            assert CheckpointStore(f"{folder}/ckpt").newest() is not None
    assert prey.start() == 0, prey.output[-1]
    assert compare(f"{expected}/record.jsonl", f"{folder}/record.jsonl") >= 24
    golden_rows = {r["step"]: r["a.loss"] for r in read_metrics(f"{expected}/metrics.jsonl", "step")}
    assert golden_rows == {r["step"]: r["a.loss"] for r in read_metrics(f"{folder}/metrics.jsonl", "step")}


@pytest.mark.soak
def test_a_signal_saves_and_resumes(victim):
    golden, expected = victim("golden")
    assert golden.start() == 0
    prey, folder = victim("victim", SLOW="0.1")
    codes = [prey.start(after=after, sign=signal.SIGTERM) for after in (5.0, 5.0)]
    assert set(codes) <= {128 + signal.SIGTERM, -signal.SIGTERM, 0}, prey.output
    prey.env = {"OMP_NUM_THREADS": "1"}
    assert prey.start() == 0
    compare(f"{expected}/record.jsonl", f"{folder}/record.jsonl")


@pytest.mark.parametrize(
    "part",
    ["rng", *(pytest.param(part, marks=pytest.mark.soak) for part in ("loader", "scaler"))],
)
def test_the_comparison_notices_a_part_that_is_not_restored(victim, part):
    golden, expected = victim("golden")
    assert golden.start() == 0
    prey, folder = victim("victim", DROP=part)
    assert prey.start(failpoint="before_rename:3") == -signal.SIGKILL
    assert prey.start() == 0, prey.output[-1]
    with pytest.raises(Divergence):
        compare(f"{expected}/record.jsonl", f"{folder}/record.jsonl")


@pytest.mark.soak
def test_random_kills(victim):
    golden, expected = victim("golden", SLOW="0.05")
    assert golden.start() == 0
    prey, folder = victim("victim", SLOW="0.05")
    prey.torment(int(os.environ.get("TRAINLOOP_KILLS", "20")), 2.0, 6.0)
    compare(f"{expected}/record.jsonl", f"{folder}/record.jsonl")


def test_verify_resume_command(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        import torch, trainloop
        class Leaky:
            n = 0
            def __iter__(self):
                while True:
                    Leaky.n += 1
                    yield torch.full((2, 4), float(Leaky.n % 7))
        def exact(dir, until, loader=None):
            torch.manual_seed(0)
            net = torch.nn.Linear(4, 1)
            e = trainloop.LocalEngine("net", net, torch.optim.Adam(net.parameters()))
            return trainloop.Trainer(
                trainloop.Engines([e]), loader or [torch.randn(2, 4) for _ in range(3)],
                lambda e, b, c: trainloop.StepOutput(e.module(b).square().mean()), until=until, seed=0,
                checkpoints=trainloop.CheckpointStore(dir), commands=False, progress=False)
        def leaky(dir, until):
            return exact(dir, until, Leaky())
        """)
    )

    def run(target):
        command = [sys.executable, "-m", "trainloop", "verify-resume", target, "--steps", "2"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    out = run("mine:exact")
    assert (out.returncode, out.stdout) == (0, "resumes exactly: 2 + 2 steps equal 4 steps, bit for bit\n")
    out = run("mine:leaky")
    assert out.returncode == 1
    assert "engine net: optimizer differs after the resume" in out.stdout
    assert run("mine:absent").returncode == 2


def test_compare_tolerates_a_torn_line(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text(json.dumps({"step": 1, "x": 1}) + "\n")
    b.write_text(json.dumps({"step": 1, "x": 1}) + "\n" + '{"step": 2, "x"')
    assert compare(a, b) == 1
    b.write_text(json.dumps({"step": 1, "x": 2}) + "\n")
    with pytest.raises(Divergence, match="step 1: x is 2, in the golden run 1"):
        compare(a, b)
