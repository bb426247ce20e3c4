"""Commands, cadence, accumulation, skips, signals, hooks: the loop's manners."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import trainloop
from hypothesis import given
from hypothesis import strategies as st
from trainloop import Every, read_metrics
from trainloop.cadence import Cadence, Progressed
from trainloop.commands import Command, CommandError, Schedule, parse
from trainloop.console import Console, LineBuffer
from trainloop.hooks import HookError, Hooks, StepEnd, StepSkipped


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("save", Command("save")),
        (" QUIT ", Command("quit")),
        ("eval@500", Command("eval", None, 500)),
        ("lr 1e-4", Command("lr", 1e-4)),
        ("lr auto", Command("lr")),
        ("lr 1e-5@20", Command("lr", 1e-5, 20)),
        ("loss_scale 64", Command("loss_scale", 64.0)),
        ("time to 9", Command("time", 9)),
        ("event show", Command("event show")),
    ],
)
def test_commands(line, command):
    assert parse(line) == command
    assert parse(str(command)) == command


@pytest.mark.parametrize(
    "line", ["lr foo", "lr", "lr -1", "lr nan", "loss_scale 0", "evaluate", "save now", "eval@x", "event", ""]
)
def test_what_is_no_command_says_what_was_expected(line):
    with pytest.raises(CommandError, match=r"expected|help"):
        parse(line)


@given(st.text())
def test_any_line_is_a_command_or_a_command_error(line):
    with contextlib.suppress(CommandError):
        parse(line)


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_lines_do_not_depend_on_how_the_stream_was_cut(pieces):
    whole = LineBuffer()
    expected = whole.feed(b"".join(pieces)) + whole.flush()
    cut = LineBuffer()
    assert [line for p in pieces for line in cut.feed(p)] + cut.flush() == expected


def test_a_schedule_fires_once_on_crossing():
    schedule = Schedule()
    schedule.add(Command("save", at=5))
    schedule.add(Command("eval", at=3))
    other = Schedule()
    other.load_state_dict(schedule.state_dict())
    assert other.take(2) == []
    assert other.take(7) == [Command("eval", at=3), Command("save", at=5)]
    assert other.take(8) == []


def test_a_control_file(tmp_path):
    path = tmp_path / "control"
    path.write_text("quit\n")  # from an earlier run
    console = Console(stdin=False, control=path)
    with path.open("a") as f:
        f.write("sa")
        f.flush()
        time.sleep(0.3)
        f.write("ve\n")
    end = time.monotonic() + 5
    while not console and time.monotonic() < end:
        time.sleep(0.05)
    assert console.take() == ["save"]
    console.close()


SCRIPT = textwrap.dedent("""
    import sys, time, torch, trainloop
    torch.set_num_threads(1)
    net = torch.nn.Linear(4, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    e = trainloop.LocalEngine("net", net, opt, scheduler=torch.optim.lr_scheduler.ExponentialLR(opt, 0.5))
    def feeder(e, b, c):
        time.sleep(0.01)
        return trainloop.StepOutput(e.module(b).mean())
    t = trainloop.Trainer(trainloop.Engines([e]), [torch.ones(2, 4)], feeder, until=60, progress=False)
    r = t.run()
    print(r.step, r.reason, e.lr)
""")


@pytest.mark.parametrize(
    ("kind", "stdin", "expected"),
    [
        ("closed", None, "60 finished"),
        ("pipe", b"lr foo\nnonsense\nhalf a li", "60 finished"),
        ("file", b"lr 0.01\nlr 0.02\n", "60 finished 0.02"),
        ("file", b"quit@20", "20 quit"),
    ],
    ids=["closed", "nonsense", "lr twice survives the scheduler", "scheduled without newline"],
)
def test_stdin(tmp_path, stdin, expected, kind):
    command = [sys.executable, "-c", SCRIPT]
    if stdin is None:
        out = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True)
    elif kind == "pipe":
        out = subprocess.run(command, input=stdin, capture_output=True)
    else:
        (tmp_path / "in").write_bytes(stdin)
        with (tmp_path / "in").open() as f:
            out = subprocess.run(command, stdin=f, capture_output=True)
    text = out.stdout if isinstance(out.stdout, str) else out.stdout.decode()
    assert text.startswith(expected), out.stderr
    if stdin and b"lr foo" in stdin:
        assert b"expected a learning rate" in out.stderr


@given(st.integers(1, 7), st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_a_cadence_is_due_once_per_multiple(period, jumps):
    cadence, step, fired = Cadence(Every(steps=period)), 0, 0
    for jump in jumps:
        before, step = step, step + jump
        now = Progressed(step)
        assert cadence.due(now) == (step // period > before // period)
        if cadence.due(now):
            cadence.mark(now)
            fired += 1
            assert not cadence.due(now)
    assert fired <= step // period


def test_every_needs_a_positive_unit():
    with pytest.raises(ValueError, match="at least one"):
        Every()
    with pytest.raises(ValueError, match="positive"):
        Every(minutes=0)


@pytest.mark.parametrize("weights", [False, True])
def test_accumulation_equals_the_concatenated_batch(weights):
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    cuts = [x[:2], x[2:3], x[3:12]] if weights else [x[:4], x[4:8], x[8:]]

    def feeder(e, batch, ctx):
        return trainloop.StepOutput(e.module(batch).square().mean(), len(batch) if weights else None)

    def train(loader, accumulate):
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 1)
        engine = trainloop.LocalEngine("n", net, torch.optim.SGD(net.parameters(), 0.1), clip=0.5)
        trainloop.Trainer(
            trainloop.Engines([engine]),
            loader,
            feeder,
            until=2,
            accumulate=accumulate,
            commands=False,
            progress=False,
        ).run()
        return net.weight.detach()

    torch.testing.assert_close(train(cuts, 3), train([x], 1))
    # a short last window is divided by its own length
    torch.testing.assert_close(train(cuts, 5), train([x], 1))


def test_a_mixture_of_weights_is_an_error(make_engine):
    window = trainloop.Window(2)
    loss = torch.ones((), requires_grad=True) * 1
    window.add(trainloop.StepOutput(loss, 2))
    with pytest.raises(ValueError, match="always or never"):
        window.add(trainloop.StepOutput(loss))


def test_one_step_has_the_bits_of_a_loop_by_hand(make_trainer, make_engine, counting):
    engine = make_engine()
    make_trainer(engines=trainloop.Engines([engine]), until=5, checkpoints=None).run()
    other = make_engine()
    trainloop.seed_everything(1)
    for step, (x, y) in enumerate(counting()):
        if step == 5:
            break
        (other.module(x) - y).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(other.module.parameters(), 1.0)
        other.optimizer.step()
        other.scheduler.step()
        other.optimizer.zero_grad()
    for a, b in zip(engine.module.parameters(), other.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_nan_is_skipped_counted_named_and_bounded(make_trainer, feeder):
    skips = []
    hooks = Hooks()
    hooks.on(StepSkipped, lambda e: skips.append((e.step, e.report.skipped)))

    def bad(e, batch, ctx):
        out = feeder(e, batch, ctx)
        if ctx.step == 3:
            out.loss = out.loss * math.nan
        return out

    trainer = make_trainer(feeder=bad, hooks=hooks)
    trainer.run()
    assert skips == [(3, "loss is nan")]
    assert (trainer.engines.only.clock.step, trainer.engines.only.clock.skipped) == (11, 1)

    def always(e, batch, ctx):
        loss = e.module(batch[0]).square().mean()
        return trainloop.StepOutput(loss + (e.module.net[0].weight * math.inf).sum() * 0)

    with pytest.raises(trainloop.TooManySkips, match="4 steps in a row"):
        make_trainer(feeder=always, checkpoints=None, max_skipped=4).run()


def test_a_bad_gradient_names_its_parameter(make_engine):
    engine = make_engine()
    for p in engine.module.parameters():
        p.grad = torch.zeros_like(p)
    engine.module.net[3].weight.grad.fill_(math.inf)
    before = [p.clone() for p in engine.module.parameters()]
    assert engine.optim_step().skipped == "gradient not finite, first in net.3.weight"
    assert all(torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))


def test_fp16_unscales_before_clipping(make_engine):
    engine = make_engine(precision="fp16", clip=1.0)
    for p in engine.module.parameters():
        p.grad = torch.full_like(p, 0.01 * engine.loss_scale)
    n = sum(p.numel() for p in engine.module.parameters())
    assert engine.optim_step().grad_norm == pytest.approx(0.01 * n**0.5, rel=1e-4)


def test_out_of_memory(make_trainer, feeder, tmp_path):
    def forward(e, batch, ctx):
        if ctx.step == 2:
            raise torch.OutOfMemoryError("none left")
        return feeder(e, batch, ctx)

    trainer = make_trainer(feeder=forward, checkpoints=None)
    assert trainer.run().step == 12
    assert trainer.engines.only.clock.skipped == 1

    class Hungry(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise torch.OutOfMemoryError("none left")

    def backward(e, batch, ctx):
        out = feeder(e, batch, ctx)
        if ctx.step == 2:
            out.loss = Hungry.apply(out.loss)
        return out

    with pytest.raises(trainloop.OutOfMemoryInBackward, match="at step 2"):
        make_trainer(feeder=backward).run()
    assert make_trainer().run() == trainloop.RunResult(12, "finished", 0, 3)


def test_a_time_budget_counts_over_resumes_and_ends_normally(make_trainer, feeder):
    def slow(e, batch, ctx):
        time.sleep(0.02)
        return feeder(e, batch, ctx)

    first = make_trainer(feeder=slow, until=None, time_budget=0.3)
    result = first.run()
    assert (result.reason, result.exit_code) == ("time", 0)
    again = make_trainer(feeder=slow, until=None, time_budget=0.3).run()
    assert (again.step, again.reason, again.resumed_from) == (result.step, "time", result.step)
    more = make_trainer(feeder=slow, until=None, time_budget=0.5)
    assert more.run().step > result.step
    assert 0.5 <= more.elapsed < 1.5


def test_evaluation_leaves_training_alone_and_is_logged(make_trainer, tmp_path):
    def evaluate(t):
        torch.rand(7)
        t.engines.only.module.eval()
        return {"x": float(t.step)}

    plain = make_trainer(checkpoints=None)
    plain.run()
    trainer = make_trainer(checkpoints=None, evaluate=evaluate, eval_every=5, eval_first=True)
    trainer.run()
    rows = read_metrics(tmp_path / "metrics.jsonl", "eval")
    assert [(r["step"], r["x"]) for r in rows] == [(0, 0.0), (5, 5.0), (10, 10.0)]
    for a, b in zip(plain.engines.only.module.parameters(), trainer.engines.only.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_signal_in_evaluation_stops_saves_and_evaluates_again(make_trainer, tmp_path):
    calls = []

    def evaluate(t):
        calls.append(t.step)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            assert t.stop_requested
        return {"x": 1.0}

    result = make_trainer(evaluate=evaluate, eval_every=5).run()
    assert (result.step, result.reason, result.exit_code) == (5, "signal", 128 + signal.SIGTERM)
    make_trainer(evaluate=evaluate, eval_every=5).run()
    assert calls == [5, 5, 10]


def test_a_second_signal_raises(make_trainer, feeder):
    def twice(e, batch, ctx):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return feeder(e, batch, ctx)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(feeder=twice).run()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stop_while_the_loader_hangs(make_trainer, counting, monkeypatch, accumulate, tmp_path):
    monkeypatch.setattr("trainloop.signals.StopSignals.__init__.__defaults__", (0.2, None))

    class Stuck(counting):
        def __iter__(self):
            for n, batch in enumerate(super().__iter__()):
                if n == 4 and self.epoch == 0 and stuck:
                    self.position -= 1
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(30)
                yield batch

    stuck = True
    begin = time.monotonic()
    first = make_trainer(loader=Stuck(), accumulate=accumulate).run()
    assert time.monotonic() - begin < 10
    assert first.reason == "signal"
    stuck = False
    second = make_trainer(loader=Stuck(), accumulate=accumulate)
    assert second.run().resumed_from == first.step
    golden = make_trainer(loader=Stuck(), accumulate=accumulate, checkpoints=trainloop.CheckpointStore(tmp_path / "g"))
    golden.run()
    for a, b in zip(golden.engines.only.module.parameters(), second.engines.only.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_hook_that_raises_names_itself_and_its_event(make_trainer):
    hooks = Hooks()

    def broken(event):
        raise ZeroDivisionError("oops")

    hooks.on(StepEnd, broken, every=3)
    trainer = make_trainer(hooks=hooks)
    with pytest.raises(HookError, match=r"broken failed on StepEnd: ZeroDivisionError: oops"):
        trainer.run()
    assert trainer.step == 3


def test_hooks_run_in_order_and_come_off():
    hooks, seen = Hooks(), []
    hooks.on(StepEnd, lambda e: seen.append("b"), order=2)
    off = hooks.on(StepEnd, lambda e: seen.append("a"), order=1)
    hooks.emit(StepEnd(None, 1))
    off()
    hooks.emit(StepEnd(None, 2))
    assert seen == ["a", "b", "b"]
    with pytest.raises(TypeError, match="event class"):
        hooks.on("StepEnd", print)


def test_a_pinned_rate_survives_the_scheduler_and_a_resume(make_engine):
    engine = make_engine()
    free = make_engine()
    engine.set_lr(0.5)
    engine.set_lr(0.25)
    for e in (engine, free):
        for _ in range(3):
            e.optimizer.step()
            e._rates.step()
    assert engine.lr == 0.25
    other = make_engine()
    other.load_state_dict(engine.state_dict())
    assert other.lr == 0.25
    other.set_lr(None)
    assert other.lr == free.lr
    with pytest.raises(ValueError, match="not negative"):
        engine.set_lr(-1.0)


def test_an_empty_loader_is_an_error(make_trainer):
    with pytest.raises(RuntimeError, match="no batch in a whole pass"):
        make_trainer(loader=iter([])).run()


def test_torn_metrics_line_and_append(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1, "x": 1}\n{"kind": "st')
    sink = trainloop.JsonLines(path)
    sink.write("step", 2, {"x": math.nan, "t": torch.ones(())})
    sink.close()
    assert read_metrics(path) == [
        {"kind": "step", "step": 1, "x": 1},
        {"kind": "step", "step": 2, "x": "nan", "t": 1.0},
    ]


def test_importing_loads_nothing():
    script = "import sys, trainloop; assert 'torch' not in sys.modules and 'tqdm' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert all(getattr(trainloop, name) is not None for name in trainloop.__all__)


@pytest.mark.parametrize("name", ["../x", "", "rng", ".a"])
def test_engine_names_are_file_names(make_engine, name):
    with pytest.raises(ValueError, match="file name"):
        trainloop.Engines([make_engine(name)])


def test_a_teacher_reaches_the_feeder_and_is_not_saved(make_trainer, make_engine, tmp_path):
    teacher = trainloop.LocalEngine("teacher", torch.nn.Linear(4, 1), role="teacher")

    def distil(e, batch, ctx):
        with torch.no_grad():
            target = ctx.engines.teachers["teacher"].module(batch[0])
        return trainloop.StepOutput((e.module(batch[0]) - target).square().mean())

    make_trainer(engines=trainloop.Engines([make_engine(), teacher]), feeder=distil, until=2).run()
    assert sorted(p.name for p in (tmp_path / "ckpt" / "2").iterdir()) == [
        "loader.pth",
        "manifest.json",
        "net.optim.pth",
        "net.pth",
        "rng.pth",
        "trainer.pth",
    ]
