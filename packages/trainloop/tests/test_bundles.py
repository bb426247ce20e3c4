"""Bundles, sinks and helpers around the loop."""

from __future__ import annotations

import gc
import io
import json
import logging
import subprocess
import sys
import time

import pytest
import torch
import trainloop
from trainloop import read_metrics
from trainloop.hooks import HookError, Hooks, StepEnd


def attached(*bundles) -> Hooks:
    hooks = Hooks()
    for bundle in bundles:
        hooks.attach(bundle)
    return hooks


def test_the_watchdog_says_once_where_a_silent_run_is(make_trainer, feeder, tmp_path):
    def a_feeder_that_stalls(e, batch, ctx):
        if ctx.step == 2:
            time.sleep(1.0)
        return feeder(e, batch, ctx)

    with (tmp_path / "stacks").open("w+") as file:
        make_trainer(feeder=a_feeder_that_stalls, hooks=attached(trainloop.Watchdog(0.3, file))).run()
        time.sleep(0.5)  # it stopped with the run
        file.seek(0)
        said = file.read()
    assert said.count("no step for 0.3 s") == 1
    assert "a_feeder_that_stalls" in said


def test_throughput(make_trainer, feeder, tmp_path):
    def counting(e, batch, ctx):
        time.sleep(0.01)
        out = feeder(e, batch, ctx)
        out.tokens = 10 * out.samples
        return out

    bundle = trainloop.Throughput(5, flops_per_token=2.0, peak_flops=1000.0)
    make_trainer(feeder=counting, hooks=attached(bundle)).run()
    rows = [r for r in read_metrics(tmp_path / "metrics.jsonl", "step") if "mfu" in r]
    assert [r["step"] for r in rows] == [5, 10]
    row = rows[1]
    assert row["samples_per_s"] == pytest.approx(6 * row["steps_per_s"])  # 6 rows a batch
    assert row["tokens_per_s"] == pytest.approx(60 * row["steps_per_s"])
    assert row["mfu"] == pytest.approx(row["tokens_per_s"] * 2.0 / 1000.0)
    assert row["steps_per_s"] < 100.0
    assert 0.01 < row["memory_gib"] < 100.0
    with pytest.raises(ValueError, match="exactly one"):
        trainloop.Throughput(peak_flops=1.0)


def test_a_profile_of_the_steps_asked_for(make_trainer, tmp_path):
    bundle = trainloop.ProfileWindow(tmp_path / "profile", 3, 5)
    make_trainer(hooks=attached(bundle)).run()
    assert bundle.path.name == "trace-3-5.json"
    events = json.loads(bundle.path.read_text())["traceEvents"]
    assert sum(e.get("name", "").startswith("Optimizer.step") for e in events) == 2
    with pytest.raises(ValueError, match="start < stop"):
        trainloop.ProfileWindow(tmp_path, 5, 5)


def test_garbage_is_collected_between_steps_alone(make_trainer, feeder):
    states, collected = [], []

    def looking(e, batch, ctx):
        states.append(gc.isenabled())
        return feeder(e, batch, ctx)

    def seen(phase, info):
        if phase == "start" and states:
            collected.append(len(states))

    gc.callbacks.append(seen)
    try:
        make_trainer(feeder=looking, hooks=attached(trainloop.GarbageCollection(4))).run()
    finally:
        gc.callbacks.remove(seen)
    assert set(states) == {False}
    assert collected[:3] == [4, 8, 12]
    assert gc.isenabled()


def test_garbage_collection_is_back_after_a_failure(make_trainer):
    hooks = attached(trainloop.GarbageCollection())
    hooks.on(StepEnd, lambda e: 1 / 0)
    with pytest.raises(HookError):
        make_trainer(hooks=hooks).run()
    assert gc.isenabled()


def test_tensorboard(make_trainer, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(until):
        make_trainer(sinks=[trainloop.TensorBoard(tmp_path / "tb")], until=until).run()

    run(5)
    time.sleep(1.1)  # event files are named by the second
    run(8)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [e.step for e in events.Scalars("step/net.loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    losses = [r["net.loss"] for r in read_metrics(tmp_path / "metrics.jsonl", "step")]
    assert [e.value for e in events.Scalars("step/net.loss")] == pytest.approx(losses)


def test_wandb_offline(make_trainer, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = trainloop.WandB(project="test", mode="offline", dir=str(tmp_path))
    make_trainer(sinks=[sink], until=3).run()
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    last = read_metrics(tmp_path / "metrics.jsonl", "step")[-1]["net.loss"]
    deadline = time.monotonic() + 60  # W&B's own process writes it, and may still do so
    while str(last)[:12].encode() not in written.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"step/net.loss" in written.read_bytes()
    assert str(last)[:12].encode() in written.read_bytes()


@pytest.mark.parametrize(
    ("make", "package"),
    [
        ("trainloop.WandB()", "wandb"),
        ("trainloop.TensorBoard('x')", "tensorboard"),
        ("trainloop.AccelerateEngine('n', net, opt)", "accelerate"),
        ("trainloop.DeepSpeedEngine('n', net, opt)", "deepspeed"),
    ],
)
def test_a_missing_extra_is_named(make, package):
    script = f"""
import sys
sys.modules["{package}"] = None
import torch, trainloop
net = torch.nn.Linear(1, 1)
opt = torch.optim.SGD(net.parameters(), 0.1)
try:
    {make}
except ImportError as e:
    print(e)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"pip install trainloop[{package}]" in out.stdout


def test_timers():
    timers = trainloop.Timers()
    for _ in range(2):
        with timers("sleep"):
            time.sleep(0.02)
    with pytest.raises(ZeroDivisionError), timers("failing"):
        1 / 0  # noqa: B018
    taken = timers.take()
    assert set(taken) == {"sleep", "failing"}
    assert taken["sleep"] >= 0.04
    assert timers.take() == {}


def test_log_records_go_above_the_bar(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    from tqdm import tqdm

    bar = tqdm(total=10, file=stream)
    log = logging.getLogger("trainloop.test")
    handler = trainloop.ProgressHandler()
    log.addHandler(handler)
    log.warning("something to say")
    log.removeHandler(handler)
    bar.close()
    assert "something to say" in [line.split("\r")[-1] for line in stream.getvalue().split("\n")]


def test_frozen():
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    with trainloop.frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [True, False]


def test_nested():
    Pair = __import__("collections").namedtuple("Pair", "a b")
    tree = {"x": [torch.ones(2), (1, "s")], "p": Pair(torch.zeros(1), None)}
    doubled = trainloop.map_tensors(lambda t: t * 2, tree)
    assert doubled["x"][0].tolist() == [2.0, 2.0]
    assert doubled["x"][1] == (1, "s")
    assert isinstance(doubled["p"], Pair)
    assert trainloop.to_device(tree, "meta")["p"].a.device.type == "meta"
    assert trainloop.flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
